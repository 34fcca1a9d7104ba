"""Evidence: does summed influence predict what a model fitted on part of the data says? Arrays in, figures out.

The linear datamodelling score (LDS; Ilyas et al. 2022, arXiv 2202.00622; Park et al. 2023, arXiv 2303.14186, section 2) fits
the model again on random subsets of the train samples. For one probe it is Spearman's correlation, over the subsets, of the
influence summed over a subset's samples with the probe's output under the model fitted on that subset; the score of an
influence method is the mean over probes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lightning_tracin.analysis.reliance import Interval
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.errors import TracInError

Members = npt.NDArray[np.bool_]  # [subsets, train]
Outputs = npt.NDArray[np.float64]  # [subsets, probes]
Floats = npt.NDArray[np.float64]

_CHUNK = 32  # resamples at a time, which bounds the memory


def draw_subsets(samples: int, subsets: int, fraction: float = 0.5, seed: int = 0) -> Members:
    """Random subsets of the train samples, all of one size: array [subsets, samples].

    The first subsets of a seed stay the same when more are drawn.

    Raises:
        TracInError: the fraction leaves no sample, or leaves none out.
    """
    size = round(samples * fraction)
    if not 0 < size < samples:
        raise TracInError(
            f"fraction={fraction} of {samples} train samples is {size}, but a subset should hold some and leave some out; "
            "give a fraction such as 0.5."
        )
    members = np.zeros((subsets, samples), dtype=np.bool_)
    for line, child in zip(members, np.random.SeedSequence(seed).spawn(subsets), strict=True):
        line[np.random.default_rng(child).permutation(samples)[:size]] = True
    return members


def without_language(languages: Sequence[str], left_out: str) -> Members:
    """All train samples but those of one language, as the only line of members: array [1, train].

    Raises:
        TracInError: there is no such train sample, or no other.
    """
    kept = np.asarray([language != left_out for language in languages])
    if kept.all() or not kept.any():
        raise TracInError(
            f"The train samples are in {', '.join(sorted(set(languages)))}; {left_out!r} cannot be left out of these."
        )
    return kept[None, :]


def lds_per_probe(scores: Scores, members: Members, outputs: Outputs) -> Floats:
    """Each probe's rank correlation of summed influence with the refitted models' output: [probes].

    Args:
        scores: influence [train, probes]; positive = raises the output.
        members: which train samples each subset holds, [subsets, train].
        outputs: what the model fitted on a subset says of a probe, higher = better (its margin, or minus its loss),
            [subsets, probes].

    Returns:
        Spearman's correlation of each probe; NaN where all subsets have the same summed influence or the same output, so that
        there is none.

    Raises:
        TracInError: the shapes do not fit, or there are fewer than three subsets.
    """
    predicted = _predicted(scores, members, outputs)
    return _rank_correlations(predicted, outputs)


def lds_within_class(
    scores: Scores, members: Members, outputs: Outputs, train_labels: Sequence[str | None], probe_labels: Sequence[str | None]
) -> Floats:
    """Each probe's rank correlation as in `lds_per_probe`, without what the number of samples of its class explains: [probes].

    On classification, subsets with more samples of a probe's class serve it better, which scores that know nothing but labels
    predict as well. This is Spearman's partial correlation given that number.

    Args:
        scores: see `lds_per_probe`.
        members: see there.
        outputs: see there.
        train_labels: of each train sample.
        probe_labels: of each probe.

    Returns:
        The partial correlation of each probe; NaN where summed influence or output is a function of that number alone.

    Raises:
        TracInError: as `lds_per_probe`, or the labels are not one for each sample.
    """
    predicted = _predicted(scores, members, outputs)
    if len(train_labels) != len(scores) or len(probe_labels) != scores.shape[1]:
        raise TracInError(
            f"There are {len(train_labels)} and {len(probe_labels)} labels for {scores.shape[0]} train samples and "
            f"{scores.shape[1]} probes; give one for each."
        )
    same = np.asarray(train_labels, dtype=object)[:, None] == np.asarray(probe_labels, dtype=object)[None, :]
    counts = stats.rankdata(members.astype(np.float64) @ same, axis=0)
    one, other = (_without(stats.rankdata(values, axis=0), counts) for values in (predicted, outputs))
    norms = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    smallest = 1e-9 * len(members) ** 3  # what rounding leaves of ranks that the number explains
    found: Floats = np.divide((one * other).sum(0), norms, out=np.full(len(norms), np.nan), where=norms > smallest)
    return found


def _without(values: Floats, explained: Floats) -> Floats:
    """Columns without their mean and what a linear function of another table's columns explains of them."""
    values, explained = (table - table.mean(0) for table in (values, explained))
    square = np.square(explained).sum(0)
    slope = np.divide((values * explained).sum(0), square, out=np.zeros_like(square), where=square > 0)
    rest: Floats = values - slope * explained
    return rest


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float
    probes: int  # how many counted


