"""Names of languages as people write them: for figures and pages. Keys of tables and loggers stay as the data has them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from langcodes import Language, tag_is_valid
from langcodes.tag_parser import LanguageTagError

#: What ISO 639-3 adds to the name of a language that is one of several of its macrolanguage.
_ONE_OF_SEVERAL = re.compile(r" \((?:individual language|macrolanguage)\)")

#: Codes that name no language.
_NO_LANGUAGE = ("und", "mul", "mis", "zxx")

#: Scripts that people name although the language is usually written in them.
_ALWAYS_SAID = ("Hans", "Hant")


@lru_cache(maxsize=4096)
def display_name(name: str) -> str:
    """The English name of the language that a code stands for; any other name as it is.

    A code is a valid BCP-47 tag, also with `_` and in any case. Its script is named if the language is usually written in another
    one, its region always.

    Example:
        >>> display_name("ko"), display_name("zho_Hans"), display_name("pt-BR"), display_name("swh_Latn")
        ('Korean', 'Chinese (Simplified)', 'Portuguese (Brazil)', 'Swahili')
        >>> display_name("ace_Arab"), display_name("klingon-x"), display_name("und")
        ('Acehnese (Arabic)', 'klingon-x', 'und')
    """
    try:
        tag = Language.get(name) if tag_is_valid(name) else None
    except (LanguageTagError, ValueError):
        return name
    if tag is None or not tag.language or tag.language in _NO_LANGUAGE:
        return name
    usual = Language.make(language=tag.language).maximize().script
    if tag.script == usual and tag.script not in _ALWAYS_SAID:
        tag = tag.update_dict({"script": None})
    said = tag.display_name("en")
    return name if said.startswith("Unknown language") else _ONE_OF_SEVERAL.sub("", said)


def display_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> its display name, unlike all the others: where several mean one language, codes are in brackets.

    Example:
        >>> display_names(["de", "tl", "fil", "tagalog"])
        {'de': 'German', 'tl': 'Filipino (tl)', 'fil': 'Filipino (fil)', 'tagalog': 'tagalog'}
    """
    found = {name: display_name(name) for name in map(str, names)}
    said = Counter(found.values())
    return {name: shown if said[shown] == 1 or shown == name else f"{shown} ({name})" for name, shown in found.items()}
