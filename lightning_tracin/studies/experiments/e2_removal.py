"""E2: the effect of removing the strongest train samples, for each score, and the area under its curve (AUC-DEL).

Samples are removed separately for the probes of each label: proponents of one label are opponents of another, so summed over all
probes, their influence would cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.lds import Members
from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.analysis.removal import area_by_deletion, removal_table, without_random, without_top
from lightning_tracin.analysis.resampling import Interval, bootstrap_mean, by_unit
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns

RANDOM = "random samples"


@dataclass(frozen=True)
class Removed:
    """A rule for removing samples: the strongest by a score, of one sign."""

    score: str
    sign: Sign

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.score}, {'proponents' if self.sign == 'positive' else 'opponents'}"


def check_settings(settings: StudySettings) -> None:
    """Check `ks` and the scores to remove by.

    Raises:
        TracInError: `ks` is not ascending from 1 on, or a score to remove by is not computed.
    """
    if not settings.ks or settings.ks[0] < 1 or settings.ks != sorted(set(settings.ks)):
        raise TracInError(f"ks should be ascending numbers from 1 on, but is {settings.ks}.")
    for name in [*settings.removal_scores, *(settings.area_scores or ())]:
        if name not in [*settings.scores, *settings.baselines]:
            raise TracInError(f"Removals by {name!r} need it among scores or baselines, but it is in neither; add it there.")


def check_data(settings: StudySettings, split: Split) -> None:
    """Check that some train samples are left.

    Raises:
        TracInError: the last of `ks` is not below the number of train samples.
    """
    if settings.ks[-1] >= len(split.train):
        raise TracInError(
            f"ks ends with {settings.ks[-1]}, but there are {len(split.train)} train samples; choose smaller numbers."
        )


def members(study: StudyRuns, seed: int) -> Members:
    """The train samples of each refit of a seed: [fits, train]."""
    if seed >= study.settings.removal_seeds:
        return np.zeros((0, len(study.train)), dtype=np.bool_)
    lines = [np.ones((1, len(study.train)), dtype=np.bool_)]
    for removed, ks in _plan(study):
        for k in ks:
            lines += [kept[None, :] for kept, _ in _groups(study, removed, k, seed)]
    for k in study.settings.ks:
        lines.append(without_random(len(study.train), k, study.settings.draws, seed))
    return np.concatenate(lines)


def _plan(study: StudyRuns) -> Iterator[tuple[Removed, list[int]]]:
    """Each rule with the numbers of samples to remove; opponents are removed by the study's own score only."""
    settings = study.settings
    every = {study.main, *settings.removal_scores}
    some = [*settings.scores, *settings.baselines] if settings.area_scores is None else settings.area_scores
    for name in [*settings.scores, *settings.baselines]:
        if name in every:
            yield Removed(name, "positive"), settings.ks
        elif name in some and name != "random":  # random removals have refits of their own
            yield Removed(name, "positive"), common(settings.ks)
    yield Removed(study.main, "negative"), settings.ks


def common(ks: Sequence[int]) -> list[int]:
    """The numbers of removed samples that all areas use, so that they are comparable: every third k, counted from the last.

    Example:
        >>> common([50, 100, 150, 200, 250])
        [100, 250]
    """
    return list(ks[::-3][::-1])


def _groups(study: StudyRuns, removed: Removed, k: int, seed: int) -> list[tuple[Members, Members]]:
    """For each label of the probes: the train samples to keep [train], and the probes with the label [probes]."""
    scores, labels = study.scores(seed)[removed.score], np.asarray([str(label) for label in study.probes.label])
    with_label = [labels == label for label in sorted(set(labels))]
    return [(without_top(scores[:, probes], k, removed.sign), probes) for probes in with_label]


