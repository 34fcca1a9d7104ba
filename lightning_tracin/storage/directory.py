"""A run directory: the paths of its parts, and the record of its contents.

`run.json` is written when the fit starts, after the tables of samples and before the first snapshot, so a folder without it and
without snapshots holds no run. A fit resumes only in a directory whose record equals its own in everything that scores depend on.
The record is written again when the fit ends, when it resumes, when a pass is checked and when probes are added. `results` is
derived from the rest and can be recreated; only its representations are read. Writers hold the lock (`lock`); readers need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from torch import Tensor

from lightning_tracin.config import SCALED
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.factors import FactorStore
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

    The record, the ledger and the tables of samples are cached, and updated by everything that this object writes. Call `reload`
    after another process has written.

    Args:
        path: the run directory.

    Attributes:
        results: folder of tables and figures.
        representations: file of the fitted model's own sentence representations.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, path / "results"
        self.representations = self.results / "representations.safetensors"
        self._record, self._snapshots, self._imported = path / "run.json", path / "snapshots", path / "snapshots.partial"
        self.reload()

    def reload(self) -> None:
        """Drop the cache, so that files are read again."""
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

    def follows_steps(self, metric: str) -> bool:
        """Whether gradients in this metric (a preconditioner, or "none") are those of the optimizer's steps at every snapshot.

        Scaled ones are by what Adam keeps; others are where the fit's steps are rates times gradients, as in plain SGD.
        """
        if metric in ("none", "fisher"):
            return all(snapshot.record.plain_steps for snapshot in self.ledger.snapshots())
        return metric in SCALED

    def import_ledger(self, run: str) -> Ledger:
        """An empty ledger in a temporary folder, for importing snapshots before the run starts; see `start_imported`.

        Args:
            run: identity of the future run.
        """
        remove_tree(self._imported)  # leftovers of a killed import
        return Ledger(self._imported, run)

    @property
    def holds_run(self) -> bool:
        """Whether the directory holds a run."""
        return self._record.exists()

    def record(self) -> RunRecord:
        """The content of `run.json`.

        Raises:
            TracInError: there is no run, or its record is damaged.
        """
        if self._read is None:
            self._read = read_record(self._record, RunRecord)
        return self._read

    def _write(self, record: RunRecord) -> None:
        write_record(self._record, record)
        if self._read is not None and self._read.snapshots != record.snapshots:
            self._opened = None  # the ledger checks this number
        self._read = record

    def _update(self, **changes: object) -> None:
        self._write(self.record().model_copy(update=changes))

    def samples(self, role: Literal["train", "probes"]) -> SampleTable:
        """The table of train samples or of probes, including added probes.

        Raises:
            TracInError: it is missing, damaged, or of another run.
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
            # a file with other bytes but the same contents is fine
            found = Samples(count=len(table), sha256=sha256) if sha256 == expected.sha256 else known_samples(table)
        except (KeyError, TypeError) as error:
            raise TracInError(f"{path} is damaged (no {error}); restore the file.") from error
        except ValidationError:  # no samples at all
            found = None
        if found != expected:
            raise TracInError(f"{path} is damaged or of another run: it differs from what run.json says; restore the file.")
        return table

    def ingredients(self, snapshot: Snapshot, columns: int) -> IngredientStore:
        """The ingredients of one snapshot.

        Args:
            snapshot: a snapshot of the ledger.
            columns: number of products stored for each train sample: one for each probe, or for each sum of probes.
        """
        record, folder = self.record(), self.path / "ingredients" / snapshot.name
        return IngredientStore(folder, record.train.count, columns, f"{record.run}/ingredients/{snapshot.name}")

    def features(self, snapshot: Snapshot, adding: int = 0) -> FeatureStore:
        """The projected features of one snapshot.

        Args:
            snapshot: a snapshot of the ledger.
            adding: number of probes that are being added and are not in the record yet.
        """
        record = self.record()
        probes = record.probes.count + sum(added.count for added in record.added_probes) + adding
        additions = len(record.added_probes) + (adding > 0)
        owner = f"{record.run}/features/{snapshot.name}"
        return FeatureStore(self.path / "features" / snapshot.name, record.train.count, probes, additions, owner)

    def factors(self, snapshot: Snapshot) -> FactorStore:
        """The eigenbases and scales of one snapshot."""
        return FactorStore(self.path / "factors" / snapshot.name, f"{self.record().run}/factors/{snapshot.name}")

    def discard(self, name: str) -> None:
        """Delete everything computed from the snapshot of this name, by any method."""
        checks = self.record().spot_checks
        if name in checks:
            self._update(spot_checks={other: check for other, check in checks.items() if other != name})
        for folder in [folder for folder in self.path.glob(f"*/{name}") if folder.parent != self._snapshots]:
            remove_tree(folder)

    def note_check(self, name: str, check: SpotCheck) -> None:
        """Record the result of the check of a snapshot's products."""
        self._update(spot_checks={**self.record().spot_checks, name: check})

    def note_loss(self, loss: str, coverage: Mapping[str, tuple[int, int]], deviation: float | None) -> None:
        """Record what a sharded fit could not look at: see `RunRecord`."""
        self._update(loss=loss, coverage={rule: tuple(counted) for rule, counted in coverage.items()}, deviation=deviation)

    def _table(self, role: str) -> Path:
        return self.path / "samples" / f"{role}.jsonl"

    def _added(self, number: int) -> Path:
        return self.path / "samples" / f"probes-added{number:04d}.jsonl"

    def add(self, probes: SampleTable) -> None:
        """Make probes, whose features are already stored, part of the run."""
        added = self.record().added_probes
        write_bytes(self._added(len(added)), as_lines(probes.rows()))
        self._update(added_probes=(*added, known_samples(probes)))
        self._tables.pop("probes", None)

    def start(self, record: RunRecord, train: SampleTable, probes: SampleTable) -> None:
        """Make this the directory of a new run.

        Raises:
            TracInError: it already holds a run.
        """
        self.refuse_other_run()
        self._write_samples(train, probes)
        self._write(record)

    def start_imported(self, record: RunRecord, train: SampleTable, probes: SampleTable) -> None:
        """Make this the directory of a run whose snapshots are all in `import_ledger`.

        Raises:
            TracInError: it already holds a run, or the snapshots cannot be moved.
        """
        self.refuse_other_run()
        count = len(Ledger(self._imported, record.run).snapshots())
        self._write_samples(train, probes)
        try:
            move_tree(self._imported, self._snapshots)
        except OSError as error:
            raise unwritable(self._snapshots, error) from error
        try:
            self._write(record.model_copy(update={"snapshots": count}))
        except TracInError:
            remove_tree(self._snapshots)  # without a record they would block the next import
            raise

    def _write_samples(self, train: SampleTable, probes: SampleTable) -> None:
        write_bytes(self._table("train"), as_lines(train.rows()))
        write_bytes(self._table("probes"), as_lines(probes.rows()))

    @property
    def is_used(self) -> bool:
        """Whether the directory holds a run, or the remains of one."""
        return self.holds_run or self._snapshots.exists()

    def clear(self) -> None:
        """Delete the run: everything that this package writes, and no other file. `run.json` goes last."""
        for name in ("snapshots", "snapshots.partial", "ingredients", "means", "features", "factors", "samples", "results"):
            remove_tree(self.path / name)
        self._record.unlink(missing_ok=True)
        self.reload()

    def refuse_other_run(self) -> None:
        """Refuse a directory that is in use.

        Raises:
            TracInError: it holds a run, or the remains of one.
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
                f"{len(self.ledger.snapshots())} snapshots). Choose another `dirpath`, replace it with `overwrite=True`, or "
                "resume its fit with `ckpt_path`."
            )

    def resume(self, record: RunRecord, step: int) -> None:
        """Continue this directory's run after an optimizer step, and drop later snapshots.

        Raises:
            TracInError: the directory holds a different run; the message names the difference.
        """
        held, snapshots = self.record(), self.ledger.snapshots()
        sizes = {snapshot.record.elements for snapshot in snapshots}  # differ if parameters were unfrozen in the fit
        for name, ours, theirs in differences(record, held):
            if name == "elements" and ours in sizes:
                continue
            raise TracInError(
                f"{self.path} holds a run with {name} {theirs}, but this fit has {ours}; scores of both cannot be mixed. "
                "Resume with the settings and data of that run, or choose another `dirpath` for a run that begins after step "
                f"{step}."
            )
        kept = held.options.keep_snapshots and record.options.keep_snapshots  # False: some are light
        options = record.options.model_copy(update={"keep_snapshots": kept})
        self._update(snapshots=None, options=options, averaging=record.averaging or held.averaging)
        if record.loss and not held.loss:
            self.note_loss(record.loss, record.coverage, record.deviation)
        for snapshot in snapshots:
            if snapshot.step > step:  # before the snapshot: after a kill, a later snapshot of that name could use the leftovers
                self.discard(snapshot.name)
        self.ledger.cut_back(step)

    def end(self) -> None:
        """Record that the fit has ended, with the current number of snapshots."""
        self._update(snapshots=len(self.ledger.snapshots()))

    def write_representations(self, train: Tensor, probes: Tensor) -> None:
        """Write the fitted model's own sentence representations: [samples, width] each."""
        write_tensors(self.representations, {"train": train, "probes": probes}, self._owner_of_results)

    def read_representations(self) -> tuple[Tensor, Tensor]:
        """The fitted model's own sentence representations, of the train samples and of the probes: [samples, width] each.

        Raises:
            TracInError: the run has none, or they are damaged.
        """
        remedy = "attribute the run again to have it computed, or do without this baseline"
        stored = read_tensors(self.representations, remedy, self._owner_of_results)
        return stored["train"], stored["probes"]

    @property
    def _owner_of_results(self) -> str:
        return f"{self.record().run}/results"
