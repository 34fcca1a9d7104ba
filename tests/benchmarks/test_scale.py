"""The page on scale says what its figures say, and what is stored is what its formulas say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks import exact_memory, scale_page
from lightning_tracin.gradients.block import BLOCK
from lightning_tracin.gradients.holding import working_bytes

MACHINE = {"date": "2026-01-01", "cores": 2, "memory": 8 * 2**30, "torch": "2.0"}
MIB = 2**20


def page_of(part: str, figures: dict[str, Any]) -> str:
    return scale_page.page({part: {"machine": MACHINE, "figures": figures}})


def reading(**seconds: float) -> str:
    figures = {
        "train": 1_000_000,
        "probes": 250,
        "features": 512,
        "bytes": 10**9,
        "files": 977,
        "k": 100,
        "peak": 20 * MIB,
        "opened": {"seconds": 3.0, "held": 10**8, "peak": 2 * 10**8},
        "seconds": {name: [value] for name, value in seconds.items()},
        "phases": {"products": 2.5, "norms": 0.25},
    }
    return page_of("reading", figures)


def test_reading_is_compared_with_the_disk_and_with_its_products() -> None:
    found = reading(read=1.0, hashed=1.0, products=2.0, scored=4.0, unchecked=5.0)
    for said in (
        "Scoring takes 4.00 (4.00 to 4.00) times as long as reading alone",
        "256 GFLOP, alone take 50 % (50 to 50) of its time (**of the limit: 50 %**)",
        "whichever is less: 2.5 s here",  # 2.0 s / 80 %
        "| all of these | 2.75 |",
    ):
        assert said in found
    assert "whichever is less: 6.0 s here" in reading(read=3.0, hashed=3.0, products=2.0, scored=4.0, unchecked=5.0)


def test_memory_is_compared_with_the_sum_of_what_is_known() -> None:
    known = {"model": MIB, "activations": 9 * MIB, "budget": 50 * MIB, "shard": 30 * MIB, "working": 10 * MIB}
    counts = {"train": 100_000, "probes": 1_000, "stored": 1_200_000_000, "seconds": 90.0}
    found = page_of("exact-memory", {**known, **counts, "grown": 75 * MIB, "held": 10 * MIB})
    assert "100,000 train samples x 1,000 probes" in found
    assert "**75 MiB, 75 % of what is known before it starts**" in found
    assert "| all of these | 100.0 |" in found


def test_the_pass_whose_memory_is_measured_stores_every_pair(tmp_path: Path) -> None:
    found = exact_memory.measured(300, 20, 64 * MIB, tmp_path / "0000-step0")
    parts = 3
    products = 4 * parts * (300 + 1) * (20 + 1) - 4 * parts  # and norms
    indices, headers = 8 * (300 + 20), 2000
    assert products + indices <= found["stored"] <= products + indices + headers
    assert 0 < found["held"] <= found["budget"] == 64 * MIB
    assert found["working"] == working_bytes(BLOCK + exact_memory.BATCH, probes=20, like=torch.ones(1))
