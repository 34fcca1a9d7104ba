"""Fits in processes of their own, which tests may kill: `python -m tests.support.processes FOLDER`.

Dropout and shuffling are off, so that a fit that goes on from a checkpoint goes the way of one that was never interrupted. The
checkpoint is saved after every epoch, and taken up where there is one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, attribute
from tests.support.fits import Classifier, Samples, trainer
from tests.support.models import padded


class Waiting(pl.Callback):
    """Tells that the second epoch has begun, by a file, and waits there for as long as there is another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1 and (self.folder / "wait").exists():
            (self.folder / "waiting").touch()
            while (self.folder / "wait").exists():
                time.sleep(0.05)


def fit(folder: Path, workers: int = 0, **options: Any) -> None:
    """Fit four epochs, from the last checkpoint where there is one."""
    module, train, probes = _job(workers)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    watcher = TracInCallback(folder / "run", **{"top_k": 5, "batch_size": 8, "per_layer": False, **options})
    fitting = trainer(folder, [watcher, Waiting(folder), saver], enable_checkpointing=True, max_epochs=4)
    fitting.fit(module, train, probes, ckpt_path=last_checkpoint(folder))


def attributed(folder: Path) -> None:
    """Compute what is missing of a fit."""
    module, train, probes = _job()
    attribute(module, folder / "run", train, probes, progress=False)


def _job(workers: int = 0) -> tuple[Classifier, DataLoader[Any], DataLoader[Any]]:
    torch.set_num_threads(1)
    pl.seed_everything(5)
    module = Classifier()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    train = DataLoader(Samples(30, 1), batch_size=10, collate_fn=padded, num_workers=workers)
    return module, train, DataLoader(Samples(12, 2), batch_size=5, collate_fn=padded)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint from before the last epoch: from behind that, a fit has nothing left to do."""
    found = sorted((folder / "checkpoints").glob("epoch=[0-2].ckpt"))
    return found[-1] if found else None


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A fit in another process, which is ended with the context, and all that it has started."""
    command = [sys.executable, "-m", "tests.support.processes", str(folder), *arguments]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        yield process
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            for one in (process, *children):
                one.send_signal(signal.SIGKILL)
        process.wait()


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until a process has written a file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, (path.parent / "log").read_text()
        assert time.monotonic() < end, f"{path} is not there after {seconds} seconds"
        time.sleep(0.05)


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    fit(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
