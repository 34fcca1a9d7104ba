"""A scratch directory for candidates: samples that take the place of a run's train samples, at the run's snapshots.

It is read like any run directory. Its snapshots are the run's, which are read where they are and never changed.
"""

from __future__ import annotations

from pathlib import Path

from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.factors import FactorStore
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.records import known_samples
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import Ledger, Snapshot


class CandidateDirectory(RunDirectory):
    """The directory of some candidates for a run.

    Args:
        path: an empty folder outside the run.
        run: the run, whose files are only read.
        candidates: the table of the candidates.
    """

    def __init__(self, path: Path, run: RunDirectory, candidates: SampleTable) -> None:
        super().__init__(path)
        self._run = run
        record, probes = run.record(), run.samples("probes")
        changes = {
            "run": f"{record.run}_candidates",
            "train": known_samples(candidates),
            "probes": known_samples(probes),
            "added_probes": (),
            "spot_checks": {},
        }
        self.start(record.model_copy(update=changes), candidates, probes)

    @property
    def ledger(self) -> Ledger:
        """The run's own snapshots."""
        return self._run.ledger

    def features(self, snapshot: Snapshot, adding: int = 0) -> FeatureStore:
        """The candidates' features at one snapshot, with the run's own as `fit`; probes cannot be added here."""
        assert adding == 0
        record, owner = self.record(), f"{self.record().run}/features/{snapshot.name}"
        folder, fit = self.path / "features" / snapshot.name, self._run.features(snapshot)
        return FeatureStore(folder, record.train.count, record.probes.count, 0, owner, fit)

    def factors(self, snapshot: Snapshot) -> FactorStore:
        """The fit's own: candidates are scored by the same inner product."""
        return self._run.factors(snapshot)
