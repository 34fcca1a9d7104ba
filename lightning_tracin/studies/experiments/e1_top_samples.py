"""E1: the strongest train samples of single probes, for inspection by a reader."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lightning_tracin.analysis.scores import Scores, ranked
from lightning_tracin.config import Sign
from lightning_tracin.reporting.results import analyse
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.study_runs import StudyRuns

#: Number of strongest train samples per probe.
_SHOWN = 3


@experiment("top", "E1: the strongest train samples", 10, always=True)
def top_samples(study: StudyRuns) -> Contents:
    """E1: the strongest train samples with their texts, and the fraction with the probe's label and language."""
    run, scores = study.main_run(0), study.scores(0)[study.main]
    proponents, opponents = _alike(study, scores, "proponents", "positive"), _alike(study, scores, "opponents", "negative")
    finding = (
        f"Of the top {_SHOWN} proponents of {proponents['probes']} probes, {proponents['same_label']:.2f} have the probe's label "
        f"(chance {proponents['same_label_chance']:.2f}), and {proponents['own_language']:.2f} are in its language (chance "
        f"{proponents['own_language_chance']:.2f}). Of the top {_SHOWN} opponents, {opponents['same_label']:.2f} have its label."
    )
    return Contents(
        f"Score: {study.main}, summed over {len(run.snapshots)} snapshots, seed 0. The top {_SHOWN} samples of every probe, "
        "with texts for some probes of each language.",
        (finding,),
        {"alike": pd.DataFrame([proponents, opponents]), "texts": analyse(run, study.view).top},
    )


def _alike(study: StudyRuns, scores: Scores, name: str, sign: Sign) -> dict[str, float | str | int]:
    """The fraction of top samples with the probe's label and with its language, and the same over all train samples."""
    top = ranked(scores, sign)[:_SHOWN]  # [ranks, probes]
    train, probes = study.train, study.probes
    own = own_languages(probes.language, train.language)
    found: dict[str, float | str | int] = {"of": name, "probes": len(probes)}
    for what, of_train, of_probes in (
        ("same_label", train.label, probes.label),
        ("own_language", train.language, [own.get(language) for language in probes.language]),
    ):
        same = np.asarray(of_train, dtype=object)[:, None] == np.asarray(of_probes, dtype=object)[None, :]
        found[what] = float(np.take_along_axis(same, top, axis=0).mean())
        found[f"{what}_chance"] = float(same.mean())
    return found
