"""What a run will cost, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_tracin.attribution.cost import in_words as duration
from lightning_tracin.attribution.method import Cost
from lightning_tracin.errors import TracInError, printable
from lightning_tracin.storage.filesystem import free_bytes
from lightning_tracin.storage.sample_table import SampleTable


@dataclass(frozen=True)
class Plan:
    """Sizes of a run, known before its fit starts."""

    train: SampleTable
    probes: SampleTable
    parameters: int  # number of scored parameters
    elements: int  # number of their elements
    coverage: Mapping[str, tuple[int, int]]  # rule -> parameters and elements that it covers
    kept: int | None  # how many of these the mask leaves; None: there is no mask
    weights_bytes: int  # of one snapshot on disk
    ingredients_bytes: int  # of one snapshot's ingredients (or features) on disk
    cost: Cost | None  # of one snapshot's pass; None where none is planned
    snapshots: int | None  # expected number; None where the fit's length is not known

    @property
    def bytes_needed(self) -> int:
        """On disk, for all snapshots (for one, where their number is not known)."""
        return (self.weights_bytes + self.ingredients_bytes) * (1 if self.snapshots is None else self.snapshots)

    def described(self, folder: Path) -> str:
        """The plan in one paragraph, for the terminal."""
        number = "an unknown number of" if self.snapshots is None else str(self.snapshots)
        by_rule = ", ".join(f"{rule} {elements:,}" for rule, (_, elements) in self.coverage.items())
        free = free_bytes(folder)
        total = "each" if self.snapshots is None else "in all" if free is None else f"in all, {in_words(free)} free"
        return printable(
            f"TracIn: {len(self.train)} train samples ({_counted(self.train)}) x {len(self.probes)} probes "
            f"({_counted(self.probes)}), scored over {self.elements:,} elements of {self.parameters} parameters (all that were "
            f"chosen: {by_rule}){self._described_mask()}; {number} snapshots in {folder}, weights "
            f"{in_words(self.weights_bytes)} and ingredients {in_words(self.ingredients_bytes)} each "
            f"({in_words(self.bytes_needed)} {total}){self._described_time()}."
        )

    def _described_mask(self) -> str:
        return "" if self.kept is None else f", of which the mask leaves {self.kept:,}"

    def _described_time(self) -> str:
        if self.cost is None:
            return ""
        seconds = self.cost.seconds
        times = "" if self.snapshots in (None, 1) else f", {duration(seconds * (self.snapshots or 1))} in all"
        held = f"holds {in_words(self.cost.held_bytes)} in memory and " if self.cost.held_bytes else ""
        return f"; influence {held}takes about {duration(seconds)} for a snapshot{times} (by the first batches)"

    def require_disk(self, folder: Path) -> None:
        """Refuse a disk that cannot hold the run.

        Raises:
            TracInError: it cannot.
        """
        free = free_bytes(folder)
        if free is not None and self.bytes_needed > free:
            raise TracInError(
                f"The disk of {folder} has {in_words(free)} free, but {self.snapshots or 1} snapshots need "
                f"{in_words(self.bytes_needed)}; take fewer of them (`every_n_epochs=...`), drop their weights "
                "(`when='snapshot', keep_snapshots=False`), or choose another `dirpath`."
            )


def _counted(table: SampleTable) -> str:
    return ", ".join(f"{language} {count}" for language, count in table.counts().items())


def in_words(size: float) -> str:
    """A number of bytes, readable."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
