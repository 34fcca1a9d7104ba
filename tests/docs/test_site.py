"""The site is built without a warning: its links and anchors lead somewhere, and its pages ask no network for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lightning_tracin
from docs.scripts.site_hooks import options_table
from lightning_tracin.config import Options

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser loads for a page: scripts, styles, pictures, frames; not what a reader may click."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.classes |= {*named.get("class", "").split()}
        if tag != "a" and named.get("rel") != "canonical":
            self.addresses += [named[name] for name in ("src", "href", "data") if name in named]


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = Loaded(page)
        assert [one for one in loaded.addresses if re.match(r"(\w+:)?//", one)] == []
        assert "mermaid" not in loaded.classes  # the theme would fetch the library that draws such blocks
        for one in loaded.addresses:
            if not one.startswith(("data:", "#")) and page.name != "404.html":
                assert (page.parent / one.partition("?")[0]).exists(), one
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text()) == []


def test_everything_public_is_in_the_reference(site: Path) -> None:
    text = (site / "api" / "index.html").read_text()
    for name in lightning_tracin.__all__:
        assert re.search(rf'id="lightning_tracin\.(\w+\.)*{name}"', text), name
    for name in Options.model_fields:
        assert f"<code>{name}</code>" in text, name
    assert "&gt;&gt;&gt; " not in re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)  # examples are code


def test_the_tutorial_is_a_page_with_its_picture(site: Path) -> None:
    text = (site / "tutorial" / "index.html").read_text()
    assert "which language" in text.lower()
    assert re.search(r'<img [^>]*src="[^"]*tutorial[^"]*\.png"', text)
    assert "gain of 300 more" in text


def test_words_in_braces_are_on_the_page_of_errors(site: Path) -> None:
    """Extensions of Markdown take some of them for attributes."""
    assert "<td>There is no probe {probe}</td>" in (site / "errors" / "index.html").read_text()


def test_the_table_of_options_has_their_defaults() -> None:
    lines = options_table(Options).splitlines()
    (line,) = (line for line in lines if line.startswith("| `similarity` |"))
    assert line.split(" | ")[1] == "`'dot'`"
    assert len(lines) == 2 + len(Options.model_fields)
