"""A run directory: the paths of its parts, and the record of what it holds.

`run.json` is written when the fit starts, after the tables of samples and before the first snapshot: a folder without it and
without snapshots holds no run. A fit resumes only in a directory whose record equals its own in everything that scores depend
on. The record is written again when the fit ends, when it resumes, when a pass is checked and when probes are added. `results`
is derived from the rest and can be made again; only its representations are read. Writers hold the lock (`lock`); readers need
none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.files import (
    as_lines,
    read_lines,
    read_record,
    read_tensors,
    unwritable,
    write_bytes,
    write_record,
    write_tensors,
)
from lightning_tracin.storage.filesystem import move_tree, remove_tree
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.records import RunRecord, Samples, SpotCheck, differences, known_samples
from lightning_tracin.storage.sample_table import SampleTable, table_of_rows
from lightning_tracin.storage.snapshots import Ledger, Snapshot


class RunDirectory:
    """Paths and records of one run.

    The record, the ledger and the tables of samples are read once and kept; what this object writes, it also keeps. `reload`
    forgets them, for when another process has written.

    Args:
        path: the run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reload()

    def reload(self) -> None:
        """Read the files again when they are next asked for."""
        self._read: RunRecord | None = None
        self._opened: Ledger | None = None
        self._tables: dict[str, SampleTable] = {}

    @property
    def ledger(self) -> Ledger:
        """The run's snapshots."""
        if self._opened is None:
            record = self.record()
            self._opened = Ledger(self._snapshots, record.run, record.snapshots)
        return self._opened

    @property
    def _snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def _imported(self) -> Path:
        return self.path / "snapshots.partial"

    def import_ledger(self, run: str) -> Ledger:
        """An empty ledger beside the run's own place, for snapshots that are there before the run; see `start_imported`.

        Args:
            run: identity of the run to be.
        """
        remove_tree(self._imported)  # what a killed import left
        return Ledger(self._imported, run)

    @property
    def results(self) -> Path:
        """Where tables and figures go."""
        return self.path / "results"

    @property
    def representations(self) -> Path:
        """Where the fitted model's own sentence representations stand."""
        return self.results / "representations.safetensors"

    @property
    def holds_run(self) -> bool:
        """Whether there is a run."""
        return self._record.exists()

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    def record(self) -> RunRecord:
        """What the directory holds.

        Raises:
            TracInError: there is no run, or its record is damaged.
        """
        if self._read is None:
            self._read = read_record(self._record, RunRecord)
        return self._read

    def _write(self, record: RunRecord) -> None:
        write_record(self._record, record)
        if self._read is not None and self._read.snapshots != record.snapshots:
            self._opened = None  # it checks this number
        self._read = record

    def samples(self, role: Literal["train", "probes"]) -> SampleTable:
        """One of the tables of samples.

        Raises:
            TracInError: it is missing, damaged, or not of this run.
        """
        if role not in self._tables:
            record = self.record()
            table = self._samples(self._table(role), getattr(record, role))
            for number, added in enumerate(record.added_probes if role == "probes" else ()):
                table = table.followed_by(self._samples(self._added(number), added))
            self._tables[role] = table
        return self._tables[role]

    def _samples(self, path: Path, expected: Samples) -> SampleTable:
        sha256, rows = read_lines(path)
        try:
            table = table_of_rows(rows)
            # what stands there was written from a table: another file that says the same is as good
            found = Samples(count=len(table), sha256=sha256) if sha256 == expected.sha256 else known_samples(table)
        except (KeyError, TypeError) as error:
            raise TracInError(f"{path} is damaged (no {error}); restore the file.") from error
        except ValidationError:  # no samples at all
            found = None
        if found != expected:
            raise TracInError(f"{path} is damaged or of another run: it differs from what run.json says; restore the file.")
        return table

    def ingredients(self, snapshot: Snapshot, columns: int) -> IngredientStore:
        """The shards of one snapshot.

        Args:
            snapshot: in the ledger.
            columns: number of products stored for each train sample: one for each probe, or for each sum of probes.
        """
        record, folder = self.record(), self.path / "ingredients" / snapshot.name
        return IngredientStore(folder, record.train.count, columns, f"{record.run}/ingredients/{snapshot.name}")

    def features(self, snapshot: Snapshot, adding: int = 0) -> FeatureStore:
        """The projected features of one snapshot.

        Args:
            snapshot: in the ledger.
            adding: number of probes whose features are written and that the record does not name yet; 0 = none.
        """
        record = self.record()
        probes = record.probes.count + sum(added.count for added in record.added_probes) + adding
        additions = len(record.added_probes) + (adding > 0)
        owner = f"{record.run}/features/{snapshot.name}"
        return FeatureStore(self.path / "features" / snapshot.name, record.train.count, probes, additions, owner)

    def discard(self, name: str) -> None:
        """Delete what was computed from the snapshot of this name, by whichever method."""
        record = self.record()
        if name in record.spot_checks:
            kept = {other: check for other, check in record.spot_checks.items() if other != name}
            self._write(record.model_copy(update={"spot_checks": kept}))
        for folder in [folder for folder in self.path.glob(f"*/{name}") if folder.parent != self._snapshots]:
            remove_tree(folder)

    def note_check(self, name: str, check: SpotCheck) -> None:
        """Record what a check of a snapshot's products found."""
        record = self.record()
        self._write(record.model_copy(update={"spot_checks": {**record.spot_checks, name: check}}))

    def _table(self, role: str) -> Path:
        return self.path / "samples" / f"{role}.jsonl"

    def _added(self, number: int) -> Path:
        return self.path / "samples" / f"probes-added{number:04d}.jsonl"

    def add(self, probes: SampleTable) -> None:
        """Make probes part of the run whose features are there."""
        record = self.record()
        write_bytes(self._added(len(record.added_probes)), as_lines(probes.rows()))
        added = (*record.added_probes, known_samples(probes))
        self._write(record.model_copy(update={"added_probes": added}))
        self._tables.pop("probes", None)

    def start(self, record: RunRecord, train: SampleTable, probes: SampleTable) -> None:
        """Make this the directory of a new run.

        Raises:
            TracInError: it holds a run already.
        """
        self.refuse_other_run()
        self._write_samples(train, probes)
        self._write(record)

    def start_imported(self, record: RunRecord, train: SampleTable, probes: SampleTable) -> None:
        """Make this the directory of a run whose snapshots all stand in `import_ledger`.

        Raises:
            TracInError: it holds a run already, or the snapshots cannot be moved to their place.
        """
        self.refuse_other_run()
        count = len(Ledger(self._imported, record.run).snapshots())
        self._write_samples(train, probes)
        try:
            move_tree(self._imported, self._snapshots)
        except OSError as error:
            raise unwritable(self._snapshots, error) from error
        self._write(record.model_copy(update={"snapshots": count}))

    def _write_samples(self, train: SampleTable, probes: SampleTable) -> None:
        write_bytes(self._table("train"), as_lines(train.rows()))
        write_bytes(self._table("probes"), as_lines(probes.rows()))

    def refuse_other_run(self) -> None:
        """Refuse a directory that holds a run.

        Raises:
            TracInError: it does, or what is left of one.
        """
        if not self.holds_run and self._snapshots.exists():
            raise TracInError(
                f"{self._record} is missing, but {self._snapshots} is there, so this was the directory of a run. Restore the "
                "file, delete the folder, or choose another `dirpath`."
            )
        if self.holds_run:
            held = self.record()
            raise TracInError(
                f"{self.path} holds another run ({held.run}: {held.train.count} train samples, {held.probes.count} probes, "
                f"{len(self.ledger.snapshots())} snapshots). Choose another `dirpath`, delete that folder, or resume its fit "
                "with `ckpt_path`."
            )

    def resume(self, record: RunRecord, step: int) -> None:
        """Go on with this directory's run after that optimizer step; later snapshots are dropped.

        Raises:
            TracInError: the run it holds differs; the message names the difference.
        """
        held = self.record()
        for name, ours, theirs in differences(record, held):
            raise TracInError(
                f"{self.path} holds a run with {name} {theirs}, but this fit has {ours}; scores of both cannot be mixed. "
                "Use the settings and data of that run, or another `dirpath`."
            )
        snapshots = self.ledger.snapshots()
        self._write(held.model_copy(update={"snapshots": None}))
        for snapshot in snapshots:
            if snapshot.step > step:  # first: what a kill leaves, a later snapshot could take for its own
                self.discard(snapshot.name)
        self.ledger.cut_back(step)

    def end(self) -> None:
        """Note that the fit has ended, with as many snapshots as there are now."""
        count = len(self.ledger.snapshots())
        self._write(self.record().model_copy(update={"snapshots": count}))

    def write_representations(self, train: Tensor, probes: Tensor) -> None:
        """Write the fitted model's own sentence representations: [samples, width] each."""
        write_tensors(self.representations, {"train": train, "probes": probes}, self._owner_of_results)

    def read_representations(self) -> tuple[Tensor, Tensor]:
        """The fitted model's own sentence representations, of the train samples and of the probes.

        Raises:
            TracInError: the run has none, or they are damaged.
        """
        remedy = "attribute the run again to have it computed, or do without this baseline"
        stored = read_tensors(self.representations, remedy, self._owner_of_results)
        return stored["train"], stored["probes"]

    @property
    def _owner_of_results(self) -> str:
        return f"{self.record().run}/results"
