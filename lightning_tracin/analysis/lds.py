"""The linear datamodelling score: does summed influence predict the output of a model fitted on part of the data?

LDS (Ilyas et al. 2022, arXiv 2202.00622; Park et al. 2023, arXiv 2303.14186, section 2) refits the model on random subsets of
the train samples. For one probe it is Spearman's correlation over the subsets: the influence summed over a subset's samples
against the probe's output under the model fitted on that subset. A method's LDS is the mean over probes.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.analysis.resampling import Interval
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.errors import TracInError

Members = npt.NDArray[np.bool_]  # [subsets, train]
Outputs = npt.NDArray[np.float64]  # [subsets, probes]

_CHUNK = 32  # resamples at a time, to bound the memory


def draw_subsets(samples: int, subsets: int, fraction: float = 0.5, seed: int = 0) -> Members:
    """Random subsets of the train samples, all of the same size: array [subsets, samples].

    Drawing more subsets with the same seed keeps the first ones.

    Raises:
        TracInError: the fraction gives an empty or a full subset.

    Example:
        >>> draw_subsets(samples=4, subsets=2, fraction=0.5).sum(1).tolist()
        [2, 2]
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


def lds_per_probe(scores: Scores, members: Members, outputs: Outputs) -> Floats:
    """Each probe's rank correlation between summed influence and the refitted models' outputs: [probes].

    Args:
        scores: influence [train, probes]; positive = raises the output.
        members: which train samples are in each subset, [subsets, train].
        outputs: each refitted model's output for each probe, higher = better (the margin, or minus the loss), [subsets, probes].

    Returns:
        Spearman's correlation of each probe; NaN if all subsets have the same summed influence or the same output.

    Raises:
        TracInError: the shapes do not match, or there are fewer than three subsets.

    Example:
        >>> scores = np.array([[1.0], [2.0], [3.0]])
        >>> alone, better, worse = np.eye(3, dtype=bool), np.array([[0.1], [0.2], [0.9]]), np.array([[0.9], [0.2], [0.1]])
        >>> lds_per_probe(scores, alone, better).round(3).tolist(), lds_per_probe(scores, alone, worse).round(3).tolist()
        ([1.0], [-1.0])
    """
    return _rank_correlations(_predicted(scores, members, outputs), outputs)


def lds_within_class(
    scores: Scores, members: Members, outputs: Outputs, train_labels: Sequence[str | None], probe_labels: Sequence[str | None]
) -> Floats:
    """`lds_per_probe` controlled for the number of samples of the probe's class in each subset: [probes].

    In classification, subsets with more samples of a probe's class give better outputs, and scores based on labels alone
    predict that too. This is Spearman's partial correlation given that number.

    Args:
        scores: see `lds_per_probe`.
        members: see `lds_per_probe`.
        outputs: see `lds_per_probe`.
        train_labels: label of each train sample.
        probe_labels: label of each probe.

    Returns:
        The partial correlation of each probe; NaN if summed influence or output depends on that number alone.

    Raises:
        TracInError: see `lds_per_probe`; or the number of labels is wrong.

    Example:
        >>> scores, alone, outputs = np.array([[1.0], [1.0], [-1.0]]), np.eye(3, dtype=bool), np.array([[0.8], [0.8], [0.1]])
        >>> lds_per_probe(scores, alone, outputs).round(3).tolist()
        [1.0]
        >>> lds_within_class(scores, alone, outputs, ["a", "a", "b"], ["a"]).tolist()  # the label explains all of it
        [nan]
    """
    predicted = _predicted(scores, members, outputs)
    if len(train_labels) != len(scores) or len(probe_labels) != scores.shape[1]:
        raise TracInError(
            f"There are {len(train_labels)} and {len(probe_labels)} labels for {scores.shape[0]} train samples and "
            f"{scores.shape[1]} probes; give one for each."
        )
    same = np.asarray(train_labels, dtype=object)[:, None] == np.asarray(probe_labels, dtype=object)[None, :]
    counts = stats.rankdata(members.astype(np.float64) @ same, axis=0)
    one, other = (_residuals(stats.rankdata(values, axis=0), counts) for values in (predicted, outputs))
    norms = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    smallest = 1e-9 * len(members) ** 3  # below this, only rounding error is left
    correlations: Floats = np.divide((one * other).sum(0), norms, out=np.full(len(norms), np.nan), where=norms > smallest)
    return correlations


