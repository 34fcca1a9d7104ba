"""Multilingual data as Hugging Face data sets with the columns text, label, language and item."""

from lightning_tracin.datasets.cldr import load_cldr
from lightning_tracin.datasets.columns import Columns
from lightning_tracin.datasets.corpus import Corpus, Dropped
from lightning_tracin.datasets.files import load_files
from lightning_tracin.datasets.hub import load_hub
from lightning_tracin.datasets.splits import Split, SplitPlan, repeated_texts, select_items, split_by_item, split_two

__all__ = [
    "Columns",
    "Corpus",
    "Dropped",
    "Split",
    "SplitPlan",
    "load_cldr",
    "load_files",
    "load_hub",
    "repeated_texts",
    "select_items",
    "split_by_item",
    "split_two",
]
