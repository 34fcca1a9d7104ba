"""What an experiment of a study has to say: sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """One experiment's part of a study's page.

    Attributes:
        name: one word, which its files begin with.
        title: its heading.
        setting: what was computed: n, k, seeds, chance, interval.
        findings: what the numbers say, a sentence each.
        tables: name -> table.
        figures: name -> figure.
    """

    name: str
    title: str
    setting: str
    findings: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)
