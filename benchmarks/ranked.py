"""One snapshot's attribution by several ranks of one thread each; `scale` runs it as `python -m benchmarks.ranked`.

The ranks are processes of a Lightning Fabric (gloo) that share the work of `lightning_tracin.attribute`. The clock runs between
two barriers: from the snapshot's weights to its last shard. Starting the processes is not timed, nor are the tables and figures
that rank 0 makes afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.projected_index import LANGUAGES
from benchmarks.workloads import Sentences, xlm_r

TRAIN, PROBES = 8192, 50


class Module(pl.LightningModule):
    """A small model of XLM-R's shape."""

    def __init__(self) -> None:
        super().__init__()
        workload = xlm_r("small", TRAIN, PROBES, layers=2, width=64, heads=2, inner=128, vocabulary=2000)
        self.model, self.train_samples, self.probe_samples = workload.model, workload.train, workload.probes

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss that a fit minimizes."""
        del batch_idx
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any optimizer will do: only one step is made."""
        return torch.optim.SGD(self.parameters(), 1e-3)


class Spoken(torch.utils.data.Dataset[Any]):
    """Sentences whose languages take turns."""

    def __init__(self, sentences: Sentences) -> None:
        self.sentences = sentences
        self.language = [LANGUAGES[index % len(LANGUAGES)] for index in range(len(sentences))]

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> Any:
        return self.sentences[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Several sentences, padded to the longest."""
        return self.sentences.__getitems__(indices)


def loaders_of(module: Module) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of the train samples and of the probes."""
    return DataLoader(Spoken(module.train_samples), batch_size=32), DataLoader(Spoken(module.probe_samples), batch_size=32)


def timed_run(folder: Path, ranks: int) -> float:
    """Seconds of one attribution by a number of ranks.

    Raises:
        RuntimeError: it failed.
    """
    run = folder / "run"
    if not run.exists():
        _fit(run)
    for computed in ("ingredients", "results"):
        shutil.rmtree(run / computed, ignore_errors=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["-m", "benchmarks.ranked", str(run), str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command[1:])}` failed:\n{done.stderr}")
    return float(next(line for line in done.stdout.splitlines() if line.startswith("seconds")).split()[1])


def _fit(run: Path) -> None:
    from lightning_tracin import TracInCallback

    module = Module()
    callback = TracInCallback(
        run, when="never", every_n_epochs=None, every_n_train_steps=1, top_k=10, per_layer=False, preconditioner=None
    )
    pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback]
    ).fit(module, *loaders_of(module))


def main() -> None:
    from lightning_fabric import Fabric

    from lightning_tracin import attribute
    from lightning_tracin.attribution.attributor import Attributor

    run, ranks = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fabric.launch()
    pass_of = Attributor.attribute

    def timed(self: Attributor, *arguments: Any) -> None:
        fabric.barrier()
        start = time.perf_counter()
        pass_of(self, *arguments)  # returns when all ranks are done
        if fabric.global_rank == 0:
            print("seconds", time.perf_counter() - start, flush=True)

    Attributor.attribute = timed  # type: ignore[method-assign, assignment]
    sys.modules["lightning_tracin.trainer.attribute"].finish = lambda *_: None  # type: ignore[attr-defined]
    module = Module()
    attribute(module, run, *loaders_of(module), fabric=fabric, progress=False)


if __name__ == "__main__":
    main()
