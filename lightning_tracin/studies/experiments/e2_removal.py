"""E2: what removing the strongest train samples does, score by score, and the area under it (AUC-DEL).

The probes of one label share a removal: proponents of one label are opponents of another, so that a sum over all probes would
cancel what is to be removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.lds import Members
from lightning_tracin.analysis.reliance import Floats, Interval, bootstrap_mean, by_unit
from lightning_tracin.analysis.removal import area_by_deletion, removal_table, without_random, without_top
from lightning_tracin.config import Sign
from lightning_tracin.reporting import figures
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.study_runs import Ground

RANDOM = "random samples"


@dataclass(frozen=True)
class Removed:
    """What is taken away by one rule."""

    score: str
    sign: Sign

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.score}, {'proponents' if self.sign == 'positive' else 'opponents'}"


def members(ground: Ground, seed: int) -> Members:
    """Which train samples the refits of a seed may see: [fits, train]."""
    if seed >= ground.settings.removal_seeds:
        return np.zeros((0, len(ground.train)), dtype=np.bool_)
    lines = [np.ones((1, len(ground.train)), dtype=np.bool_)]
    for removed, ks in _plan(ground):
        for k in ks:
            lines += [kept[None, :] for kept, _ in _groups(ground, removed, k, seed)]
    for k in ground.settings.ks:
        lines.append(without_random(len(ground.train), k, ground.settings.draws, seed))
    return np.concatenate(lines)


def _plan(ground: Ground) -> Iterator[tuple[Removed, list[int]]]:
    """Every rule with the sizes it is made at; opponents by the study's own score only."""
    settings = ground.settings
    every = {ground.main, *settings.removal_scores}
    some = [*settings.scores, *settings.baselines] if settings.area_scores is None else settings.area_scores
    for name in [*settings.scores, *settings.baselines]:
        if name in every:
            yield Removed(name, "positive"), settings.ks
        elif name in some and name != "random":  # which has refits of its own
            yield Removed(name, "positive"), common(settings.ks)
    yield Removed(ground.main, "negative"), settings.ks


def common(ks: Sequence[int]) -> list[int]:
    """At how many removed samples every score is looked at, by which areas are compared: every third k, the last one always."""
    return list(ks[::-3][::-1])


def _groups(ground: Ground, removed: Removed, k: int, seed: int) -> list[tuple[Members, Members]]:
    """For each label of the probes: which train samples stay [train], and which probes are asked [probes]."""
    scores, labels = ground.scores(seed)[removed.score], np.asarray([str(label) for label in ground.probes.label])
    asked = [labels == label for label in sorted(set(labels))]
    return [(without_top(scores[:, probes], k, removed.sign), probes) for probes in asked]


def section(ground: Ground) -> Section:
    """The removal curves and areas. Probabilities are averaged over seeds, so that a probe counts once."""
    settings = ground.settings
    seeds = range(settings.removal_seeds)
    whole = np.ones((1, len(ground.train)), dtype=np.bool_)
    base = np.mean([_probability(ground, whole, seed)[0] for seed in seeds], axis=0)
    at_random = {
        k: np.mean(
            [_probability(ground, without_random(len(ground.train), k, settings.draws, seed), seed) for seed in seeds], axis=0
        )
        for k in settings.ks
    }
    curves, areas = [], []
    some = common(settings.ks)
    for removed, ks in _plan(ground):
        now = {k: np.mean([_asked(ground, removed, k, seed) for seed in seeds], axis=0) for k in ks}
        if len(ks) == len(settings.ks):
            curves.append(removal_table(base, now, at_random, units=ground.units).assign(removed=removed.name))
        areas.append(_area(removed.name, ground, some, [now[k] - base for k in some]))
    areas.append(_area(RANDOM, ground, some, [at_random[k].mean(0) - base for k in some]))
    facts = {"probes": len(base), "seeds": settings.removal_seeds, "draws": settings.draws}
    table, area = pd.concat(curves, ignore_index=True), pd.DataFrame(areas)
    table.insert(list(table).index("p") + 1, "p_adjusted", stats.false_discovery_control(table["p"].to_numpy()))
    return Section(
        "removal",
        "E2: removing what influence names",
        f"Fitted again without the k train samples (of {len(ground.train)}) that a score puts first for the probes of a label, "
        f"summed; {len(base)} probes, whose mean probability of the correct class is {base.mean():.3f}; probabilities are "
        f"means over {settings.removal_seeds} seed(s). `drop` is the mean relative loss of probability, `excess` what it is "
        f"above that of {settings.draws} random removals of each size and seed, with 95 % intervals over items (translations "
        "of a probe do not vary by themselves); p is of Wilcoxon's test, two-sided, `p_adjusted` corrected for all "
        f"{len(table)} tests (Benjamini and Hochberg). All probes of a label share "
        "a refit, so a removal is called different only where its drop is also beyond every single random removal's. AUC-DEL: "
        f"area under the change of probability over the removed part of the train set, at k = {_listed(some)}; negative where "
        "what was removed had supported the probes.",
        (*_of_curves(table), *_of_areas(area)),
        {"curve": table, "areas": area},
        {
            "curve": figures.removal_curve(table.assign(**facts)),
            "areas": figures.deletion_areas(area.assign(**facts)),
        },
    )


