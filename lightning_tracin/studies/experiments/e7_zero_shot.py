"""E7: fits without the train samples of a language, which thereby becomes zero-shot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import pandas as pd

from lightning_tracin.analysis.tables import stacked
from lightning_tracin.analysis.zero_shot import zero_shot_table
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.fits import Variant
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.reported import reported
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted
from lightning_tracin.studies.variant_languages import require_languages, require_trained_and_probed, varied_languages


def check_data(settings: StudySettings, split: Split) -> None:
    """Check that the languages can be left out, and that `top_k` train samples are left without each.

    Raises:
        TracInError: a language is not both trained on and probed, or fewer than `top_k` train samples are left without it.
    """
    require_trained_and_probed("zero_shot", settings, split)
    counts, probed = (Counter(part.with_format(None)["language"]) for part in (split.train, split.probes))
    chosen = varied_languages(settings.zero_shot, counts, probed) if settings.zero_shot else list(counts)
    language = max(chosen, key=lambda name: counts[name])
    left = sum(counts.values()) - counts[language]
    if settings.top_k > left:
        raise TracInError(
            f"top_k={settings.top_k} is more than the train samples without {language!r} ({left}); choose a smaller top_k, or "
            "train on more."
        )


def runs(study: StudyRuns) -> list[Wanted]:
    """One run for each seed and language."""
    languages = varied_languages(study.settings.zero_shot, study.languages, study.probes.language)
    seeds = range(study.settings.variant_seeds)
    return [study.of_main(seed, Variant(without=language)) for seed in seeds for language in languages]


@experiment(
    "zero_shot",
    "E7: zero-shot",
    50,
    runs=runs,
    check_settings=partial(require_languages, "zero_shot"),
    check_data=check_data,
    addable=("zero_shot", "variant_seeds"),
)
def zero_shot(study: StudyRuns) -> Contents:
    """E7: fits without a language, and the samples that its probes then rely on."""
    k = study.settings.top_k
    tables = {}
    for wanted in runs(study):
        language = str(wanted.variant.without)
        before = (study.scores(wanted.seed)[study.main], study.train)
        after = (study.main_scores(wanted), study.run(wanted).train)
        tables[language, wanted.seed] = zero_shot_table(language, before, after, study.probes.language, k)
    whole = stacked(tables, "language", "seed")
    first = whole[whole["seed"] == 0].drop(columns="seed")
    return Contents(
        f"The model is fitted without a language; the top {k} of the language's probes are compared with those of the fit with "
        f"it; {study.settings.variant_seeds} seed(s). `translations` is the fraction of the new top that are translations of the "
        "language's samples in the old top. `stayed` is the fraction of the other languages' samples in the old top that are in "
        "the new top. Chance is the value for random ranks without the language; intervals are bootstraps over probes (95 %). A "
        "fit without the language takes fewer steps. The findings are for seed 0.",
        (*_findings(first), *reported(study.settings.fit, "zero_shot")),
        {"zero_shot": whole},
        {"zero_shot": figures.zero_shot(first.assign(k=k, seeds=1), study.languages)},
    )


def _findings(table: pd.DataFrame) -> Iterator[str]:
    for language, lines in table.groupby("language"):
        one, other = (lines[lines["measure"] == name].iloc[0] for name in ("translations", "stayed"))
        stayed = (
            f"of the samples in other languages, {other['share']:.2f} stayed in the top ({other['low']:.2f} to "
            f"{other['high']:.2f}, chance {other['chance']:.2f})"
            if other["probes"]
            else "with them, no sample in another language was in the top"
        )
        if not one["chance"] > 0:  # languages share no items, so there are no translations
            yield f"{language}: without its samples, {stayed}; {one['probes']} probes. The data have no translations."
            continue
        yield (
            f"{language}: without its samples, {one['share']:.2f} of the top are translations of those that its probes relied on "
            f"(95 % interval {one['low']:.2f} to {one['high']:.2f}, chance {one['chance']:.2f}); {stayed}; {one['probes']} probes"
            "."
        )
