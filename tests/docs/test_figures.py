"""Figures that a page copies stand on the page that it names as their source."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def statements(page: str) -> list[str]:
    """The rows of tables, points of lists and paragraphs of a page."""
    return re.split(r"\n\s*\n|\n(?=- |\d+\. |\| )", (DOCS / page).read_text())


def figures(text: str) -> set[str]:
    """The numbers with decimals, without their signs; not those of versions."""
    return {*re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)(?!\.\d)", text)}


def sources(statement: str) -> str:
    """The text of the pages that a statement links to, with the pages in a folder of the same name."""
    linked = re.findall(r"\]\((?:\.\./)?([\w-]+)\.md", statement)
    paths = [path for name in linked for path in (DOCS / f"{name}.md", *sorted((DOCS / name).rglob("*.md")))]
    return "\n".join(path.read_text() for path in paths)


def test_a_figure_is_told_from_a_version_and_a_word() -> None:
    assert figures("by -0.16 to 0.03; 8 of 3; captum 0.9.0; 1e-5; 2.5 times.") == {"0.16", "0.03", "2.5"}


def test_what_to_believe_is_what_the_measurements_say() -> None:
    found = 0
    for statement in statements("reading-the-numbers.md"):
        there = figures(sources(statement))
        assert figures(statement) <= there, statement
        found += len(figures(statement))
    assert found > 20


def test_times_of_other_libraries_are_those_of_the_benchmark() -> None:
    rows = [statement for statement in statements("comparison.md") if statement.startswith("| time")]
    assert len(rows) == 2
    benchmarks = figures((DOCS / "benchmarks.md").read_text())
    for row in rows:
        assert figures(row)
        assert figures(row) <= benchmarks, row
