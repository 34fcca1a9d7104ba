"""The cost of the spot check at the end of a snapshot, relative to the pass that it checks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import ours
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.scopes import everything
from benchmarks.timing import interleaved
from benchmarks.workloads import reference
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.storage.ingredients import IngredientStore

#: Train samples and probes: enough for the number of checked samples to depend on them.
_TRAIN, _PROBES = 4096, 64


@measurement("spot_check_vs_pass")
def spot_check_vs_pass(context: Context) -> Report:
    """The reference model with more train samples; the pass with files and probes, the check with its reading of them."""
    workload = reference(_TRAIN, _PROBES).scaled(context.scale)
    job, target = ours.job_of(workload), ours.target_of(workload.model)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "0000-step0"
        ours.attributed(workload.model, job, everything, whole)
        store = IngredientStore(whole, len(job.train), len(job.probes))

        def check() -> None:
            check_products(target, job, store)

        def attribution() -> None:
            with tempfile.TemporaryDirectory() as other:
                ours.attributed(workload.model, job, everything, Path(other) / "0000-step0")

        check()  # warm-up
        pairs = interleaved(check, attribution, context.repetitions, context.patience)
    return Report((ratio_result("spot_check_vs_pass", pairs.ours_over_theirs),))
