"""E8: fits with more train samples of one language."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from lightning_tracin.analysis.imbalance import imbalance_table
from lightning_tracin.analysis.tables import with_seeds
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.fits import Variant
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.reported import reported
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted
from lightning_tracin.studies.variant_languages import require_languages, require_trained_and_probed, varied_languages


def check_settings(settings: StudySettings) -> None:
    """Check that there are languages, and that every amount adds samples.

    Raises:
        TracInError: `imbalance` or `amounts` is empty, or an amount is below 1.
    """
    require_languages("imbalance", settings)
    if not settings.amounts or min(settings.amounts) < 1:
        raise TracInError(f"amounts should be percentages from 1 on, but is {settings.amounts}.")


def extra_samples(settings: StudySettings) -> int:
    """Number of additional train samples of each language that the largest amount needs."""
    return -(-max(settings.amounts) * settings.fit.train_per_language // 100)


def runs(study: StudyRuns) -> list[Wanted]:
    """One run for each seed, language and amount."""
    return [
        study.of_main(seed, Variant(more=language, per_cent=amount))
        for seed in range(study.settings.variant_seeds)
        for language in varied_languages(study.settings.imbalance, study.languages, study.probes.language)
        for amount in study.settings.amounts
    ]


@experiment(
    "imbalance",
    "E8: more data of one language",
    60,
    runs=runs,
    check_settings=check_settings,
    check_data=partial(require_trained_and_probed, "imbalance"),
    extra_samples=extra_samples,
    addable=("imbalance", "variant_seeds"),
)
def imbalance(study: StudyRuns) -> Contents:
    """E8: fits with more samples of a language, and how reliance on it grows."""
    tables = []
    for seed in range(study.settings.variant_seeds):
        balanced = study.reliance(study.scores(seed)[study.main])
        found = {
            (language, 0.0): balanced
            for language in varied_languages(study.settings.imbalance, study.languages, study.probes.language)
        }
        for wanted in runs(study):
            if wanted.seed == seed:
                table = study.reliance(study.main_scores(wanted), study.run(wanted).train)
                found[str(wanted.variant.more), float(wanted.variant.per_cent)] = table
        tables.append(imbalance_table(found))
    k = study.settings.top_k
    return Contents(
        f"The model is fitted with more samples of one language. `share` is the own-language share of its probes' top {k}; "
        f"{study.settings.variant_seeds} seed(s). Chance grows with the number of added samples; intervals (95 %) are for "
        "other train samples and probes. The findings are for seed 0.",
        (*_findings(tables[0]), *reported(study.settings.fit, "imbalance")),
        {"imbalance": with_seeds(tables)},
        {"imbalance": figures.imbalance(tables[0].assign(k=k, seeds=1), study.languages)},
    )


def _findings(table: pd.DataFrame) -> Iterator[str]:
    for language, lines in table.groupby("language"):
        one, other = lines.iloc[0], lines.iloc[-1]
        yield (
            f"{language}: with {other['added']:g} % more samples, its own-language share changes from {one['share']:.2f} "
            f"({one['low']:.2f} to {one['high']:.2f}, chance {one['chance']:.2f}) to {other['share']:.2f} ({other['low']:.2f} to "
            f"{other['high']:.2f}, chance {other['chance']:.2f}); its difference from chance, from {one['over_chance']:+.2f} to "
            f"{other['over_chance']:+.2f}."
        )
