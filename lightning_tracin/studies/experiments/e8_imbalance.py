"""E8: fits with more train samples of one language."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lightning_tracin.analysis.imbalance import imbalance_table
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.fits import Variant
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted
from lightning_tracin.studies.variant_languages import require_languages, require_trained_and_probed, varied_languages

_REPORTED = "still largely cross-lingual reliance, with more on the own language where it is over-represented"


def check_settings(settings: StudySettings) -> None:
    """Refuse an empty list of languages, and amounts that add nothing.

    Raises:
        TracInError: `imbalance` or `amounts` is empty, or an amount is below 1.
    """
    require_languages("imbalance", settings.imbalance)
    if not settings.amounts or min(settings.amounts) < 1:
        raise TracInError(f"amounts should be percentages from 1 on, but is {settings.amounts}.")


def check_data(settings: StudySettings, split: Split) -> None:
    """Refuse languages to which samples cannot be added.

    Raises:
        TracInError: a language is not both trained on and probed.
    """
    require_trained_and_probed("imbalance", settings.imbalance, split)


def extra_samples(settings: StudySettings) -> int:
    """Further train samples of each language that the largest amount needs."""
    return -(-max(settings.amounts) * settings.fit.train_per_language // 100)


def runs(study: StudyRuns) -> list[Wanted]:
    """One run for each seed, language and amount."""
    return [
        study.of_main(seed, Variant(more=language, per_cent=amount))
        for seed in range(study.settings.variant_seeds)
        for language in varied_languages(study.settings.imbalance, study)
        for amount in study.settings.amounts
    ]


@experiment(
    "imbalance",
    "E8: more of one language",
    60,
    runs=runs,
    check_settings=check_settings,
    check_data=check_data,
    extra_samples=extra_samples,
    addable=("imbalance", "variant_seeds"),
)
def imbalance(study: StudyRuns) -> Contents:
    """E8: fits with more samples of a language, and how reliance on it grows."""
    tables = []
    for seed in range(study.settings.variant_seeds):
        equal = _table(study, study.scores(seed)[study.main], study.train)
        found = {(language, 0.0): equal for language in varied_languages(study.settings.imbalance, study)}
        for wanted in runs(study):
            if wanted.seed == seed:
                variant = wanted.variant
                table = _table(study, study.main_scores(wanted), study.run(wanted).train)
                found[str(variant.more), float(variant.per_cent)] = table
        tables.append(imbalance_table(found).assign(seed=seed))
    k, first = study.settings.top_k, tables[0].drop(columns="seed")
    return Contents(
        f"Fitted with more samples of one language; the own-language share of its probes' top {k}, "
        f"{study.settings.variant_seeds} seed(s). Chance grows with the number of added samples; intervals are bootstraps over "
        "probes (95 %). The sentences are about seed 0.",
        tuple(_said(first)),
        {"imbalance": pd.concat(tables, ignore_index=True)},
        {"imbalance": figures.imbalance(first.assign(k=k, seeds=1), study.languages)},
    )


def _table(study: StudyRuns, scores: Scores, train: SampleTable) -> pd.DataFrame:
    return reliance_table(scores, train.language, study.probes.language, study.settings.top_k)


def _said(table: pd.DataFrame) -> Iterator[str]:
    for language, lines in table.groupby("language"):
        one, other = lines.iloc[0], lines.iloc[-1]
        yield (
            f"{language}: with {other['added']:g} % more samples, its own-language share goes from {one['share']:.2f} "
            f"({one['low']:.2f} to {one['high']:.2f}, chance {one['chance']:.2f}) to {other['share']:.2f} ({other['low']:.2f} to "
            f"{other['high']:.2f}, chance {other['chance']:.2f}); over chance, from {one['over_chance']:+.2f} to "
            f"{other['over_chance']:+.2f}."
        )
    yield f"For comparison, the authors of the original study report {_REPORTED}."
