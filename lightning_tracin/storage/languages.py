"""Which names mean one language: the only place that decides whether a train language is a probe's own."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from langcodes import Language, tag_is_valid
from langcodes.tag_parser import LanguageTagError
from language_data.names import code_to_names, name_to_code  # type: ignore[import-untyped]


class Meaning(NamedTuple):
    """What a name says: the language, its script (the usual one, if the name has none), and everything else in the tag."""

    language: str
    script: str
    rest: str


@lru_cache(maxsize=4096)
def meaning(name: str) -> Meaning | None:
    """What a valid BCP-47 tag, or a language's exact name in English or in itself, means; None for any other name.

    Tags may be written with `_` and in any case; deprecated and three-letter codes mean what replaced them.

    Example:
        >>> meaning("english") == meaning("eng_Latn") == meaning("EN")
        True
        >>> meaning("iw") == meaning("he"), meaning("en") == meaning("en-US"), meaning("klingon-x")
        (True, False, None)
    """
    tag = _tag_of(name)
    if tag is None:
        return None
    parsed = Language.get(tag)
    if not parsed.language or parsed.language in ("und", "mul", "mis", "zxx"):  # no language, so only equal to itself
        return None
    script = parsed.script or parsed.maximize().script or ""
    rest = parsed.update_dict({"language": None, "script": None}).to_tag()
    return Meaning(parsed.language, script, rest)


def own_languages(probes: Collection[str], train: Collection[str]) -> dict[str, str]:
    """The train language that is each probe language's own: the same name, or the only one that means the same.

    A script that a tag leaves out is the language's usual one, unless names of the language in other scripts are there too: then
    `zh` and `zh-Hans` are different. Regions and variants make languages different. A name without a known meaning equals only
    itself.

    Returns:
        Probe language -> train language, without the probe languages that have none (zero-shot).

    Example:
        >>> own_languages(["english", "de", "sw"], ["en", "de"])
        {'english': 'en', 'de': 'de'}
        >>> own_languages(["zh-Hans"], ["zh", "zh-Hant"]), own_languages(["A"], ["a"])
        ({}, {})
    """
    names = set(train)
    several = _in_several_scripts(names | set(probes))
    found: dict[str, str] = {}
    for probe in dict.fromkeys(probes):
        same = [probe] if probe in names else [other for other in names if _same(probe, other, several)]
        if len(same) == 1:
            found[probe] = same[0]
    return found


def alike(names: Collection[str], beside: Collection[str] = ()) -> list[tuple[str, ...]]:
    """Groups of names of one list that mean one language; `beside` are the names of the other split, which may show scripts.

    Example:
        >>> alike(["en", "de", "english", "zh", "zh-Hant"])
        [('en', 'english')]
    """
    several = _in_several_scripts({*names, *beside})
    groups: dict[Meaning | str, set[str]] = {}
    for name in sorted(set(names)):
        known = meaning(name)
        groups.setdefault(name if known is None or known.language in several else known, set()).add(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def _same(one: str, other: str, several: set[str]) -> bool:
    known, wanted = meaning(one), meaning(other)
    if known is None or known != wanted:
        return False
    return known.language not in several or _has_script(one) == _has_script(other)


def _in_several_scripts(names: Collection[str]) -> set[str]:
    """The languages that the names have in more than one script."""
    scripts: dict[str, set[str]] = {}
    for known in filter(None, map(meaning, names)):
        scripts.setdefault(known.language, set()).add(known.script)
    return {language for language, found in scripts.items() if len(found) > 1}


def _has_script(name: str) -> bool:
    return Language.get(_tag_of(name) or "und").script is not None


def _is_tag(name: str) -> bool:
    try:
        return tag_is_valid(name)
    except (LanguageTagError, ValueError):
        return False


def _tag_of(name: str) -> str | None:
    """The name itself if it is a tag, else the tag of a language's exact name.

    The library's own search also guesses from parts of a name ("klingon-x"), so what it finds is compared with the name.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if _is_tag(name):
        return name
    if len(name) > 100 or not name.isprintable() or not any(letter.isalpha() for letter in name):
        return None
    for trie in ("en", "und"):
        code = name_to_code("language", name, trie)
        if code is None:
            continue
        names = code_to_names(code)
        own = names.get(code) or names.get(Language.get(code).language or "")
        if name.casefold() in {known.casefold() for known in (names.get("en"), own) if known}:
            return str(code)
    return None
