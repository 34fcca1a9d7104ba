"""What an experiment adds to a study's page: findings, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Contents:
    """The results of an experiment.

    Attributes:
        setting: what was computed: n, k, seeds, chance, interval.
        findings: what the numbers show, one sentence each.
        tables: name -> table.
        figures: name -> figure.
    """

    setting: str
    findings: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Section(Contents):
    """One experiment's part of a study's page.

    Attributes:
        name: one word, with which the names of its files begin.
        title: the heading.
    """

    name: str = field(kw_only=True)
    title: str = field(kw_only=True)
