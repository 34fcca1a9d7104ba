"""Names of things in many languages, from the Unicode CLDR through Babel: real, parallel, and nothing to download.

The task is to tell what a name names (a territory, a language, a currency, a script or a unit) from the name as written
in a language. The CLDR code is the item: `currency:ISK` is "Icelandic Króna" in English, "исландская крона" in Russian.
Source: https://cldr.unicode.org, as packaged by https://babel.pocoo.org.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_tracin.errors import TracInError, needs
from lightning_tracin.studies.datasets.corpus import Corpus, Dropped, build_corpus

if TYPE_CHECKING:  # optional
    from babel import Locale


def _long_unit_names(locale: Locale) -> Mapping[str, str | None]:
    return {code: names.get("long") for code, names in locale.unit_display_names.items()}


KINDS: Mapping[str, Callable[[Any], Mapping[str, str | None]]] = {
    "currency": lambda locale: locale.currencies,
    "language": lambda locale: locale.languages,
    "script": lambda locale: locale.scripts,
    "territory": lambda locale: locale.territories,
    "unit": _long_unit_names,
}

# Codes that CLDR keeps for "unknown", "none", "several" and for testing: their names name nothing.
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
    """Load the names that every one of the languages has.

    Dropped, and counted per language: a name that is just its code; a name that names things of two kinds in its
    language ("Arabic" is a language and a script), because the question has no answer; the second of two codes of one
    kind with the same name; and every item that is thereby, or from the start, missing in another language.

    Args:
        languages: CLDR locales such as ``en``, ``pt_BR`` or ``zh-Hant``.
        kinds: Which of `KINDS`; they are the labels.

    Raises:
        TracInError: CLDR has no such language or kind, a kind has no name in a language, or babel is not installed.
    """
    if not languages:
        raise TracInError("No language of CLDR is asked for: name at least one, such as 'en'.")
    _check_kinds(kinds)
    rows = pd.concat([_names(language, kinds) for language in languages], ignore_index=True)
    rows, dropped = _drop_unanswerable(rows)
    return build_corpus(rows, source="CLDR", parallel=True, label_names=kinds, dropped=dropped)


def _names(language: str, kinds: Sequence[str]) -> pd.DataFrame:
    """Return every name that CLDR has in a language itself, not inherited from the language-neutral root."""
    locale, root = _locale(language), _locale("root")
    columns = ["text", "label", "language", "item"]
    table: pd.DataFrame = pd.DataFrame(
        [
            (name, kind, language, f"{kind}:{code}")
            for kind in kinds
            for code, name in _own(KINDS[kind](locale), KINDS[kind](root)).items()
            if f"{kind}:{code}" not in NOT_THINGS
        ],
        columns=columns,
    )
    for kind in kinds:
        if not (table["label"] == kind).any():
            raise TracInError(f"CLDR has no {kind} name in language {language!r}: leave out the language, or the kind.")
    return table


def _own(names: Mapping[str, str | None], inherited: Mapping[str, str | None]) -> dict[str, str]:
    return {code: name for code, name in names.items() if name and name != inherited.get(code)}


def _locale(language: str) -> Locale:
    babel = needs("babel", "study", "Names from the Unicode CLDR")
    try:
        found: Locale = babel.Locale.parse(language.replace("-", "_"))
        return found
    except (babel.UnknownLocaleError, ValueError) as error:
        raise TracInError(f"CLDR has no language {language!r}: give a locale such as 'en', 'pt_BR' or 'zh_Hant'.") from error


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise TracInError(f"CLDR names of kind {unknown[0]!r} are not known: choose from {sorted(KINDS)}.")


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
