"""Loaders of multilingual data as Hugging Face data sets with the columns text, label, language and item."""

from lightning_tracin.studies.datasets.cldr import load_cldr
from lightning_tracin.studies.datasets.column_roles import Columns
from lightning_tracin.studies.datasets.corpus import Corpus, Dropped
from lightning_tracin.studies.datasets.hub import load_hub
from lightning_tracin.studies.datasets.splits import Split, SplitPlan, repeated_texts, split_by_item, split_two
from lightning_tracin.studies.datasets.text_files import load_files

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
    "split_by_item",
    "split_two",
]
