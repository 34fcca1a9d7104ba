"""Which scores may be among the strongest: sorted out in single precision, decided in double precision.

Almost all of a million scores are far from the k strongest. Single precision is enough to see that, with half the bytes to move
and nothing to convert. Scores that are nearer to the border than rounding can explain are computed again in double precision, so
ranks and ties are those of double precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_tracin.analysis.scores import FactoredScores, Scores
from lightning_tracin.storage.shards import FloatArray, Indices

#: The distance between 1 and the next number: twice the relative error of one operation.
_STEP = float(np.finfo(np.float32).eps)

#: Rounded operations behind a product: two factors, two multiplications.
_OPERATIONS = 4

#: More than what is lost where a result is too small for single precision.
_TINY = 1e-37

#: Factors outside this range lose digits in single precision.
_SMALLEST, _LARGEST = 1e-36, 1e36


def near_or_beyond(terms: Sequence[FactoredScores], border: Scores, is_positive: bool) -> tuple[Indices, Indices, Scores]:
    """The pairs of train sample and probe whose score is at or beyond the border, and a few that are just short of it.

    Args:
        terms: what is summed up: the scores of each snapshot, for the same train samples and probes.
        border: a score of each probe: [probes].
        is_positive: whether beyond is above; otherwise it is below.

    Returns:
        Positions of train samples, positions of probes, and scores in double precision, summed in the order of `terms`.

    Example:
        >>> scores = FactoredScores(np.array([[[4.0], [6.0]]], np.float32), np.ones(1), np.ones(2), np.array([0.5]))
        >>> [found.tolist() for found in near_or_beyond([scores], np.array([2.5]), is_positive=True)]
        [[1], [0], [3.0]]
    """
    shape = terms[0].dot.shape[1:]
    if all(map(_is_in_range, terms)):
        with np.errstate(over="ignore", invalid="ignore"):
            values, limit, slack = _of_one(terms[0], border) if _is_one(terms) else _of_several(terms, border)
            limit = (limit - slack if is_positive else limit + slack).astype(np.float32)
            far = values < limit if is_positive else values > limit
        near = np.flatnonzero(~far)  # also what overflowed, and is no number
    else:
        near = np.arange(shape[0] * shape[1])
    rows, probes = np.divmod(near, shape[1])
    scores = terms[0].at(rows, probes)
    for term in terms[1:]:
        scores += term.at(rows, probes)
    return rows, probes, scores


def _is_in_range(term: FactoredScores) -> bool:
    """Whether the factors of the train samples and probes are 0, or in the range of single precision with all its digits."""
    factors = np.concatenate([term.train, *np.multiply.outer(term.weights, term.probe)])
    smallest, largest = factors.min(initial=1.0), factors.max(initial=1.0)
    if smallest > _SMALLEST and largest < _LARGEST:  # without a look at each
        return True
    return bool(((factors == 0) | ((factors > _SMALLEST) & (factors < _LARGEST))).all())


def _is_one(terms: Sequence[FactoredScores]) -> bool:
    return len(terms) == 1 and len(terms[0].weights) == 1


def _of_one(term: FactoredScores, border: Scores) -> tuple[FloatArray, Scores, Scores]:
    """Scores that are no sums, as values without the probe's factor; the border of these, and what rounding can explain.

    Where the factor is 0, every score is 0, and the border is NaN, so that none is far.
    """
    factor = term.weights[0] * term.probe
    limit = np.divide(border, factor, out=np.full_like(border, np.nan), where=factor > 0)
    return _without_probe(term, 0), limit, 2 * _OPERATIONS * _STEP * np.abs(limit) + _TINY


def _of_several(terms: Sequence[FactoredScores], border: Scores) -> tuple[FloatArray, Scores, Scores]:
    """Sums of scores, their border, and what rounding can explain; summands can cancel, so this hangs on the largest of them."""
    values = np.zeros(terms[0].dot.shape[1:], np.float32)
    slack, count = np.zeros_like(border), 0
    for term in terms:
        for group, weight in enumerate(term.weights):
            part, factor = _without_probe(term, group), weight * term.probe
            slack += np.abs(part).max(initial=0.0) * factor
            values += part * factor.astype(np.float32)
            count += 1
    return values, border, (_OPERATIONS + count) * _STEP * slack + count * _TINY


def _without_probe(term: FactoredScores, group: int) -> FloatArray:
    values: FloatArray = term.dot[group] * term.train.astype(np.float32)[:, None]
    return values
