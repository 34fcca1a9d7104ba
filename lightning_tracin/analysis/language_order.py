"""The order in which figures show languages: related ones side by side."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_tracin.storage.display_names import display_name
from lightning_tracin.storage.languages import meaning


def ordered(names: Iterable[str]) -> list[str]:
    """Languages by script, then by name. A name without a meaning is where Latin letters are.

    Example:
        >>> ordered(["uk", "de", "ar", "ru", "zz-top"])
        ['ar', 'ru', 'uk', 'de', 'zz-top']
    """

    def place(name: str) -> tuple[str, str]:
        known = meaning(name)
        return "Latn" if known is None else known.script, display_name(name).casefold()

    return sorted(dict.fromkeys(map(str, names)), key=place)
