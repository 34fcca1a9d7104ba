"""Names in many languages, from the Unicode CLDR through Babel: real, parallel data without a download.

The task is to classify what a name refers to (a territory, a language, a currency, a script or a unit), given the name in some
language. The CLDR code is the item: `currency:ISK` is "Icelandic Króna" in English, "исландская крона" in Russian.
Source: https://cldr.unicode.org, as packaged by https://babel.pocoo.org.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_tracin.analysis.tables import table_from
from lightning_tracin.errors import TracInError, needs
from lightning_tracin.studies.datasets.corpus import Corpus, Dropped, build_corpus

if TYPE_CHECKING:  # optional
    from babel import Locale


KINDS: Mapping[str, Callable[[Any], Mapping[str, str | None]]] = {
    "currency": lambda locale: locale.currencies,
    "language": lambda locale: locale.languages,
    "script": lambda locale: locale.scripts,
    "territory": lambda locale: locale.territories,
    "unit": lambda locale: {code: names.get("long") for code, names in locale.unit_display_names.items()},
}

# CLDR's codes for "unknown", "none", "several" and for tests, whose names refer to nothing.
NOT_THINGS = frozenset(
    f"{kind}:{code}"
    for kind, codes in {
        "currency": "XTS XXX",
        "language": "mis mul und zxx",
        "script": "Zinh Zmth Zsye Zsym Zxxx Zyyy Zzzz",
        "territory": "XA XB ZZ",
    }.items()
    for code in codes.split()
)


def load_cldr(languages: Sequence[str], *, kinds: Sequence[str] = tuple(KINDS)) -> Corpus:
    """Load the names that exist in all of the languages.

    The following are dropped, and counted by language: names that are just the code; names of two kinds in the same language
    ("Arabic" is a language and a script), because they have no single label; the second of two codes of one kind with the same
    name; and every item that is, or thereby becomes, missing in another language.

    Args:
        languages: CLDR locales such as ``en``, ``pt_BR`` or ``zh-Hant``.
        kinds: some of `KINDS`; they are the labels.

    Raises:
        TracInError: CLDR has no such language or kind, a kind has no name in a language, or babel is not installed.

    Example:
        >>> corpus = load_cldr(["en", "de"], kinds=["currency"])
        >>> [text for text, item in zip(corpus.dataset["text"], corpus.dataset["item"]) if item == "currency:CHF"]
        ['Swiss Franc', 'Schweizer Franken']
    """
    if not languages:
        raise TracInError("No language of CLDR is named: name at least one, such as 'en'.")
    for kind in kinds:
        if kind not in KINDS:
            raise TracInError(f"CLDR names of kind {kind!r} are not known: choose from {sorted(KINDS)}.")
    rows = pd.concat([_names(language, kinds) for language in languages], ignore_index=True)
    rows, dropped = _drop_unanswerable(rows)
    return build_corpus(rows, source="CLDR", parallel=True, label_names=kinds, dropped=dropped)


def _names(language: str, kinds: Sequence[str]) -> pd.DataFrame:
    """The names that CLDR defines for a language itself, without those inherited from the language-neutral root."""
    locale, root = _locale(language), _locale("root")
    rows = []
    for kind in kinds:
        inherited = KINDS[kind](root)
        found = [
            (name, kind, language, f"{kind}:{code}")
            for code, name in KINDS[kind](locale).items()
            if name and name != inherited.get(code) and f"{kind}:{code}" not in NOT_THINGS
        ]
        if not found:
            raise TracInError(f"CLDR has no {kind} name in language {language!r}: leave out the language, or the kind.")
        rows += found
    return table_from(rows, ["text", "label", "language", "item"])


def _locale(language: str) -> Locale:
    babel = needs("babel", "study", "Names from the Unicode CLDR")
    try:
        found: Locale = babel.Locale.parse(language.replace("-", "_"))
        return found
    except (babel.UnknownLocaleError, ValueError) as error:
        raise TracInError(f"CLDR has no language {language!r}: give a locale such as 'en', 'pt_BR' or 'zh_Hant'.") from error


def _drop_unanswerable(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Dropped]]:
    """Drop bare codes, names of two kinds, and second codes of one name."""
    name = rows["text"].str.casefold()
    code = rows["item"].str.split(":", n=1).str[1].str.casefold()
    kinds_of_name = rows.groupby([rows["language"], name])["label"].transform("nunique")
    reason = pd.Series("", index=rows.index)
    reason[rows.assign(text=name).duplicated(["language", "text"])] = "named like another code"
    reason[kinds_of_name > 1] = "naming things of two kinds"
    reason[name == code] = "that are just the code"
    counts = Counter(zip(rows["language"], reason, strict=True))
    return rows[reason == ""], [Dropped(language, why, n) for (language, why), n in counts.items() if why]
