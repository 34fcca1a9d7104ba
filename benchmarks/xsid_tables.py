"""Tables of the utterances and intents of xSID, whose files are in CoNLL format: comments, then one line a word."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from lightning_tracin.errors import TracInError

PARTS = ("valid", "test")
#: Written as `# text = What a day` or `# text: What a day`.
_COMMENT = re.compile(r"#\s*(?P<name>text|intent)\s*[:=]\s*(?P<value>.+?)\s*$")


def write_xsid_tables(source: Path, folder: Path) -> None:
    """Write `language.part.tsv` with the columns `item`, `intent` and `text` for every `language.part.conll` of a folder.

    An utterance's item is its part and its row number, which are the same in every language.

    Raises:
        TracInError: there is no such file, or an utterance has no text or no intent.
    """
    files = [path for part in PARTS for path in sorted(source.glob(f"*.{part}.conll"))]
    if not files:
        raise TracInError(f"{source} has no .conll files of xSID; download them from https://github.com/mainlp/xsid.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        with (folder / f"{path.stem}.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, dialect="excel-tab")
            table.writerow(["item", "intent", "text"])
            part = path.stem.rpartition(".")[2]
            table.writerows((f"{part}-{row}", *utterance) for row, utterance in enumerate(utterances(path)))


def utterances(path: Path) -> list[tuple[str, str]]:
    """The intent and the text of every utterance of a file.

    Raises:
        TracInError: an utterance has no text or no intent.
    """
    found = []
    for number, block in enumerate(filter(None, (part.strip() for part in path.read_text(encoding="utf-8").split("\n\n")))):
        named = {match["name"]: match["value"] for match in map(_COMMENT.match, block.splitlines()) if match}
        if not named.get("text") or not named.get("intent"):
            raise TracInError(f"Utterance {number} of {path} has no `# text` or no `# intent` line; is the file damaged?")
        found.append((named["intent"], named["text"]))
    return found
