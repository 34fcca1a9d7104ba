"""Pages as parsers and browsers see them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import lightning_tracin

ASSETS = Path(lightning_tracin.__file__).parent / "reporting" / "assets"


class Elements(HTMLParser):
    """The elements of a page, their attributes, its text outside of scripts, and the scripts that are no file of the package."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.foreign_scripts: list[str] = []
        self._shipped = {path.read_text(encoding="utf-8") for path in ASSETS.rglob("*.js")}
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "script":
            self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self._script += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._script is not None:
            if self._script not in self._shipped:
                self.foreign_scripts.append(self._script)
            self._script = None


def without_scripts(page: str) -> str:
    """The page up to its scripts, which are its last elements."""
    return page.partition("<script>")[0]
