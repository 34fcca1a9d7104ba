"""The errors that users can act on, and text of data sets made safe for a terminal."""

from __future__ import annotations

import importlib
import unicodedata
from types import ModuleType


class TracInError(RuntimeError):
    """Something the user can act on: the message names the thing, its value and the remedy, without control characters."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingPackageError(TracInError):
    """An optional package is not installed; the message names it and the extra that installs it."""


def needs(package: str, extra: str, what: str) -> ModuleType:
    """Import an optional package where it is used.

    Args:
        package: name of the module, such as `jinja2` or `torchmetrics.classification`.
        extra: the extra of lightning-tracin that installs it.
        what: the things that need it, in the plural, as a sentence begins with them.

    Returns:
        The module.

    Raises:
        MissingPackageError: the package is not installed.
    """
    root = package.partition(".")[0]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the package is installed, but lacks something itself
        raise MissingPackageError(
            f"{what} need {root}, which is not installed: pip install 'lightning-tracin[{extra}]'."
        ) from error


#: Marks that reorder what stands around them on a terminal.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_BREAKS = str.maketrans("\t\n\r", "   ")


def printable(text: str) -> str:
    """The text without what acts on a terminal (colours, titles, cursor, bell) or cannot be printed there.

    That is control characters but tabulator and end of line, marks that reorder, and lone surrogates.
    """
    return "".join(letter for letter in text if letter in "\t\n" or not _acts(letter))


def one_line(text: str) -> str:
    """The same, with a space for every tabulator and end of line."""
    return printable(text.translate(_BREAKS))


def _acts(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs") or letter in _REORDERING
