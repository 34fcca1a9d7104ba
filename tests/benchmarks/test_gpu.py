"""The benchmarks on a GPU: they run on another device, their page says what is off, and without a GPU nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_page import Device, Measured, Way, page
from benchmarks.gpu_ways import ways_of
from benchmarks.registry import Context
from benchmarks.report import Comparison
from benchmarks.timing import Spread
from benchmarks.workloads import xlm_r
from tests.support.accelerators import ACCELERATOR, Accelerated

ROOT = Path(__file__).parents[2]
ONCE = Spread(1.0, 1.0, 1.0, 1)
DEVICE = Device("2026-01-02", "A Card", 80 * 2**30, "13.0", {"float32": 5e13, "bfloat16": 8e14}, 3e12, {"torch": "2.13.0"})


def way(name: str = "exact, probes included", ratio: float = 1.5, of_limit: float = 0.8, chunks: int = 1) -> Way:
    plain = Spread(20.0, 19.0, 22.0, 3)
    ours = Spread(20.0 * ratio, 19.0, 22.0 * ratio, 3)
    return Way(name, "float32", 10_000, 250, 32, ours, plain, Spread(ratio, 1.0, 2 * ratio, 3), of_limit, chunks, 12 * 2**30)


def lines_of(*ways: Way) -> list[str]:
    peer = Comparison(
        "XLM-R base", "a peer", "1.0", "its settings", "same, within 1e-06", 64, ONCE, Spread(4.0, 3.0, 5.0, 3), ONCE
    )
    return page(Measured(ways, (peer,), DEVICE)).splitlines()


def test_the_page_has_a_row_for_each_figure() -> None:
    lines = lines_of(way(), way("projected, train side", ratio=0.7))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| exact")]
    wanted = [
        "exact, probes included",
        "float32",
        "10,000 x 250",
        "32",
        "30.00",
        "20.00",
        "1.50 (1.00 to 3.00; 3)",
        "80%",
        "12.0",
    ]
    assert cells == [wanted]
    assert sum(line.startswith("| projected, train side") for line in lines) == 1
    assert any(line.startswith("| XLM-R base") and "a peer (1.0)" in line and "4.00" in line for line in lines)
    assert any("A Card, 80 GiB, CUDA 13.0" in line and "50.0 in float32, 800.0 in bfloat16" in line for line in lines)
    assert not any("**" in line for line in lines)  # nothing is off


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (way(ratio=3.0, of_limit=0.3), "the device waits for the processor"),
        (way(ratio=3.0, of_limit=0.7), "the products themselves are slow"),
        (way(chunks=4), "went through the model 4 times"),
        (way("language means, train side", ratio=1.4), "takes 1.40 plain passes (at most 1.3)"),
    ],
)
def test_the_page_says_what_to_look_at_if_a_figure_is_off(off: Way, said: str) -> None:
    found = [line for line in lines_of(way("projected, train side", ratio=0.5), off) if line.startswith("- **")]
    assert len(found) == 1
    assert f"{off.name} in float32" in found[0]
    assert said in found[0]


def test_every_way_is_measured_on_another_device() -> None:
    with Accelerated() as noted:
        workload = xlm_r("tiny", 6, 3, layers=1, width=16, heads=2, inner=32, vocabulary=300).to(ACCELERATOR)
        found = ways_of(Context(repetitions=1), workload)
    assert noted.uploads
    assert [one.name for one in found] == ["exact, probes included", "language means, train side", "projected, train side"]
    assert all(one.dtype == "float32" and one.of_limit > 0 and one.ratio.value > 0 and one.chunks == 1 for one in found)


def test_without_a_gpu_one_sentence_says_so_and_nothing_is_written(tmp_path: Path) -> None:
    written = ROOT / "docs" / "benchmarks-gpu.md"
    before = written.read_bytes() if written.exists() else None
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("make bench-gpu measures on a CUDA device, and torch ")
    assert line.endswith("finds none here: nothing was measured or written to docs/benchmarks-gpu.md.")
    assert (written.read_bytes() if written.exists() else None) == before