@experiment(
    "removal",
    "E2: removing the most influential samples",
    80,
    refits=members,
    check_settings=check_settings,
    check_data=check_data,
    addable=("ks", "draws", "removal_seeds", "removal_scores", "area_scores"),
)
def removal(study: StudyRuns) -> Contents:
    """E2: refits without the strongest train samples.

    Probabilities are averaged over seeds, so each probe counts once.
    """
    settings = study.settings
    seeds = range(settings.removal_seeds)
    whole = np.ones((1, len(study.train)), dtype=np.bool_)
    base = np.mean([_probability(study, whole, seed)[0] for seed in seeds], axis=0)
    at_random = {
        k: np.mean(
            [_probability(study, without_random(len(study.train), k, settings.draws, seed), seed) for seed in seeds], axis=0
        )
        for k in settings.ks
    }
    curves, areas = [], []
    some = common(settings.ks)
    for removed, ks in _plan(study):
        now = {k: np.mean([_probability_without(study, removed, k, seed) for seed in seeds], axis=0) for k in ks}
        if len(ks) == len(settings.ks):
            curves.append(removal_table(base, now, at_random, units=study.probes.item).assign(removed=removed.name))
        areas.append(_area(removed.name, study, some, [now[k] - base for k in some]))
    areas.append(_area(RANDOM, study, some, [at_random[k].mean(0) - base for k in some]))
    facts = {"probes": len(base), "seeds": settings.removal_seeds, "draws": settings.draws}
    table, area = pd.concat(curves, ignore_index=True), pd.DataFrame(areas)
    table.insert(list(table).index("p") + 1, "p_adjusted", stats.false_discovery_control(table["p"].to_numpy()))
    return Contents(
        f"The model is fitted again without the k train samples (of {len(study.train)}) with the highest scores, summed over the "
        f"probes of a label. There are {len(base)} probes, with a mean probability of the correct class of {base.mean():.3f}; "
        f"probabilities are means over {settings.removal_seeds} seed(s). `drop` is the mean relative loss of probability; "
        f"`excess` is `drop` minus that of {settings.draws} random removals of each size and seed; 95 % intervals are over items "
        "(the translations of a probe are not independent). p is from Wilcoxon's two-sided test; `p_adjusted` is corrected for "
        f"all {len(table)} tests (Benjamini and Hochberg). All probes of a label share a refit, so a removal counts as different "
        "only if its drop also lies outside the range of the single random removals. AUC-DEL is the area under the change in "
        f"probability over the removed fraction of the train set, at k = {_listed(some)}; it is negative if the removed samples "
        "supported the probes.",
        (*_of_curves(table), *_of_areas(area)),
        {"curve": table, "areas": area},
        {
            "curve": figures.removal_curve(table.assign(**facts)),
            "areas": figures.deletion_areas(area.assign(**facts)),
        },
    )


def _probability(study: StudyRuns, kept: Members, seed: int) -> Floats:
    """Probability of each probe's correct class under each fit: [fits, probes]."""
    found: Floats = np.exp(-study.refits(seed).losses(kept, seed))
    return found


def _probability_without(study: StudyRuns, removed: Removed, k: int, seed: int) -> Floats:
    """Probability of each probe's correct class under the fit without the samples removed for its label: [probes]."""
    found = np.full(len(study.probes), np.nan)
    for kept, probes in _groups(study, removed, k, seed):
        found[probes] = _probability(study, kept[None, :], seed)[0][probes]
    return found


def _area(name: str, study: StudyRuns, ks: Sequence[int], changes: Sequence[Floats]) -> dict[str, float | str | int]:
    values = area_by_deletion([k / len(study.train) for k in ks], np.stack(changes))
    means = by_unit(values[:, None], study.probes.item)
    low, high = bootstrap_mean(means, Interval())
    return {"removed": name, "area": float(means.mean()), "low": low[0], "high": high[0], "probes": len(values)}


def _of_curves(table: pd.DataFrame) -> Iterator[str]:
    for name, lines in table.groupby("removed", sort=False):
        above = lines.loc[(lines["excess_low"] > 0) & (lines["drop"] > lines["random_highest"]), "k"].tolist()
        below = lines.loc[(lines["excess_high"] < 0) & (lines["drop"] < lines["random_lowest"]), "k"].tolist()
        effects = [f"lowers the probability more than random removals at {_at(above, lines)}"] if above else []
        effects += [f"lowers it less than random removals at {_at(below, lines)}"] if below else []
        last = lines.iloc[-1]
        yield (
            f"Removing {name}: {'; '.join(effects) or 'does not differ from random removals at any k'} (k = {last['k']}: excess "
            f"{last['excess']:+.3f} [{last['excess_low']:+.3f}, {last['excess_high']:+.3f}], p = "
            f"{last['p_adjusted']:.2g} corrected for {len(table)} tests)."
        )


def _of_areas(table: pd.DataFrame) -> Iterator[str]:
    order = table.sort_values("area")
    best = order.iloc[0]
    if best["high"] >= 0:
        yield "By AUC-DEL, no removal significantly hurts: every interval includes 0 or lies above it."
        return
    yield (
        f"By AUC-DEL, removing {best['removed']} hurts most ({best['area']:.5f} [{best['low']:.5f}, {best['high']:.5f}]); in "
        f"order: {', '.join(f'{name} {area:.5f}' for name, area in zip(order['removed'], order['area'], strict=True))}."
    )


def _at(some: Sequence[int], lines: pd.DataFrame) -> str:
    return "every k" if len(some) == len(lines) else f"k = {_listed(some)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