def _residuals(values: Floats, predictors: Floats) -> Floats:
    """Residuals of each column's linear regression on the same column of `predictors`."""
    values, predictors = (table - table.mean(0) for table in (values, predictors))
    square = np.square(predictors).sum(0)
    slope = np.divide((values * predictors).sum(0), square, out=np.zeros_like(square), where=square > 0)
    residuals: Floats = values - slope * predictors
    return residuals


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Example:
        >>> Estimate(value=0.4, low=0.3, high=0.5, probes=20).value
        0.4
    """

    value: float
    low: float
    high: float
    probes: int  # number of probes with a value


def lds(
    scores: Scores,
    members: Members,
    outputs: Outputs,
    interval: Interval | None = None,
    units: Sequence[Hashable] | None = None,
) -> Estimate:
    """LDS with an interval over both probes and subsets; the first arguments as in `lds_per_probe`.

    Args:
        scores: influence [train, probes].
        members: which train samples are in each subset.
        outputs: each refitted model's output for each probe.
        interval: settings of the bootstrap.
        units: unit of each probe, such as its item: translations of one item are not independent, so they are drawn together.
            None: every probe alone.

    Example:
        >>> scores, members = np.arange(8.0)[:, None].repeat(2, 1), draw_subsets(8, 6)
        >>> found = lds(scores, members, outputs=members @ scores)  # the outputs are the summed scores
        >>> round(found.value, 3), round(found.low, 3), found.probes
        (1.0, 1.0, 2)
    """
    correlations = lds_per_probe(scores, members, outputs)
    draws = resampled(_predicted(scores, members, outputs), outputs, interval or Interval(), units)
    return _estimate(correlations, draws, interval or Interval())


def lds_difference(
    scores: Scores,
    others: Scores,
    members: Members,
    outputs: Outputs,
    interval: Interval | None = None,
    units: Sequence[Hashable] | None = None,
) -> Estimate:
    """LDS of `scores` minus LDS of `others`, with an interval for the paired difference.

    Every resample uses the same probes and subsets for both; probes without a rank correlation in one of them do not count.
    Arguments as in `lds`.

    Example:
        >>> scores, members = np.arange(8.0)[:, None].repeat(2, 1), draw_subsets(8, 6)
        >>> round(lds_difference(scores, -scores, members, outputs=members @ scores).value, 3)
        2.0
    """
    settings = interval or Interval()
    difference = lds_per_probe(scores, members, outputs) - lds_per_probe(others, members, outputs)
    mine, theirs = _resampled([_predicted(each, members, outputs) for each in (scores, others)], outputs, settings, units)
    return _estimate(difference, mine - theirs, settings)


def repeatability(outputs: Outputs, again: Outputs) -> float:
    """Agreement of two refits of the same subsets: rank correlation over subsets, mean over probes.

    If it is low, a refit's outcome is mostly chance and no score can have a high LDS.

    Args:
        outputs: of one refit of each subset, [subsets, probes].
        again: of another refit with a different seed, [subsets, probes].

    Example:
        >>> round(repeatability(np.array([[1.0], [2.0], [3.0]]), np.array([[0.1], [0.3], [0.2]])), 3)
        0.5
    """
    return float(np.nanmean(_rank_correlations(outputs, again)))


def _predicted(scores: Scores, members: Members, outputs: Outputs) -> Floats:
    """Influence summed over each subset's samples: [subsets, probes]."""
    subsets, train = members.shape
    if scores.shape != (train, outputs.shape[1]) or len(outputs) != subsets:
        raise TracInError(
            f"scores {list(scores.shape)} should be [train, probes], members {list(members.shape)} [subsets, train] and outputs "
            f"{list(outputs.shape)} [subsets, probes], but they do not match; were all computed on the same samples?"
        )
    if subsets < 3:
        raise TracInError(f"There are {subsets} subsets, but a rank correlation needs at least 3; fit on more subsets.")
    summed: Floats = members.astype(np.float64) @ scores
    return summed


def _rank_correlations(predicted: Floats, outputs: Floats) -> Floats:
    """Spearman's correlation, column by column; NaN where a column is constant."""
    one, other = (stats.rankdata(values, axis=0) for values in (predicted, outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # NaN is the right answer
        result: Floats = np.asarray(stats.pearsonr(one, other, axis=0).statistic, dtype=np.float64)
    return result


def resampled(predicted: Floats, outputs: Floats, settings: Interval, units: Sequence[Hashable] | None = None) -> Floats:
    """LDS of resamples of both subsets and units of probes with replacement (pigeonhole bootstrap, Owen 2007): [resamples]."""
    found: Floats = _resampled([predicted], outputs, settings, units)[0]
    return found


def _resampled(predicted: Sequence[Floats], outputs: Floats, settings: Interval, units: Sequence[Hashable] | None) -> Floats:
    """LDS of several tables in the same resamples: [tables, resamples]; over the probes with a correlation in all tables.

    A subset's weight is how often it was drawn. A weighted sum of comparisons is the rank that its copies share.
    """
    generator = np.random.default_rng(settings.seed)
    subsets, probes = outputs.shape
    numbers: dict[Hashable, int] = {}
    unit = np.asarray([numbers.setdefault(name, len(numbers)) for name in units or range(probes)])
    compared, measured = [_comparisons(table) for table in predicted], _comparisons(outputs)
    draws = []
    for start in range(0, settings.resamples, _CHUNK):
        size = min(_CHUNK, settings.resamples - start)
        weights = generator.multinomial(subsets, np.full(subsets, 1 / subsets), size).astype(np.float64).T
        times = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size).T[unit]  # [probes, resamples]
        each = np.stack([_weighted_correlations(comparisons, measured, weights) for comparisons in compared])
        known = np.isfinite(each).all(0)
        counted = times * known
        sums = (np.where(known, each, 0.0) * counted).sum(1)
        draws.append(np.divide(sums, counted.sum(0), out=np.full_like(sums, np.nan), where=counted.any(0)))
    return np.concatenate(draws, axis=1)


def _weighted_correlations(comparisons: Floats, others: Floats, weights: Floats) -> Floats:
    """Correlations of ranks, from comparisons [probes, subsets, subsets], weights [subsets, resamples]: [probes, resamples]."""
    one, other = (ranks @ weights - len(weights) / 2 for ranks in (comparisons, others))  # [probes, subsets, resamples], mean 0
    product, norm, other_norm = ((x * y * weights).sum(1) for x, y in ((one, other), (one, one), (other, other)))
    square = norm * other_norm
    found: Floats = np.divide(product, np.sqrt(square), out=np.full_like(product, np.nan), where=square > 0)
    return found


def _comparisons(values: Floats) -> Floats:
    """1 if a subset's value is above another's, 0.5 if equal: [probes, subsets, subsets]. Row sums are ranks."""
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
