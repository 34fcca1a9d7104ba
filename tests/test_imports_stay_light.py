"""Each part loads what it needs and nothing else: the engine torch, reading a run no training library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_tracin
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.trainer.attribute import attribute
from tests.support.hand_made import run_directory

TRAINING = {"lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning", "torchmetrics", "transformers"}


def loaded_by(code: str) -> set[str]:
    """The packages that a process has loaded after this code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name for name in sys.modules if '.' not in name]))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_itself_loads_nothing() -> None:
    found = loaded_by("import lightning_tracin\nassert 'attribute' in dir(lightning_tracin)")
    assert not found & {*TRAINING, "numpy", "pandas", "torch"}


def test_the_engine_needs_torch_alone() -> None:
    found = loaded_by("import lightning_tracin.gradients")
    assert "torch" in found
    assert not found & {*TRAINING, "datasets", "matplotlib", "pandas", "pydantic", "scipy", "wandb", "xarray"}


def test_reading_a_run_loads_no_training_library(tmp_path: Path) -> None:
    train, probes = (SampleTable(("de", "en") * n, (None,) * 2 * n, (None,) * 2 * n, (None,) * 2 * n) for n in (5, 2))
    run_directory(tmp_path / "run", train, probes)
    code = f"""
from lightning_tracin import TracInRun
run = TracInRun.open({str(tmp_path / "run")!r})
assert len(run.reliance(k=3)) == 2 * 4  # snapshots, and pairs of languages
"""
    assert not loaded_by(code) & {*TRAINING, "datasets", "matplotlib", "wandb"}


def test_every_public_name_is_there() -> None:
    assert {name: getattr(lightning_tracin, name).__name__ for name in lightning_tracin.__all__} == {
        name: name for name in lightning_tracin.__all__
    }
    assert {*lightning_tracin.__all__} <= {*dir(lightning_tracin)}
    assert lightning_tracin.attribute is attribute  # the function, not a module of that name
    assert lightning_tracin.TracInRun is TracInRun


def test_the_version_is_that_of_the_project() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{lightning_tracin.__version__}"\n' in project
    assert "__version__" in dir(lightning_tracin)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lightning_tracin' has no attribute 'influence'"):
        lightning_tracin.influence  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'influence'"):
        from lightning_tracin import influence  # noqa: F401
