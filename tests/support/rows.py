"""Helpers: files to load, and what a data set holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from lightning_tracin.studies.datasets import Corpus

Row = tuple[str, str, str]

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


def real_data(folder: str) -> Path:
    """A folder of the real data that stand beside the repository; skips where they do not."""
    path = REAL_DATA / folder
    if not path.is_dir():
        pytest.skip(f"the real data {Path(*path.parts[-4:])} are not beside this repository")
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def texts(dataset: Dataset, language: str) -> list[str]:
    return [row["text"] for row in dataset if row["language"] == language]


def items(dataset: Dataset, language: str) -> list[str]:
    return [row["item"] for row in dataset if row["language"] == language]


def labels(dataset: Dataset) -> list[str]:
    return [dataset.features["label"].int2str(row["label"]) for row in dataset]


def dropped(corpus: Corpus) -> dict[tuple[str, str], int]:
    return {(entry.language, entry.reason): entry.count for entry in corpus.dropped}
