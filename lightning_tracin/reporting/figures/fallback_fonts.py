"""Installed fonts that have the letters which the figures' own font lacks, such as Noto Sans CJK; else, one warning for all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

#: Fonts with a box for every letter, and fonts of pictures, which matplotlib cannot draw.
_NO_LETTERS = ("LastResort", "Last Resort", "Emoji", "Symbols")


#: What matplotlib says of each letter that its font lacks.
LACKING = re.compile(r"Glyph (\d+) .*missing from")


def fallback_fonts(text: str, families: tuple[str, ...]) -> list[str]:
    """Names of installed fonts to add to some families, so that they have all letters of a text together, as far as possible.

    Fonts called Noto Sans come first, then other Noto fonts, then any.

    Example:
        >>> fallback_fonts("Korean", ("DejaVu Sans",))
        []
    """
    letters = {ord(letter) for letter in text if letter.isprintable() and not letter.isspace()}
    missing = {letter for letter in letters if letter > 127}
    for path in map(_path_of, families) if missing else ():
        missing -= _letters_of(path)
    found: list[str] = []
    while missing:
        sizes = [(len(missing & _letters_of(entry.fname)), entry) for entry in _candidates(fontManager.ttflist)]
        most, best = max(sizes, key=lambda one: one[0], default=(0, None))
        if best is None or not most:
            return found
        missing -= _letters_of(best.fname)
        found.append(best.name)
    return found


def _candidates(entries: Iterable[FontEntry]) -> list[FontEntry]:
    """Upright fonts of usual weight; `max` takes the first of the best."""
    plain = [one for one in entries if one.style == "normal" and str(one.weight) in ("400", "normal", "regular")]
    usable = [one for one in plain if not any(word in one.name for word in _NO_LETTERS)]
    return sorted(usable, key=lambda one: (not one.name.startswith("Noto Sans"), not one.name.startswith("Noto"), one.name))


@cache
def _path_of(family: str) -> str:
    return str(findfont(FontProperties(family=[family])))


@cache
def _letters_of(path: str) -> frozenset[int]:
    """The letters of a font; none if the file cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@contextmanager
def one_warning_for_letters() -> Iterator[None]:
    """Say once which letters the font lacks, instead of once for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lacking: dict[str, None] = {}
    for one in caught:
        found = LACKING.match(str(one.message))
        if found is None:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        elif chr(int(found[1])).isprintable():
            lacking[chr(int(found[1]))] = None
    if lacking:
        some = "".join(list(lacking)[:10])
        warnings.warn(
            f"The font of the figures has no glyph for {len(lacking)} letters ({some}) and shows boxes; choose one that has "
            "them, such as `matplotlib.rcParams['font.family'] = ['DejaVu Sans', 'Noto Sans CJK JP']`.",
            stacklevel=5,
        )
