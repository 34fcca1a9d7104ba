"""The README: short, its script is a file that runs, and its picture is what the demo draws."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from docs.scripts.readme_picture import PICTURE, TABLE, drawn_numbers

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SCRIPT = (ROOT / "examples" / "quickstart.py").read_text()

#: The folder of a run of the demo without options. `.ci/run` names the one that it has just made; otherwise the test makes one.
DEMO = os.environ.get("TRACIN_DEMO")


def test_it_can_be_read_in_a_few_minutes() -> None:
    assert len(README.split()) <= 900


def test_its_script_is_the_example_and_short() -> None:
    assert f"```python\n{SCRIPT}```" in README
    assert len([line for line in SCRIPT.splitlines() if line]) <= 30


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if DEMO is not None:
        return ROOT / DEMO
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, str(ROOT / "examples" / "finetune.py"), f"--output={folder}", "--wandb_mode=disabled"]
    subprocess.run(command, cwd=folder.parent, check=True, capture_output=True, timeout=1500)
    return folder


after_demo = pytest.mark.long if DEMO is None else pytest.mark.slow


@after_demo
def test_the_numbers_in_its_picture_are_the_demos(demo: Path) -> None:
    """In nats: other processors round sums in another order, and over a fit that becomes about 0.05."""
    key = ["probe_language", "train_language"]
    committed, made = (table.set_index(key).sort_index() for table in (pd.read_csv(TABLE), drawn_numbers(demo)))
    assert list(committed.index) == list(made.index)
    assert float((committed - made).abs().max(axis=None)) < 0.3
    for name in ("value", "contrast"):
        assert np.corrcoef(committed[name], made[name])[0, 1] > 0.99


def in_blocks(path: Path, blocks: int = 24) -> np.ndarray:
    """The mean colours of a picture's parts, from 0 to 1: letters and lines may move by some pixels."""
    return np.asarray(Image.open(path).convert("RGB").resize((2 * blocks, blocks), Image.Resampling.BOX), dtype=float) / 255


@after_demo
def test_its_picture_is_the_one_that_the_demo_draws(demo: Path) -> None:
    committed, made = in_blocks(PICTURE), in_blocks(demo / "results" / "heat_map.png")
    assert np.abs(committed - made).mean() < 0.01
    assert np.abs(committed - made).max() < 0.2
    assert np.abs(committed - made[::-1]).mean() > 0.05  # which a picture with its rows in another order would fail