def lds(scores: Scores, members: Members, outputs: Outputs, interval: Interval | None = None) -> Estimate:
    """LDS with an interval that holds for other probes and other subsets; arguments as of `lds_per_probe`."""
    correlations = lds_per_probe(scores, members, outputs)
    draws = _resampled(_predicted(scores, members, outputs), outputs, interval or Interval())
    return _estimate(correlations, draws, interval or Interval())


def lds_difference(
    scores: Scores, others: Scores, members: Members, outputs: Outputs, interval: Interval | None = None
) -> Estimate:
    """By how much the LDS of `scores` is above that of `others`, with an interval of the paired difference.

    Both are computed on the same probes and subsets in every resample. Arguments as of `lds_per_probe`.
    """
    settings = interval or Interval()
    difference = lds_per_probe(scores, members, outputs) - lds_per_probe(others, members, outputs)
    both = (_resampled(_predicted(each, members, outputs), outputs, settings) for each in (scores, others))
    mine, theirs = both
    return _estimate(difference, mine - theirs, settings)


def repeatability(outputs: Outputs, again: Outputs) -> float:
    """How alike two refits of the same subsets are: rank correlation over subsets, mean over probes.

    Where it is low, a refit's outcome is mostly chance, and no score can have a high LDS.

    Args:
        outputs: of one refit of each subset, [subsets, probes].
        again: of another with the same members but another seed, [subsets, probes].
    """
    return float(np.nanmean(_rank_correlations(outputs, again)))


def _predicted(scores: Scores, members: Members, outputs: Outputs) -> Floats:
    """Influence summed over each subset's samples: [subsets, probes]."""
    subsets, train = members.shape
    if scores.shape != (train, outputs.shape[1]) or len(outputs) != subsets:
        raise TracInError(
            f"scores {list(scores.shape)} should be [train, probes], members {list(members.shape)} [subsets, train] and outputs "
            f"{list(outputs.shape)} [subsets, probes], but they do not fit together; were all computed on the same samples?"
        )
    if subsets < 3:
        raise TracInError(f"There are {subsets} subsets, but a rank correlation needs at least 3; fit on more subsets.")
    summed: Floats = members.astype(np.float64) @ scores
    return summed


def _rank_correlations(predicted: Floats, outputs: Floats) -> Floats:
    """Spearman's correlation, column by column; NaN where a column is constant."""
    one, other = (stats.rankdata(values, axis=0) for values in (predicted, outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # NaN is the answer there
        result: Floats = np.asarray(stats.pearsonr(one, other, axis=0).statistic, dtype=np.float64)
    return result


def _resampled(predicted: Floats, outputs: Floats, settings: Interval) -> Floats:
    """LDS of resamples that draw subsets and probes anew, each with replacement (Owen 2007's pigeonhole bootstrap): [resamples].

    How often a subset was drawn is its weight; a weighted sum of comparisons is the rank that its copies share.
    """
    generator = np.random.default_rng(settings.seed)
    subsets, probes = predicted.shape
    below = [_comparisons(values) for values in (predicted, outputs)]
    draws = []
    for start in range(0, settings.resamples, _CHUNK):
        size = min(_CHUNK, settings.resamples - start)
        weights = generator.multinomial(subsets, np.full(subsets, 1 / subsets), size).astype(np.float64).T
        times = generator.multinomial(probes, np.full(probes, 1 / probes), size).T  # [probes, resamples]
        one, other = (ranks @ weights - subsets / 2 for ranks in below)  # [probes, subsets, resamples], mean 0
        product, norm, other_norm = ((x * y * weights).sum(1) for x, y in ((one, other), (one, one), (other, other)))
        square = norm * other_norm
        correlations = np.divide(product, np.sqrt(square), out=np.zeros_like(product), where=square > 0)
        counted = times * (square > 0)
        draws.append(np.divide((correlations * counted).sum(0), counted.sum(0), out=np.full(size, np.nan), where=counted.any(0)))
    return np.concatenate(draws)


def _comparisons(values: Floats) -> Floats:
    """1 where a subset's value is above another's, a half where equal: [probes, subsets, subsets]; its row sums are ranks."""
    mine, other = values.T[:, :, None], values.T[:, None, :]
    above: Floats = (mine > other) + 0.5 * (mine == other)
    return above


def _estimate(values: Floats, draws: Floats, settings: Interval) -> Estimate:
    counted = np.isfinite(values)
    if not counted.any():
        raise TracInError("No probe has a rank correlation: summed influence or output is the same for all subsets.")
    tail = (1 - settings.confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Estimate(float(values[counted].mean()), float(low), float(high), int(counted.sum()))
