"""Refits on all cores, over what they would take if the cores shared nothing and processes started at once."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.account_fit import BATCH_SIZE, Module
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.timing import seconds, spread
from benchmarks.workloads import Batch, reference
from lightning_tracin.trainer.process_pool import own_cores
from lightning_tracin.trainer.refits import Fit, Refits

_REFITS, _EPOCHS, _SAMPLES, _PROBES = 8, 2, 1024, 32


def padded(batch: list[Batch], pad: int) -> Batch:
    """Samples as one batch; those that are fetched one at a time are not padded yet."""
    values = {"input_ids": pad, "attention_mask": 0}
    joined = {
        name: pad_sequence([one[name] for one in batch], batch_first=True, padding_value=value) for name, value in values.items()
    }
    return {**joined, "labels": torch.stack([one["labels"] for one in batch])}


def built(samples: int) -> Fit:
    """A fit of the reference workload, ready to start."""
    workload = reference(samples, _PROBES)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=_EPOCHS, accelerator="cpu", **silent)  # type: ignore[arg-type]
    collate = partial(padded, pad=workload.train.pad)
    train, probes = (DataLoader(one, BATCH_SIZE, collate_fn=collate) for one in (workload.train, workload.probes))
    return Fit(Module(workload), trainer, train, probes)


def members(count: int, samples: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which samples each refit sees: all but one."""
    every = np.ones((count, samples), dtype=np.bool_)
    np.fill_diagonal(every, val=False)
    return every


def _refitted(samples: int, count: int, workers: int) -> float:
    """Seconds of some refits, stored and read."""
    with tempfile.TemporaryDirectory() as folder:
        refits = Refits(partial(built, samples), Path(folder), workers)
        return seconds(lambda: refits.losses(members(count, samples)))


@measurement("refits_vs_ideal")
def refits_vs_ideal(context: Context) -> Report:
    """Time of eight refits on all cores, over eight times that of one refit on one core, by the number of cores."""
    samples, cores, before = max(2 * BATCH_SIZE, int(_SAMPLES * context.scale)), own_cores(), torch.get_num_threads()
    ratios: list[float] = []
    alone: list[float] = []
    began = time.perf_counter()
    while len(ratios) < min(3, context.repetitions) or (
        len(ratios) < context.repetitions and time.perf_counter() - began < context.patience
    ):
        torch.set_num_threads(1)
        try:
            alone.append(_refitted(samples, 1, workers=1))
        finally:
            torch.set_num_threads(before)
        ratios.append(_refitted(samples, _REFITS, workers=cores) / (_REFITS * alone[-1] / cores))
    note = (
        f"refits_vs_ideal: {_REFITS} refits on {cores} cores, in {cores} processes whose start counts; one refit on one core "
        f"takes {spread(alone).value:.1f} s."
    )
    return Report((ratio_result("refits_vs_ideal", spread(ratios)),), notes=(note,))
