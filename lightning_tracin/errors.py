"""Errors that users can act on, and text made safe for a terminal."""

from __future__ import annotations

import importlib
import unicodedata
from types import ModuleType


class TracInError(RuntimeError):
    r"""An error that the user can fix: the message names the thing, its value and the remedy. Control characters are removed.

    Example:
        >>> try:
        ...     raise TracInError("There is no probe 9; the run has probes 0 to 3.\x07")  # rings the bell of a terminal
        ... except TracInError as error:
        ...     print(repr(str(error)))
        'There is no probe 9; the run has probes 0 to 3.'
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingPackageError(TracInError):
    """An optional package is not installed; the message names it and the extra that installs it."""


def unquoted(name: str, value: object) -> TracInError:
    """The error about a YAML file whose words were read as something else.

    Args:
        name: of the setting.
        value: what was read in place of a word.

    Example:
        >>> str(unquoted("zero_shot", "False")).partition(";")[0]
        'zero_shot has False in place of a word: YAML reads `no`, `off`, `yes`, `on`, `null` and numbers so'
    """
    return TracInError(
        f"{name} has {value} in place of a word: YAML reads `no`, `off`, `yes`, `on`, `null` and numbers so; quote the word, as "
        'in "no".'
    )


def needs(package: str, extra: str, what: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: name of the module, such as `jinja2` or `torchmetrics.classification`.
        extra: the extra of lightning-tracin that installs it.
        what: the subject of the message, capitalized and in the plural, such as "Figures".

    Returns:
        The module.

    Raises:
        MissingPackageError: the package is not installed.

    Example:
        >>> needs("json", "report", "Reports").dumps([1])
        '[1]'
        >>> try:
        ...     needs("no_such_package", "report", "Charts")
        ... except MissingPackageError as error:
        ...     print(error)
        Charts need no_such_package, which is not installed: pip install 'lightning-tracin[report]'.
    """
    root = package.partition(".")[0]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the package is installed, but one of its own imports fails
        raise MissingPackageError(
            f"{what} need {root}, which is not installed: pip install 'lightning-tracin[{extra}]'."
        ) from error


#: Unicode marks that reorder the surrounding text on a terminal.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_BREAKS = str.maketrans("\t\n\r", "   ")


def printable(text: str) -> str:
    r"""Remove what acts on a terminal (colours, titles, cursor, bell) or cannot be printed.

    These are control characters except tab and newline, marks that reorder text, and lone surrogates.

    Example:
        >>> printable("\x1b[31mred\x07")
        '[31mred'
    """
    kept = (letter for letter in text if letter not in _REORDERING)
    return "".join(letter for letter in kept if letter in "\t\n" or unicodedata.category(letter) not in ("Cc", "Cs"))


def one_line(text: str) -> str:
    r"""Like `printable`, with a space for each tab and line break.

    Example:
        >>> one_line("first\nsecond")
        'first second'
    """
    return printable(text.translate(_BREAKS))
