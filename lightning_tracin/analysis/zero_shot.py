"""E7: what takes a language's place when it is left out of training?

It compares the same probes of a language in two fits, one with the language's train samples and one without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lightning_tracin.analysis.resampling import Interval, bootstrap_mean
from lightning_tracin.analysis.scores import Scores, ranked
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.storage.sample_table import SampleTable

COLUMNS = ("measure", "share", "chance", "low", "high", "probes")


def zero_shot_table(
    language: str,
    with_it: tuple[Scores, SampleTable],
    without: tuple[Scores, SampleTable],
    probe_languages: Sequence[str],
    k: int,
    sign: Sign = "positive",
    interval: Interval | None = None,
) -> pd.DataFrame:
    """Where the top k of a language's probes come from in a fit without its samples.

    Args:
        language: the language that is left out.
        with_it: influence [train, probes] and train samples of the fit with the language.
        without: the same of the fit without it, for the same probes in the same order.
        probe_languages: language of each probe; probes in other languages are ignored.
        k: number of strongest train samples to count.
        sign: proponents or opponents.
        interval: settings of the bootstrap over probes.

    Returns:
        Columns `COLUMNS`, two rows. `translations` is the fraction of the top k without the language that are translations of its
        samples in the top k with it; `stayed` is the fraction of the other-language samples in the top k with it that are also in
        the top k without it. `chance` is the value for random ranks in the fit without the language.

    Raises:
        TracInError: the two fits do not belong together, or k is out of range.

    Example:
        >>> train = SampleTable(("de", "en", "en"), ("1", "1", "2"), ("Hund", "dog", "cat"), (None, None, None))
        >>> influence, without = np.array([[3.0], [1.0], [2.0]]), np.array([[2.0], [1.0]])
        >>> table = zero_shot_table("de", (influence, train), (without, train.take([1, 2])), ["de"], k=1)
        >>> table[["measure", "share", "chance"]].values.tolist()[0]  # "dog" takes the place of "Hund"
        ['translations', 1.0, 0.5]
    """
    (before, train), (after, remaining) = with_it, without
    if before.shape[1] != after.shape[1] or before.shape[1] != len(probe_languages):
        raise TracInError(
            f"The fits have {before.shape[1]} and {after.shape[1]} probes, and {len(probe_languages)} languages are given, but "
            "these numbers should be equal."
        )
    kept = own_languages([language], remaining.language).get(language)
    if kept is not None:
        raise TracInError(f"The fit without {language!r} has {remaining.language.count(kept)} train samples of it.")
    trained = own_languages([language], train.language).get(language)
    if trained is None:
        raise TracInError(f"The fit with {language!r} has no train sample of it (languages: {', '.join(train.counts())}).")
    if not 1 <= k <= min(len(before), len(after)):
        raise TracInError(f"k should be between 1 and the smaller train set ({min(len(before), len(after))}), but is {k}.")
    known, left = ([_key(table, index) for index in range(len(table))] for table in (train, remaining))
    items = np.asarray([name or "" for name in remaining.item])
    tops = ranked(before, sign)[:k].T, ranked(after, sign)[:k].T
    translations, stayed, expected = [], [], []
    asked = own_languages(probe_languages, [language])
    for probe, own in enumerate(probe_languages):
        if own not in asked:
            continue
        was, now = tops[0][probe], tops[1][probe]
        lost = {train.item[i] for i in was if train.language[i] == trained} - {None}
        others = {known[i] for i in was if train.language[i] != trained}
        are = np.isin(items, [str(name) for name in lost])
        translations.append(are[now].mean())
        stayed.append(len(others & {left[i] for i in now}) / len(others) if others else np.nan)
        expected.append(are.mean())
    if not translations:
        raise TracInError(f"There are no probes in {language!r}.")
    rows = []
    for name, found, chance in (("translations", translations, float(np.mean(expected))), ("stayed", stayed, k / len(after))):
        values = np.asarray(found)[np.isfinite(found)]
        low, high = bootstrap_mean(values[:, None], interval or Interval())
        rows.append((name, values.mean() if len(values) else np.nan, chance, low[0], high[0], len(values)))
    return table_from(rows, COLUMNS)


def _key(table: SampleTable, index: int) -> tuple[str, str, str | None]:
    """Identifies a sample in both fits."""
    name = table.item[index]
    return (table.language[index], table.text[index] if name is None else f"item {name}", table.label[index])
