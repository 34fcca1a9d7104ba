"""The files in the pages for other front ends work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_tracin import TracInRun

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]

MODULE = """
from pytorch_lightning.cli import LightningCLI
from tests.support.fits import Classifier as SharedClassifier, Data as SharedData

class Classifier(SharedClassifier):
    pass

class Data(SharedData):
    pass

if __name__ == "__main__":
    LightningCLI()
"""


def test_lightning_cli_takes_the_file_of_its_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "lightning-cli.md").read_text()
    (config,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "my_project.py").write_text(MODULE)
    command = next(line for line in page.splitlines() if line.startswith("python -m my_project"))
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command.split()[1:], "--trainer.accelerator=cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = TracInRun.open(tmp_path / "runs" / "cli")
    assert run.record.options.top_k == 20
    assert len(run.snapshots) == 2
    assert set(run.contributions()["train_language"]) >= {"de", "en", "ru"}
