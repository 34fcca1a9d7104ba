"""The linear datamodelling score of every score and baseline, over random halves of the train samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lightning_tracin.analysis.lds import Members, draw_subsets, lds, lds_difference, lds_within_class
from lightning_tracin.analysis.reliance import Interval, bootstrap_mean, by_unit
from lightning_tracin.reporting import figures
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.study_runs import Ground

#: The seed whose scores are judged, and whose refits judge them.
_SEED = 0


def members(ground: Ground) -> Members:
    """The halves: [subsets, train]."""
    return draw_subsets(len(ground.train), ground.settings.subsets)


def section(ground: Ground) -> Section:
    """LDS with intervals, within the probe's class, and beside the study's own score."""
    halves = members(ground)
    outputs = -ground.refits(_SEED).losses(halves, _SEED)
    scores = ground.scores(_SEED)
    rows = []
    for name, one in scores.items():
        own, above = lds(one, halves, outputs), lds_difference(one, scores[ground.main], halves, outputs)
        within = lds_within_class(one, halves, outputs, ground.train.label, ground.probes.label)
        finite = np.isfinite(within)
        units = [unit for unit, counts in zip(ground.units, finite, strict=True) if counts]
        within = within[finite]
        low, high = bootstrap_mean(by_unit(within[:, None], units), Interval())
        rows.append(
            {
                "score": name,
                "lds": own.value,
                "low": own.low,
                "high": own.high,
                "minus_main": above.value,
                "minus_main_low": above.low,
                "minus_main_high": above.high,
                "within_class": float(within.mean()) if len(within) else np.nan,
                "within_low": low[0],
                "within_high": high[0],
                "probes": own.probes,
            }
        )
    table = pd.DataFrame(rows).sort_values("lds", ascending=False, ignore_index=True)
    return Section(
        "lds",
        "Does influence predict refits? (LDS)",
        f"{len(halves)} refits on random halves of the {len(ground.train)} train samples, seed {_SEED}: for each of "
        f"{len(ground.probes)} probes Spearman's correlation over the halves of summed influence with minus the loss; the mean "
        "over probes, with 95 % intervals that draw halves and probes anew. `within_class` takes out what the number of "
        "samples of the probe's class explains (interval over items alone); `minus_main` is the difference from "
        f"{ground.main}.",
        tuple(_said(table, ground.main)),
        {"lds": table},
        {"lds": figures.lds_bars(table.assign(subsets=len(halves), seeds=1))},
    )


def _said(table: pd.DataFrame, main: str) -> Iterator[str]:
    best, mine = table.iloc[0], table[table["score"] == main].iloc[0]
    yield f"The best prediction of refits is by {best['score']}: LDS {best['lds']:.3f} [{best['low']:.3f}, {best['high']:.3f}]."
    inside = table.sort_values("within_class", na_position="first").iloc[-1]
    yield f"Within the probe's class it is by {inside['score']}: {inside['within_class']:.3f}."
    above = table.loc[table["minus_main_low"] > 0, "score"].tolist()
    below = table.loc[table["minus_main_high"] < 0, "score"].tolist()
    yield (
        f"{main} has {mine['lds']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}]; better, with the interval of the difference "
        f"above 0: {', '.join(above) or 'none'}; worse: {', '.join(below) or 'none'}."
    )
