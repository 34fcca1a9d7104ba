"""Tables in Markdown, whose cells hold any text."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd


def plain_cell(value: Any) -> str:
    """Format a value for a table: three decimals, or three significant digits if it is small.

    Example:
        >>> plain_cell(0.12345), plain_cell(0.00012345), plain_cell(float("nan")), plain_cell("de")
        ('0.123', '0.000123', '', 'de')
    """
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
    return str(value)


def markdown_cell(value: Any) -> str:
    r"""Format a value for a Markdown table; escapes what would end the cell or be read as HTML.

    Example:
        >>> markdown_cell("a|b\n<c>")
        'a\\|b &lt;c&gt;'
    """
    return markdown_line(plain_cell(value)).replace("|", "\\|")


def markdown_line(text: str) -> str:
    """A sentence on one line; escapes what would be read as HTML."""
    return " ".join(escape(text, quote=False).split())


def markdown_table(table: pd.DataFrame) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown_table(pd.DataFrame({"language": ["de"], "share": [0.5]})))
        | language | share |
        | --- | --- |
        | de | 0.500 |
    """
    rows: list[list[Any]] = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy(dtype=object).tolist()]
    return "\n".join(f"| {' | '.join(markdown_cell(value) for value in row)} |" for row in rows)
