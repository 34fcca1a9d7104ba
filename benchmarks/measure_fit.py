"""The overhead of the callback in a fit in which it only takes snapshots."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.account_fit import fit
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.timing import seconds, spread
from benchmarks.workloads import reference
from lightning_tracin import TracInCallback

_EPOCHS, _SAMPLES = 4, 1024


class _Timed(TracInCallback):
    """The callback with a clock on the two hooks that do real work."""

    starting = 0.0
    writing = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.starting += seconds(lambda: super(_Timed, self).on_train_start(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.writing += seconds(lambda: super(_Timed, self).on_train_epoch_end(trainer, pl_module))


@measurement("fit_overhead")
def fit_overhead(context: Context) -> Report:
    """Time of a fit with `TracInCallback(when="never")`, minus writing snapshots, over the same fit without the callback."""
    workload = reference(_SAMPLES, 64).scaled(context.scale)
    fit(workload, _EPOCHS)  # warm-up
    ratios: list[float] = []
    starts: list[float] = []
    writes: list[float] = []
    began = time.perf_counter()
    while len(ratios) < min(3, context.repetitions) or (
        len(ratios) < context.repetitions and time.perf_counter() - began < context.patience
    ):
        with tempfile.TemporaryDirectory() as folder:
            callback = _Timed(
                dirpath=Path(folder) / "run",
                when="never",
                languages=["en"] * len(workload.train),
                languages_of_probes=["en"] * len(workload.probes),
            )
            took, _ = fit(workload, _EPOCHS, [callback])
        ratios.append((took - callback.writing) / fit(workload, _EPOCHS)[0])
        starts.append(callback.starting)
        writes.append(callback.writing / _EPOCHS)
    note = (
        f"fit_overhead: {_EPOCHS} epochs of {len(workload.train)} samples; checks before the fit took "
        f"{spread(starts).value:.2f} s of it, once; writing a snapshot takes {spread(writes).value:.2f} s, not counted."
    )
    return Report((ratio_result("fit_overhead", spread(ratios)),), notes=(note,))
