"""CoNLL: sentences with blank lines between them, whose comments, `# name = value`, stand before their words, one a line.

Only the comments are read: what is said of a whole sentence, such as its text and its intent.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from lightning_tracin.errors import TracInError

#: `# name = value`; some files write `# name: value`.
_COMMENT = re.compile(r"#\s*(?P<name>[^=:\s]+)\s*[=:]\s*(?P<value>.*?)\s*")


def sentences_of(text: str, path: Path) -> dict[int, dict[str, str]]:
    r"""The comments of each sentence, by the number of its first line.

    Args:
        text: what the file holds.
        path: of the file, for messages.

    Raises:
        TracInError: a sentence has no comments with a name, or two of one name.

    Example:
        >>> sentences_of("# text = Regnet es?\n# intent = weather\n1\tRegnet\n2\tes?\n\n# text = Halt\n", Path("a.conll"))
        {1: {'text': 'Regnet es?', 'intent': 'weather'}, 6: {'text': 'Halt'}}
    """
    return {first: _named(lines, first, path) for first, lines in _blocks(text)}


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines between blank lines, and the number of the first of them."""
    block: list[str] = []
    number = 0
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if line.strip():
            block.append(line.strip())
        elif block:
            yield number - len(block), block
            block = []
    if block:
        yield number + 1 - len(block), block


def _named(lines: list[str], first: int, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, match in enumerate(map(_COMMENT.fullmatch, lines)):
        if match is None:
            continue
        if match["name"] in found:
            raise TracInError(
                f"{path} has {match['name']!r} twice in one sentence (the second in line {first + place}): remove one of them, "
                "or put a blank line between the sentences."
            )
        found[match["name"]] = match["value"]
    if not found:
        raise TracInError(
            f"{path} has a sentence without comments, `# name = value`, in line {first}: add those of its text and its label."
        )
    return found
