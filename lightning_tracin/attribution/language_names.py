"""Names of languages as data hold them: what is missing, and whether train samples and probes use the same names."""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Collection, Iterable, Sized
from difflib import get_close_matches
from typing import Any

from langcodes import standardize_tag

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import alike, meaning, own_languages

#: Letters and symbols that look like a blank: fillers of Hangul, an empty Braille cell, and variation selectors.
_EMPTY_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\ufe0e\ufe0f")


def language_name(value: Any) -> str | None:
    """A language's name from a value of a column: normalised (NFC), without blanks and invisible characters around it.

    Args:
        value: a string, an enumeration's member, a number, or what stands for a missing value.

    Returns:
        The name; None if it is missing. The *string* `"nan"` is a name: Min Nan Chinese.

    Raises:
        TracInError: it is True or False, which is what YAML makes of `no` and `on`; bytes that are no UTF-8; or a collection.

    Example:
        >>> [language_name(value) for value in (" de", b"de", "nan", float("nan"), None, "", 7)]
        ['de', 'de', 'nan', None, None, None, '7']
    """
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str | bytes) else value.name
    value = value.as_py() if hasattr(value, "as_py") else value  # of pyarrow
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError as error:
            raise TracInError(f"A language is {bytes(value)!r}, which is no UTF-8; give languages as strings.") from error
    if isinstance(value, Sized | Iterable) and not isinstance(value, str):
        raise TracInError(f"A language is {value!r}, but should be a word; give one language for each sample.")
    if isinstance(value, bool):
        raise TracInError(
            f'A language is {value}: YAML reads `no`, `on` and `yes` as true or false; quote it, as in "no". (Groups that are '
            "true or false need names, too: map the column to strings.)"
        )
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:  # NaN of any kind
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
    """What is odd about the languages of train samples and probes, in sentences; None if nothing is.

    Names that mean one language (`languages.own_languages`) are no mismatch, but two of them in one split are.

    Example:
        >>> mismatch({"pidgin", "de"}, {"en", "fr"}).split(".")[0]
        "No probe language ('en', 'fr') is a train language ('de', 'pidgin'), so every one is zero-shot"
        >>> mismatch({"de", "en"}, {"de", "fr"}) is None
        True
    """
    if len(set(train)) == 1:
        (only,) = set(train)
        return f"All train samples are in {only!r}, so every share is 1 and tells nothing; train on several languages."
    twice = " ".join(filter(None, (_twice("train samples", train, probes), _twice("probes", probes, train))))
    unmatched = _unmatched(train, probes)
    return " ".join(filter(None, (twice, unmatched))) or None


def _twice(kind: str, names: Collection[str], beside: Collection[str]) -> str:
    groups = "; ".join(", ".join(map(repr, group)) for group in alike(names, beside))
    return groups and f"Some languages of the {kind} mean the same ({groups}) but count as different; write each in one way."


def _unmatched(train: Collection[str], probes: Collection[str]) -> str | None:
    near, own = _near(train, probes), own_languages(probes, train)
    if not own:
        hint = "" if not near else f" Are these the same: {near}?"
        return (
            f"No probe language ({_listed(probes)}) is a train language ({_listed(train)}), so every one is zero-shot.{hint} If "
            "names differ, make them the same in the data or with `languages=[...]`."
        )
    if near:
        return f"Some languages of probes and train samples may be the same: {near}? They count as different."
    return None


def _near(train: Collection[str], probes: Collection[str]) -> str:
    """Probe languages that are no train language, each with the train language that it may be."""
    own = own_languages(probes, train)
    known = {_plain(name): name for name in sorted(train, reverse=True)}
    primary = {key.split("-")[0]: name for key, name in known.items()}
    pairs = []
    for name in sorted(set(probes) - set(own)):
        key = _plain(name)
        other = known.get(key) or primary.get(key.split("-")[0])
        if other is None and not own:
            other = _close(name, train)
        if other is not None and other not in probes:
            pairs.append(f"{name!r} and {other!r}")
    return ", ".join(pairs)


def _close(name: str, train: Collection[str]) -> str | None:
    """The train language that is spelled nearly like a name; two names with known meanings are not compared by their letters."""
    key = name.casefold()
    letters = {one.casefold(): one for one in sorted(train) if meaning(name) is None or meaning(one) is None}
    begun = [one for one in letters if one.startswith(key) or key.startswith(one)]
    close = get_close_matches(key, list(letters), 1) or begun
    return letters[close[0]] if close else None


def _plain(name: str) -> str:
    """What near names share: the tag with a macrolanguage in place of its member (`cmn` is near `zh`), or letters alone."""
    known = meaning(name)
    if known is None:
        return name.casefold().replace("_", "-")
    language = standardize_tag(known.language, macro=True)
    return "-".join(part for part in (language, known.script, known.rest) if part).casefold()


def _listed(names: Collection[str]) -> str:
    some = sorted(set(names))
    return ", ".join(map(repr, some[:5])) + (", ..." if len(some) > 5 else "")
