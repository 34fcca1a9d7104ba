"""The linear datamodelling score (LDS) of every score and baseline, over random halves of the train samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lightning_tracin.analysis.exchange import units_of
from lightning_tracin.analysis.lds import Members, draw_subsets, lds, lds_difference, lds_within_class
from lightning_tracin.analysis.resampling import Interval, bootstrap_mean, by_unit
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns

#: The seed whose scores and refits are compared.
_SEED = 0

_DIFFERENCE, _WITHIN = ("minus_main", "minus_main_low", "minus_main_high"), ("within_class", "within_low", "within_high")
COLUMNS = ("score", "lds", "low", "high", *_DIFFERENCE, *_WITHIN, "probes")


def check_settings(settings: StudySettings) -> None:
    """Check the number of subsets.

    Raises:
        TracInError: there are fewer than three.
    """
    if settings.subsets < 3:
        raise TracInError(f"subsets should be 3 or more, because lds is a rank correlation over them, but is {settings.subsets}.")


def members(study: StudyRuns, seed: int) -> Members:
    """The random halves, [subsets, train]; only one seed is fitted on them."""
    return draw_subsets(len(study.train), study.settings.subsets if seed == _SEED else 0)


@experiment(
    "lds", "Does influence predict refits? (LDS)", 100, refits=members, check_settings=check_settings, addable=("subsets",)
)
def datamodelling_score(study: StudyRuns) -> Contents:
    """Refits on random halves of the train samples.

    The score has intervals; it is also computed within the probe's class, and as the difference from the study's own score.
    """
    halves = members(study, _SEED)
    outputs = -study.refits(_SEED).losses(halves, _SEED)
    scores, items = study.scores(_SEED), units_of(study.probes)
    rows = []
    for name, one in scores.items():
        own = lds(one, halves, outputs, units=items)
        above = lds_difference(one, scores[study.main], halves, outputs, units=items)
        within = lds_within_class(one, halves, outputs, study.train.label, study.probes.label)
        finite = np.isfinite(within)
        within, units = within[finite], [item for item, counts in zip(study.probes.item, finite, strict=True) if counts]
        low, high = bootstrap_mean(by_unit(within[:, None], units), Interval())
        inside = (float(within.mean()) if len(within) else np.nan, low[0], high[0])
        rows.append((name, own.value, own.low, own.high, above.value, above.low, above.high, *inside, own.probes))
    table = table_from(rows, COLUMNS).sort_values("lds", ascending=False, ignore_index=True)
    return Contents(
        f"{len(halves)} refits on random halves of the {len(study.train)} train samples, seed {_SEED}. LDS is Spearman's "
        f"correlation over the halves between summed influence and minus the loss of a probe, averaged over {len(study.probes)} "
        "probes; 95 % intervals come from resampling halves and the items of probes. `within_class` controls for the number of "
        f"samples of the probe's class (interval over items only); `minus_main` is the difference from {study.main}.",
        tuple(_findings(table, study.main)),
        {"lds": table},
        {"lds": figures.lds_bars(table.assign(subsets=len(halves), seeds=1))},
    )


def _findings(table: pd.DataFrame, main: str) -> Iterator[str]:
    best, mine = table.iloc[0], table[table["score"] == main].iloc[0]
    yield f"{best['score']} predicts refits best: LDS {best['lds']:.3f} [{best['low']:.3f}, {best['high']:.3f}]."
    inside = table.sort_values("within_class", na_position="first").iloc[-1]
    yield f"Within the probe's class, {inside['score']} predicts refits best: {inside['within_class']:.3f}."
    above = table.loc[table["minus_main_low"] > 0, "score"].tolist()
    below = table.loc[table["minus_main_high"] < 0, "score"].tolist()
    yield (
        f"{main} has an LDS of {mine['lds']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}]. Significantly better: "
        f"{', '.join(above) or 'none'}; significantly worse: {', '.join(below) or 'none'} (95 % interval of the difference)."
    )
