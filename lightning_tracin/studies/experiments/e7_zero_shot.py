"""E7 and E8: runs without a language, and with more of it."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lightning_tracin.analysis.imbalance import imbalance_table
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.analysis.zero_shot import zero_shot_table
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.fits import Variant
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.study_runs import Ground, Wanted

REPORTED_ZERO_SHOT = "that hardly the same samples are relied on when a language is zero-shot"
REPORTED_IMBALANCE = "still largely cross-lingual reliance, with more on the own language where it is over-represented"


def left_out_languages(ground: Ground) -> list[str]:
    """Which languages E7 leaves out.

    Raises:
        TracInError: one is not among the train languages.
    """
    return _checked(ground.settings.zero_shot, ground, "zero_shot")


def added_languages(ground: Ground) -> list[str]:
    """Of which languages E8 adds samples.

    Raises:
        TracInError: one is not among the train languages.
    """
    return _checked(ground.settings.imbalance, ground, "imbalance")


def _checked(asked: list[str] | None, ground: Ground, name: str) -> list[str]:
    unknown = [language for language in asked or () if language not in ground.languages]
    if unknown:
        raise TracInError(f"{name} has {unknown[0]!r}, but the train languages are {', '.join(ground.languages)}.")
    return [language for language in ground.languages if language in ground.probes.language] if asked is None else list(asked)


def zero_shot_runs(ground: Ground) -> list[Wanted]:
    """The runs of E7."""
    seeds = range(ground.settings.variant_seeds)
    return [ground.of_main(seed, Variant(without=language)) for seed in seeds for language in left_out_languages(ground)]


def imbalance_runs(ground: Ground) -> list[Wanted]:
    """The runs of E8."""
    return [
        ground.of_main(seed, Variant(more=language, per_cent=amount))
        for seed in range(ground.settings.variant_seeds)
        for language in added_languages(ground)
        for amount in ground.settings.amounts
    ]


def zero_shot(ground: Ground) -> Section:
    """E7: what takes a language's place when it is left out of training."""
    k = ground.settings.top_k
    tables = []
    for wanted in zero_shot_runs(ground):
        language = str(wanted.variant.without)
        before = (ground.scores(wanted.seed)[ground.main], ground.train)
        after = (ground.main_scores(wanted), ground.run(wanted).train)
        table = zero_shot_table(language, before, after, ground.probes.language, k)
        tables.append(table.assign(language=language, seed=wanted.seed))
    whole = pd.concat(tables, ignore_index=True)
    whole = whole[["language", "seed", *[name for name in whole if name not in ("language", "seed")]]]
    first = whole[whole["seed"] == 0].drop(columns="seed")
    return Section(
        "zero_shot",
        "E7: zero-shot",
        f"Fitted without a language; its probes' top {k} before and after, {ground.settings.variant_seeds} seed(s). "
        "`translations`: the part of the top after that are translations of the language's samples in the top before; "
        "`stayed`: the part of the samples in other languages in the top before that are still there. Chance is what random "
        "ranks give without the language, the interval a bootstrap over probes (95 %). The fit without it makes fewer steps. "
        "Sentences are of seed 0.",
        tuple(_of_zero_shot(first)),
        {"zero_shot": whole},
        {"zero_shot": figures.zero_shot(first.assign(k=k, seeds=1), ground.languages)},
    )


def _of_zero_shot(table: pd.DataFrame) -> Iterator[str]:
    for language, lines in table.groupby("language"):
        one, other = (lines[lines["measure"] == name].iloc[0] for name in ("translations", "stayed"))
        stayed = (
            f"of the samples in other languages {other['share']:.2f} stayed ({other['low']:.2f} to {other['high']:.2f}, chance "
            f"{other['chance']:.2f})"
            if other["probes"]
            else "before, no sample in another language was there"
        )
        if not one["chance"] > 0:  # no item is shared between languages, so that nothing could be a translation
            yield f"{language}: without its samples, {stayed}; {one['probes']} probes. The data have no translations."
            continue
        yield (
            f"{language}: without its samples, {one['share']:.2f} of the top are translations of those it relied on (95 % "
            f"interval {one['low']:.2f} to {one['high']:.2f}, chance {one['chance']:.2f}); {stayed}; {one['probes']} probes."
        )
    yield f"Beside this, the authors of the study report {REPORTED_ZERO_SHOT}."


def imbalance(ground: Ground) -> Section:
    """E8: how reliance on a language answers to more of its data."""
    k = ground.settings.top_k
    tables = []
    for seed in range(ground.settings.variant_seeds):
        equal = reliance_table(ground.scores(seed)[ground.main], ground.train.language, ground.probes.language, k)
        found = {(language, 0.0): equal for language in added_languages(ground)}
        for wanted in imbalance_runs(ground):
            if wanted.seed == seed:
                table = reliance_table(ground.main_scores(wanted), ground.run(wanted).train.language, ground.probes.language, k)
                found[str(wanted.variant.more), float(wanted.variant.per_cent)] = table
        tables.append(imbalance_table(found).assign(seed=seed))
    whole = pd.concat(tables, ignore_index=True)
    first = tables[0].drop(columns="seed")
    return Section(
        "imbalance",
        "E8: more of one language",
        f"Fitted with more samples of one language; the own-language share of its probes' top {k}, "
        f"{ground.settings.variant_seeds} seed(s). Chance grows with what is added; intervals are bootstraps over probes (95 %). "
        "Sentences are of seed 0.",
        tuple(_of_imbalance(first)),
        {"imbalance": whole},
        {"imbalance": figures.imbalance(first.assign(k=k, seeds=1), ground.languages)},
    )


def _of_imbalance(table: pd.DataFrame) -> Iterator[str]:
    for language, lines in table.groupby("language"):
        one, other = lines.iloc[0], lines.iloc[-1]
        yield (
            f"{language}: with {other['added']:g} % more of it, the own-language share goes from {one['share']:.2f} "
            f"({one['low']:.2f} to {one['high']:.2f}, chance {one['chance']:.2f}) to {other['share']:.2f} ({other['low']:.2f} to "
            f"{other['high']:.2f}, chance {other['chance']:.2f}); over chance, from {one['over_chance']:+.2f} to "
            f"{other['over_chance']:+.2f}."
        )
    yield f"Beside this, the authors of the study report {REPORTED_IMBALANCE}."
