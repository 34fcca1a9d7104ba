"""E5: do influential samples in other languages reinforce those in the probe's own language, or complement them?"""

from __future__ import annotations

from lightning_tracin.analysis.reinforcement import reinforcement_table
from lightning_tracin.analysis.tables import with_seeds
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import findings_of_reinforcement
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.reported import reported
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.study_runs import StudyRuns


@experiment("reinforcement", "E5: reinforcing or complementary", 30, always=True)
def reinforcement(study: StudyRuns) -> Contents | None:
    """E5: influential samples in other languages that are translations of influential samples in the probe's language.

    Returns None if no train samples are translations of each other.
    """
    if all(item is None for item in study.train.item) or len(set(study.train.item)) == len(study.train):
        return None
    k = study.settings.top_k
    tables = [
        reinforcement_table(study.scores(seed)[study.main], study.train, study.probes.language, k) for seed in study.attributed
    ]
    return Contents(
        f"The fraction of the samples in other languages in a probe's top {k} whose translation into the probe's own language is "
        "there, too. Chance is the value if the own-language samples there were others with the same labels; intervals are "
        "bootstraps over probes (95 %). The findings are for seed 0.",
        (*findings_of_reinforcement(tables[0], k), *reported(study.settings.fit, "reinforcement")),
        {"reinforcement": with_seeds(tables)},
        {"reinforcement": figures.reinforcement(tables[0].assign(k=k, seeds=1), study.languages)},
    )
