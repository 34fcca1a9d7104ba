"""What `run.json` says of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any, Literal

from pydantic import Field

from lightning_tracin.config import Choices, Settings, _Record
from lightning_tracin.storage.files import (
    as_lines,
)
from lightning_tracin.storage.sample_table import SampleTable

_PACKAGES = ("lightning-tracin", "torch", "pytorch-lightning", "transformers", "datasets")


class Samples(_Record):
    """What is known of a table of samples."""

    count: int = Field(ge=1)
    sha256: str = Field(description="of the table's file")


class SpotCheck(_Record):
    """How far what was computed of a snapshot is from single samples' gradients by plain autograd; see `spot_check`."""

    pairs: int = Field(ge=1, description="pairs of a train sample and a probe that were compared")
    deviation: float = Field(ge=0, description="largest difference, relative to the gradients' norms")

    def and_also(self, other: SpotCheck) -> SpotCheck:
        """Both checks as one."""
        return SpotCheck(pairs=self.pairs + other.pairs, deviation=max(self.deviation, other.deviation))


class RunRecord(_Record):
    """What `run.json` says."""

    format: Literal[2] = 2
    run: str = Field(pattern=r"^\w+$", description="identity of the fit")
    settings: Settings
    choices: Choices = Choices()
    loss: str = Field(description="per_sample_loss, or training_step and its reduction")
    train: Samples
    probes: Samples
    added_probes: tuple[Samples, ...] = Field(default=(), description="probes that were added later, in order")
    parameters: int = Field(description="number of scored parameters")
    elements: int = Field(description="number of their elements")
    kept_elements: int | None = Field(default=None, description="how many of these the mask leaves; null = no mask")
    coverage: dict[str, tuple[int, int]] = Field(description="rule -> parameters and elements that it covers")
    versions: dict[str, str]
    averaging: str | None = Field(default=None, description="callback that averages weights; snapshots hold the trained ones")
    snapshots: int | None = Field(default=None, description="how many there were when the fit ended; null = it has not ended")
    spot_checks: dict[str, SpotCheck] = Field(default={}, description="snapshot -> what a check of its products has found")


def package_versions() -> dict[str, str]:
    """Versions of what computed the scores."""
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in _PACKAGES}
    return {"python": platform.python_version()} | {name: found[0].version for name, found in installed.items() if found}


def known_samples(table: SampleTable) -> Samples:
    """What a run's record says of a table of samples."""
    return Samples(count=len(table), sha256=hashlib.sha256(as_lines(table.rows())).hexdigest())


def differing_settings(ours: Settings, theirs: Settings) -> list[tuple[str, Any, Any]]:
    """Names of the settings that differ, with both values."""
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in Settings.model_fields]
    return [(name, a, b) for name, a, b in pairs if a != b]


def differences(ours: RunRecord, theirs: RunRecord) -> list[tuple[str, Any, Any]]:
    """Names of what two records disagree on, with both values: settings, and what identifies fit and samples."""
    pairs = differing_settings(ours.settings, theirs.settings)
    pairs += [(name, getattr(ours, name), getattr(theirs, name)) for name in ("run", "loss", "train", "probes", "elements")]
    return [(name, a, b) for name, a, b in pairs if a != b]
