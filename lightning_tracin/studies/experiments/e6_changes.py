"""E6: how reliance changes from one snapshot to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lightning_tracin.analysis.changes import change_table
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import findings_of_changes
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.study_runs import StudyRuns


@experiment("changes", "E6: how reliance changes", 40, always=True)
def changes(study: StudyRuns) -> Contents | None:
    """E6: reliance by the influence of each snapshot, and tests of its changes; None if a fit has only one snapshot."""
    if any(len(study.main_run(seed).snapshots) < 2 for seed in study.seeds):
        return None
    k, tables = study.settings.top_k, [_table(study, seed) for seed in study.seeds]
    whole = pd.concat([table.assign(seed=seed) for seed, table in zip(study.seeds, tables, strict=True)], ignore_index=True)
    run = study.main_run(0)
    summed = reliance_table(study.main_scores(study.basic()[0]), run.train.language, run.probes.language, k)
    return Contents(
        f"The top {k} by the influence of each snapshot alone; Wilcoxon's signed-rank test, paired by probe, with p corrected "
        "over all tests of a seed (Benjamini and Hochberg). The sentences are about seed 0, unless they say otherwise.",
        (*findings_of_changes(tables[0], run, summed, k), *seeds_that_agree(whole)),
        {"changes": whole},
        {"changes": figures.changes(tables[0].assign(k=k, seeds=1))},
    )


def _table(study: StudyRuns, seed: int) -> pd.DataFrame:
    """The changes of one seed."""
    run, view = study.main_run(seed), study.view
    each = {
        snapshot.index: run.influence(view.similarity, view.weighting, [snapshot.index]).to_numpy() for snapshot in run.snapshots
    }
    return change_table(each, run.train.language, run.probes.language, study.settings.top_k)


def seeds_that_agree(table: pd.DataFrame) -> Iterator[str]:
    """For each language, in how many seeds the own-language share falls from the first snapshot to the last.

    Args:
        table: as `changes.change_table`, with the seed as a column.
    """
    seeds = table["seed"].nunique()
    if seeds < 2:
        return
    last = table.groupby("seed")["after"].transform("max")  # seeds may stop at different epochs
    whole = table[(table["before"] == table["before"].min()) & (table["after"] == last)]
    own = whole[whole["probe_language"] == whole["train_language"]]
    for language, lines in own.groupby("probe_language"):
        falls = int((lines["difference"] < 0).sum())
        certain = int(((lines["difference"] < 0) & (lines["p_adjusted"] < 0.05)).sum())
        yield f"{language}: the own-language share falls in {falls} of {seeds} seeds, in {certain} significantly."
