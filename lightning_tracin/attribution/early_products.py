"""Exact products of early versions, which could be wrong."""

from __future__ import annotations

import warnings

from lightning_tracin.attribution.method import Method
from lightning_tracin.storage.directory import RunDirectory


def warn_of_early_products(directory: RunDirectory, method: Method) -> None:
    """Warn if a run may be from a version that computed wrong exact products for probes in several batches.

    Those versions recorded no spot check.

    Args:
        directory: the run.
        method: the run's method.
    """
    record = directory.record()
    if not method.banks_probes or record.probes.count <= record.options.batch_size:
        return
    unchecked = [one for one in directory.ledger.snapshots() if one.name not in record.spot_checks]
    if any(method.store(directory, snapshot).folder.exists() for snapshot in unchecked):
        warnings.warn(
            f"The exact scores of {directory.path} may be wrong: versions before 0.2 could leave out products of short probes "
            "after long ones, and this run has no spot check. If the snapshots' weights were kept, `lightning-tracin "
            f"attribute` checks it (delete {directory.path / 'ingredients'} first to compute everything again); if not, fit "
            "again.",
            stacklevel=3,
        )
