"""Names of languages as data hold them: what is missing, and whether train samples and probes use the same names."""

from __future__ import annotations

import enum
import math
import unicodedata
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from lightning_tracin.errors import TracInError

#: Letters and symbols that look like a blank: fillers of Hangul, an empty Braille cell, and variation selectors.
_EMPTY_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\ufe0e\ufe0f")


def language_name(value: Any) -> str | None:
    """A language's name from a value of a column: normalised (NFC), without blanks and invisible characters around it.

    Args:
        value: a string, an enumeration's member, a number, or what stands for a missing value.

    Returns:
        The name; None if it is missing. The *string* `"nan"` is a name: Min Nan Chinese.

    Raises:
        TracInError: it is True or False, which is what YAML makes of `no` and `on`.

    Example:
        >>> [language_name(value) for value in (" de", "nan", float("nan"), None, "", 7)]
        ['de', 'nan', None, None, None, '7']
    """
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str) else value.name
    value = value.as_py() if hasattr(value, "as_py") else value  # of pyarrow
    if isinstance(value, bool):
        raise TracInError(f'A language is {value}: YAML reads `no`, `on` and `yes` as true or false; quote it, as in "no".')
    if value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return trimmed(unicodedata.normalize("NFC", str(value))) or None


def trimmed(text: str) -> str:
    r"""A text without blanks and invisible characters around it; empty if nothing in it can be seen.

    Example:
        >>> trimmed("\ufeff a b\u200b\n"), trimmed("\u00a0\u200b")
        ('a b', '')
    """
    first = next((index for index, letter in enumerate(text) if _is_visible(letter)), len(text))
    last = next((index for index in range(len(text), first, -1) if _is_visible(text[index - 1])), first)
    return text[first:last]


def _is_visible(letter: str) -> bool:
    return not letter.isspace() and letter not in _EMPTY_LETTERS and unicodedata.category(letter) not in ("Cf", "Cc")


def mismatch(train: Collection[str], probes: Collection[str]) -> str | None:
    """What is odd about the languages of train samples and probes, in a sentence; None if nothing is.

    Example:
        >>> mismatch({"english", "de"}, {"en", "fr"}).split(".")[0]
        "No probe language ('en', 'fr') is a train language ('de', 'english'), so every one is zero-shot"
        >>> mismatch({"de", "en"}, {"de", "fr"}) is None
        True
    """
    if len(set(train)) == 1:
        (only,) = set(train)
        return f"All train samples are in {only!r}, so every share is 1 and tells nothing; train on several languages."
    near = _near(train, probes)
    if not set(train) & set(probes):
        hint = "" if not near else f" Are these the same: {near}?"
        return (
            f"No probe language ({_listed(probes)}) is a train language ({_listed(train)}), so every one is zero-shot.{hint} If "
            "names differ, make them the same in the data or with `languages=[...]`."
        )
    if near:
        return f"Some languages of probes and train samples differ only in how they are written: {near}? They count as different."
    return None


def _near(train: Collection[str], probes: Collection[str]) -> str:
    """Probe languages that are no train language, each with the train language that it may be."""
    known = {_plain(name): name for name in sorted(train, reverse=True)}
    primary = {key.split("-")[0]: name for key, name in known.items()}
    pairs = []
    for name in sorted(set(probes) - set(train)):
        key = _plain(name)
        alike = known.get(key) or primary.get(key.split("-")[0])
        if alike is None and not set(train) & set(probes):
            begun = [other for other in known if other.startswith(key) or key.startswith(other)]
            close = get_close_matches(key, list(known), 1) or begun
            alike = known[close[0]] if close else None
        if alike is not None and alike not in probes:
            pairs.append(f"{name!r} and {alike!r}")
    return ", ".join(pairs)


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-")


def _listed(names: Collection[str]) -> str:
    some = sorted(set(names))
    return ", ".join(map(repr, some[:5])) + (", ..." if len(some) > 5 else "")
