"""Labelled documents in one language, from which all others are made."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import load_cldr


@dataclass(frozen=True)
class Document:
    """A text and its label; the item says which documents are translations."""

    item: str
    text: str
    label: str


def sib200(folder: Path, language: str = "eng_Latn") -> list[Document]:
    """The documents of a language of SIB-200 (Adelani et al. 2024, arXiv 2309.07445): topics of sentences, all parts together.

    Raises:
        TracInError: the folder does not hold them.
    """
    found = []
    for part in ("train", "dev", "test"):
        path = folder / "sib200" / language / f"{part}.tsv"
        if not path.is_file():
            raise TracInError(f"{path} is missing: give the folder that holds sib200/ as --data_dir, or leave it out.")
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            found += [Document(row["index_id"], row["text"], row["category"]) for row in rows]
    return found


def cldr(language: str = "en") -> list[Document]:
    """Names from the Unicode CLDR and what they name; no data folder is needed."""
    samples = load_cldr([language]).dataset
    names = samples.features["label"].names
    return [Document(row["item"], row["text"], names[row["label"]]) for row in samples]
