"""Text of data sets, made fit for a terminal."""

from __future__ import annotations

import re

#: Control characters but tabulator and end of line: a terminal obeys them (colours, titles, cursor, bell) and does not show them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters."""
    return _CONTROL.sub("", text)
