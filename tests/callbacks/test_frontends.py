"""One user script runs with both Lightning packages and through both LightningCLIs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_tracin import TracInRun
from lightning_tracin.storage.account import AccountStore

_MODULE = """
import torch
import {package} as pl
from lightning_tracin import TracInCallback
from tests.support.fits import Samples
from tests.support.models import padded, tiny_xlmr


class Classifier(pl.LightningModule):
    def __init__(self, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.model = tiny_xlmr()

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.model(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(Samples(20, 1), batch_size=6, shuffle=True, collate_fn=padded)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(Samples(6, 2), batch_size=6, collate_fn=padded)
"""

_SCRIPT = """
pl.seed_everything(1)
trainer = pl.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    callbacks=[TracInCallback("run", top_k=3)],
)
trainer.fit(Classifier(), Data())
"""

_CLI = """
from {package}.cli import LightningCLI

LightningCLI(Classifier, Data)
"""

_CONFIG = """
seed_everything: 1
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  callbacks:
    - class_path: lightning_tracin.TracInCallback
      init_args:
        dirpath: run
        every_n_epochs: 1
        when: snapshot
        top_k: 3
model:
  rate: 0.01
"""


def run_script(folder: Path, script: str, *arguments: str) -> None:
    folder.mkdir()
    (folder / "script.py").write_text(script)
    (folder / "settings.yaml").write_text(_CONFIG)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        env={"PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def run_of(folder: Path, script: str, *arguments: str) -> TracInRun:
    run_script(folder, script, *arguments)
    return TracInRun.open(folder / "run")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    script = _MODULE.format(package="pytorch_lightning") + _SCRIPT
    return run_of(tmp_path_factory.mktemp("reference") / "fit", script)


@pytest.mark.long
def test_lightning_pytorch_gives_the_same_scores(tmp_path: Path, reference: TracInRun) -> None:
    run = run_of(tmp_path / "fit", _MODULE.format(package="lightning.pytorch") + _SCRIPT)
    assert len(run.snapshots) == 2
    np.testing.assert_array_equal(run.influence(), reference.influence())


@pytest.mark.long
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning_cli_from_yaml_gives_the_same_scores(tmp_path: Path, reference: TracInRun, package: str) -> None:
    script = (_MODULE + _CLI).format(package=package)
    run = run_of(tmp_path / "fit", script, "fit", "--config", "settings.yaml")
    assert len(run.snapshots) == 2
    np.testing.assert_array_equal(run.influence(), reference.influence())


@pytest.mark.long
def test_lightning_cli_says_that_an_unquoted_no_needs_quotes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text((_MODULE + _CLI).format(package="pytorch_lightning"))
    root = str(Path(__file__).parents[2])
    for word, quoted in (("no", False), ("'no'", True)):
        given = _CONFIG.replace("dirpath: run", f"dirpath: run\n        languages: [{', '.join([word, 'de'] * 10)}]")
        (tmp_path / "settings.yaml").write_text(given)
        command = [sys.executable, "script.py", "fit", "--config", "settings.yaml"]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": root, "PATH": ""}, capture_output=True, text=True, check=False
        )
        assert ("A language is False: YAML reads `no`, `on` and `yes` as true or false; quote it" in done.stderr) != quoted
        assert (done.returncode == 0) == quoted, done.stderr
    assert TracInRun.open(tmp_path / "run").train.counts() == {"no": 10, "de": 10}


_BLOCKED = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "lightning" or name.startswith("lightning."):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Blocked())
import importlib.util

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "lightning" else real(name, package)
"""


@pytest.mark.long
def test_the_package_lightning_stays_optional(tmp_path: Path, reference: TracInRun) -> None:
    run = run_of(tmp_path / "fit", _BLOCKED + _MODULE.format(package="pytorch_lightning") + _SCRIPT)
    np.testing.assert_array_equal(run.influence(), reference.influence())


_ACCOUNT = _SCRIPT.replace('TracInCallback("run", top_k=3)', 'ContributionCallback("run", window=3, language_column="language")')

_ACCOUNT_SETTINGS = """
    - class_path: lightning_tracin.ContributionCallback
      init_args:
        dirpath: run
        window: 3
        language_column: language
        every_n_steps: 1
        overwrite: false
        max_probes_per_language: 5
        dtype: float32
        device: cpu
"""


@pytest.mark.long
def test_lightning_cli_of_the_other_package_gives_the_same_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    exec(
        (_MODULE.format(package="pytorch_lightning") + _ACCOUNT).replace("import TracIn", "import Contribution"),
        {"__name__": "here"},
    )

    first, last = _CONFIG.index("    - class_path"), _CONFIG.index("model:")
    monkeypatch.setattr(f"{__name__}._CONFIG", _CONFIG[:first] + _ACCOUNT_SETTINGS.lstrip("\n") + _CONFIG[last:])
    run_script(tmp_path / "fit", (_MODULE + _CLI).format(package="lightning.pytorch"), "fit", "--config", "settings.yaml")
    here, there = (AccountStore(tmp_path / name / "run").windows() for name in ("here", "fit"))
    assert [window.record for window in there] == [window.record for window in here]
    for one, other in zip(there, here, strict=True):
        for name, numbers in other.numbers.items():
            np.testing.assert_allclose(one.numbers[name], numbers, rtol=1e-4, atol=1e-6)  # threads differ