def _probability(ground: Ground, kept: Members, seed: int) -> Floats:
    """Probability of each probe's correct class under each fit: [fits, probes]."""
    found: Floats = np.exp(-ground.refits(seed).losses(kept, seed))
    return found


def _asked(ground: Ground, removed: Removed, k: int, seed: int) -> Floats:
    """Each probe's probability under the fit without what was removed for its label: [probes]."""
    found = np.full(len(ground.probes), np.nan)
    for kept, probes in _groups(ground, removed, k, seed):
        found[probes] = _probability(ground, kept[None, :], seed)[0][probes]
    return found


def _area(name: str, ground: Ground, ks: Sequence[int], changes: Sequence[Floats]) -> dict[str, float | str | int]:
    values = area_by_deletion([k / len(ground.train) for k in ks], np.stack(changes))
    means = by_unit(values[:, None], ground.units)
    low, high = bootstrap_mean(means, Interval())
    return {"removed": name, "area": float(means.mean()), "low": low[0], "high": high[0], "probes": len(values)}


def _of_curves(table: pd.DataFrame) -> Iterator[str]:
    for name, lines in table.groupby("removed", sort=False):
        above = lines.loc[(lines["excess_low"] > 0) & (lines["drop"] > lines["random_highest"]), "k"].tolist()
        below = lines.loc[(lines["excess_high"] < 0) & (lines["drop"] < lines["random_lowest"]), "k"].tolist()
        said = [f"lowers the probability more than random removals at {_at(above, lines)}"] if above else []
        said += [f"lowers it less at {_at(below, lines)}"] if below else []
        last = lines.iloc[-1]
        yield (
            f"Removing {name}: {'; '.join(said) or 'at no k different from random removals'} (k = {last['k']}: excess "
            f"{last['excess']:+.3f} [{last['excess_low']:+.3f}, {last['excess_high']:+.3f}], p = "
            f"{last['p_adjusted']:.2g} corrected for {len(table)} tests)."
        )


def _of_areas(table: pd.DataFrame) -> Iterator[str]:
    order = table.sort_values("area")
    best = order.iloc[0]
    if best["high"] >= 0:
        yield "By AUC-DEL, no removal is shown to hurt: every interval reaches 0 or lies above it."
        return
    yield (
        f"By AUC-DEL, removing {best['removed']} hurts most ({best['area']:.5f} [{best['low']:.5f}, {best['high']:.5f}]); in "
        f"order: {', '.join(f'{name} {area:.5f}' for name, area in zip(order['removed'], order['area'], strict=True))}."
    )


def _at(some: Sequence[int], lines: pd.DataFrame) -> str:
    return "every k" if len(some) == len(lines) else f"k = {_listed(some)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
