"""E5: do the influential samples of other languages reinforce what the probe's own language holds, or complement it?"""

from __future__ import annotations

import pandas as pd

from lightning_tracin.analysis.reinforcement import reinforcement_table
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import findings_of_reinforcement
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.study_runs import StudyRuns


@experiment("reinforcement", "E5: reinforcing or complementary", 30, always=True)
def reinforcement(study: StudyRuns) -> Contents | None:
    """E5: the influential samples in other languages that are translations of influential samples in the probe's language.

    None where no train samples are translations of each other.
    """
    if all(item is None for item in study.train.item) or len(set(study.train.item)) == len(study.train):
        return None
    k = study.settings.top_k
    tables = [
        reinforcement_table(study.scores(seed)[study.main], study.train, study.probes.language, k).assign(seed=seed)
        for seed in study.seeds
    ]
    first = tables[0].drop(columns="seed")
    return Contents(
        f"Of the samples in other languages in a probe's top {k}: the part whose item is also there in the probe's own language; "
        "chance is what random ranks give, the interval a bootstrap over probes (95 %). The sentences are about seed 0.",
        tuple(findings_of_reinforcement(first, k)),
        {"reinforcement": pd.concat(tables, ignore_index=True)},
        {"reinforcement": figures.reinforcement(first.assign(k=k, seeds=1), study.languages)},
    )
