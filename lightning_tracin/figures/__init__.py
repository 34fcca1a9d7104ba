"""Figures: tables in, a matplotlib Figure out; nothing is written and no state is kept.

Languages are told apart by colour and marker together. Where figures of several tables stand side by side, give every one the
same `languages`, so that each keeps its colour. Intervals are called 95 % ones, as `reliance.Interval` makes them.
"""

from lightning_tracin.figures.drawing import png
from lightning_tracin.figures.reliance import curves, heat_map

__all__ = ["curves", "heat_map", "png"]
