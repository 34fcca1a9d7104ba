"""What an experiment contributes to a study's page: sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Contents:
    """What an experiment found.

    Attributes:
        setting: what was computed: n, k, seeds, chance, interval.
        findings: what the numbers say, one sentence each.
        tables: name -> table.
        figures: name -> figure.
    """

    setting: str
    findings: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One experiment's part of a study's page.

    Attributes:
        name: one word; the names of its files begin with it.
        title: its heading.
        setting: what was computed: n, k, seeds, chance, interval.
        findings: what the numbers say, one sentence each.
        tables: name -> table.
        figures: name -> figure.
    """

    name: str
    title: str
    setting: str
    findings: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, title: str, contents: Contents) -> Section:
        """The section of an experiment with this name and title."""
        return cls(name, title, contents.setting, contents.findings, contents.tables, contents.figures)
