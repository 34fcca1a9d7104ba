"""E6: how reliance changes from one snapshot to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lightning_tracin.analysis.changes import SIGNIFICANT, change_table
from lightning_tracin.analysis.tables import own_language, with_seeds
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import findings_of_changes, influence_by_snapshot
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.reported import reported
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.study_runs import StudyRuns


@experiment("changes", "E6: how reliance changes", 40, always=True)
def changes(study: StudyRuns) -> Contents | None:
    """E6: reliance by the influence of each snapshot, and tests of its changes; None if a fit has only one snapshot."""
    runs = [study.main_run(seed) for seed in study.attributed]
    if any(len(run.snapshots) < 2 for run in runs):
        return None
    k, view = study.settings.top_k, study.view
    languages = TrainLanguages.of_table(study.train)
    tables = [change_table(influence_by_snapshot(run, view), languages, run.probes.language, k) for run in runs]
    whole = with_seeds(tables)
    return Contents(
        f"The top {k} by the influence of each single snapshot. Tests are Wilcoxon's signed-rank test of the change beyond "
        "chance (languages shuffled among the train samples of a label, or of an item), paired by probe, with p corrected over "
        "all tests of a seed (Benjamini and Hochberg). The findings are for seed 0, unless stated otherwise.",
        (*findings_of_changes(tables[0], runs[0], k), *seeds_that_agree(whole), *reported(study.settings.fit, "changes")),
        {"changes": whole},
        {"changes": figures.changes(tables[0].assign(k=k, seeds=1))},
    )


def seeds_that_agree(table: pd.DataFrame) -> Iterator[str]:
    """State for each language in how many seeds the own-language share falls from the first snapshot to the last.

    Args:
        table: as from `changes.change_table`, with a column `seed`.
    """
    seeds = table["seed"].nunique()
    if seeds < 2:
        return
    last = table.groupby("seed")["after"].transform("max")  # seeds may stop at different epochs
    whole = table[(table["before"] == table["before"].min()) & (table["after"] == last)]
    for language, lines in own_language(whole).groupby("probe_language"):
        falls = lines["beyond_null"] < 0
        certain = falls & (lines["p_adjusted"] < SIGNIFICANT)
        yield (
            f"{language}: the own-language share falls, beyond chance, in {falls.sum()} of {seeds} seeds, significantly in "
            f"{certain.sum()}."
        )
