"""The account of a fit on disk: by how much each train group lowered the loss of each probe, window by window.

    contributions/account.json               what the account is of: grouping, probes, steps that are accounted
    contributions/train.jsonl                the train samples, with `samples=True`
    contributions/windows/000012.safetensors the numbers of a window
    contributions/windows/000012.json        its steps and sources; a window without this file does not exist
    contributions/samples.safetensors        each train sample's own contributions, with `samples=True`

Windows are numbered from 1 and written in order. A resumed fit drops those that end after the step that it goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import (
    as_lines,
    read_lines,
    read_record,
    read_tensors,
    write_bytes,
    write_record,
    write_tensors,
)
from lightning_tracin.storage.filesystem import remove_tree
from lightning_tracin.storage.sample_table import SampleTable, table_of_rows

#: Sources of a change that are no group of train samples.
DECAY, MOMENTUM, UNDIVIDED = "decay", "momentum", "undivided"

#: All of them, in the order of tables.
OTHER_SOURCES = (DECAY, MOMENTUM, UNDIVIDED)


class _AccountFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AccountRecord(_AccountFile):
    """The content of `account.json`."""

    format: Literal[1] = 1
    account: str = Field(pattern=r"^\w+$", description="identity of the fit")
    by: str = Field(description="what the groups are: `language`, or the name of a column")
    groups: tuple[str, ...] = Field(min_length=1, description="group of each probe that is measured")
    items: tuple[str | None, ...] = Field(description="item of each probe that is measured")
    queries: tuple[int, ...] = Field(min_length=1, description="those of them whose loss is split by train groups")
    every_n_steps: int = Field(default=1, ge=1, description="one of this many optimizer steps is accounted")
    loss: str = Field(description="per_sample_loss, or training_step and its reduction")
    approximate: str | None = Field(default=None, description="why the split is approximate; null = it is exact")
    undivided: dict[str, int] = Field(
        default={}, description="parameter -> elements, for those whose gradient is not split by group"
    )
    began_at: int = Field(default=0, ge=0, description="optimizer steps before the part of the fit that is accounted")
    ended: bool = Field(default=False, description="whether the fit has ended")
    versions: dict[str, str] = {}


class WindowRecord(_AccountFile):
    """Which steps a window covers, and who changed the weights in it."""

    number: int = Field(ge=1)
    first_step: int = Field(ge=1, description="the first optimizer step in it")
    last_step: int = Field(ge=1, description="the last")
    accounted: int = Field(ge=0, description="how many of its steps were split by group")
    epoch: int = Field(ge=1, description="the epoch of the last step")
    sources: tuple[str, ...] = Field(description="columns of its numbers: train groups, and `decay`, `momentum`, `undivided`")
    is_group: tuple[bool, ...] = Field(description="which of them are train groups")
    samples: tuple[int, ...] = Field(description="train samples of each source in the accounted steps; 0 where it is no group")


@dataclass(frozen=True)
class Window:
    """A complete window.

    Attributes:
        record: its steps and sources.
        path: of its numbers.
        owner: identity of the account.
    """

    record: WindowRecord
    path: Path
    owner: str

    @cached_property
    def numbers(self) -> Mapping[str, Tensor]:
        """The numbers, all float64.

        - `nats` [queries, sources]: by how much each source lowered the loss of each query.
        - `before`, `after` [probes]: the losses at both ends; NaN for those that were not measured there.

        Raises:
            TracInError: the file is missing or damaged.
        """
        return read_tensors(self.path, "restore it from a copy", self.owner)


class AccountStore:
    """The files of one account.

    Args:
        run: the run directory, whose folder `contributions` they are in.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "contributions"
        self._record, self._windows = self.folder / "account.json", self.folder / "windows"
        self._train, self._samples = self.folder / "train.jsonl", self.folder / "samples.safetensors"

    @property
    def is_there(self) -> bool:
        """Whether the directory holds an account."""
        return self._record.exists()

    def record(self) -> AccountRecord:
        """The content of `account.json`.

        Raises:
            TracInError: there is none, or it is damaged.
        """
        return read_record(self._record, AccountRecord)

    def write(self, record: AccountRecord) -> None:
        """Write `account.json`."""
        write_record(self._record, record)

    def clear(self) -> None:
        """Delete the account; `account.json` goes first, so that what is left is no account."""
        self._record.unlink(missing_ok=True)
        remove_tree(self._windows)
        for path in (self._train, self._samples):
            path.unlink(missing_ok=True)

    def windows(self) -> list[Window]:
        """All complete windows, in order.

        Raises:
            TracInError: one is missing between two others, or its record is damaged.
        """
        owner, found = self.record().account, []
        for number, path in enumerate(sorted(self._windows.glob("*.json")), 1):
            record = read_record(path, WindowRecord)
            if record.number != number or path.stem != _name(number):
                raise TracInError(f"{self._windows / _name(number)}.json is missing; restore it from a copy.")
            found.append(Window(record, path.with_suffix(".safetensors"), owner))
        return found

    def append(self, record: WindowRecord, numbers: Mapping[str, Tensor]) -> None:
        """Write a window: its numbers first, then its record."""
        path = self._windows / f"{_name(record.number)}.safetensors"
        write_tensors(path, numbers, self.record().account)
        write_record(path.with_suffix(".json"), record)

    def measured_after(self, losses: Tensor) -> None:
        """Replace the losses at the end of the last window, if there is one: all probes are measured when the fit ends."""
        for window in self.windows()[-1:]:
            self.append(window.record, {**window.numbers, "after": losses})

    def cut_back(self, windows: int) -> None:
        """Delete all windows after the first `windows`, the last one first.

        Raises:
            TracInError: there are fewer.
        """
        held = self.windows()
        if len(held) < windows:
            raise TracInError(
                f"{self._windows} holds {len(held)} windows, but the checkpoint belongs to an account of {windows}; restore the "
                "others from a copy."
            )
        self._samples.unlink(missing_ok=True)  # they are written when the fit ends
        for window in reversed(held[windows:]):
            window.path.with_suffix(".json").unlink(missing_ok=True)
            window.path.unlink(missing_ok=True)

    def refuse_other(self, record: AccountRecord) -> None:
        """Check that an account goes on with the same probes and groups.

        Raises:
            TracInError: it does not; the message names the difference.
        """
        held = self.record()
        words = {
            "by": "groups by another column",
            "groups": "other probes, or other groups of them",
            "items": "probes with other items",
            "queries": "other probes whose loss is split",
            "every_n_steps": "another every_n_steps",
            "loss": "another loss",
        }
        for name, difference in words.items():
            if getattr(held, name) != getattr(record, name):
                raise TracInError(
                    f"The account in {self.folder} was begun with {difference} than this fit has; resume it with the same probes "
                    "and options, or choose another `dirpath` for an account that begins here."
                )

    def write_train(self, table: SampleTable) -> None:
        """Write the train samples."""
        write_bytes(self._train, as_lines(table.rows()))

    def train(self) -> SampleTable:
        """The train samples.

        Raises:
            TracInError: the fit was not accounted with `samples=True`, or the file is damaged.
        """
        self._require_samples(self._train)
        return table_of_rows(read_lines(self._train)[1])

    def write_samples(self, nats: Tensor) -> None:
        """Write each train sample's own contributions: float32 [train samples, probe groups in alphabetical order]."""
        write_tensors(self._samples, {"nats": nats}, self.record().account)

    def samples(self) -> Tensor:
        """See `write_samples`.

        Raises:
            TracInError: the fit was not accounted with `samples=True`, or it has not ended.
        """
        self._require_samples(self._samples)
        return read_tensors(self._samples, "restore it from a copy", self.record().account)["nats"]

    def _require_samples(self, path: Path) -> None:
        if not path.exists():
            raise TracInError(
                f"{path} is missing: contributions of single train samples are kept with `ContributionCallback(samples=True)`, "
                "and written when the fit ends."
            )


def _name(number: int) -> str:
    return f"{number:06d}"
