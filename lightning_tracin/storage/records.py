"""The schema of `run.json`, and how two records differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lightning_tracin.config import SCALED, Options, Stored
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import as_lines
from lightning_tracin.storage.sample_table import SampleTable

_PACKAGES = ("lightning-tracin", "torch", "pytorch-lightning", "transformers", "datasets")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Samples(_Record):
    """Identifies a table of samples."""

    count: int = Field(ge=1)
    sha256: str = Field(description="digest of the table's file")


class SpotCheck(_Record):
    """How far the stored products of a snapshot are from plain autograd on single samples; see `spot_check`."""

    pairs: int = Field(ge=1, description="pairs of a train sample and a probe that were compared")
    deviation: float = Field(ge=0, description="largest difference, relative to the gradients' norms")

    def and_also(self, other: SpotCheck) -> SpotCheck:
        """Both checks as one.

        Example:
            >>> SpotCheck(pairs=2, deviation=1e-6).and_also(SpotCheck(pairs=3, deviation=1e-5))
            SpotCheck(pairs=5, deviation=1e-05)
        """
        return SpotCheck(pairs=self.pairs + other.pairs, deviation=max(self.deviation, other.deviation))


class RunRecord(_Record):
    """The content of `run.json`."""

    format: Literal[3] = 3
    run: str = Field(pattern=r"^\w+$", description="identity of the fit")
    options: Options = Field(description="options of the callback")
    mask: str | None = Field(default=None, description="sha256 of the elements that the mask keeps; null = all elements count")
    languages_given: bool = Field(default=False, description="whether the train samples' languages were given as a list")
    languages_of_probes_given: bool = Field(default=False, description="whether the probes' languages were given as a list")
    loss: str = Field(description="per_sample_loss, or training_step and its reduction; empty = not checked yet (a sharded fit)")
    train: Samples
    probes: Samples
    added_probes: tuple[Samples, ...] = Field(default=(), description="probes that were added later, in order")
    parameters: int = Field(description="number of scored parameters")
    elements: int = Field(description="number of their elements")
    kept_elements: int | None = Field(default=None, description="how many of these the mask keeps; null = no mask")
    coverage: dict[str, tuple[int, int]] = Field(description="rule -> number of parameters and elements that it covers")
    versions: dict[str, str]
    averaging: str | None = Field(default=None, description="callback that averages weights; snapshots hold the trained ones")
    deviation: float | None = Field(
        default=None,
        ge=0,
        description="largest difference between a batch and its samples one at a time in the check before the fit, in losses and "
        "gradients, relative to them; null = not stored",
    )
    began_at: int = Field(default=0, ge=0, description="optimizer steps before the part of the fit that the snapshots cover")
    estimated_rates: str | None = Field(default=None, description="which learning rates of imported snapshots are estimates")
    not_compared: tuple[str, ...] = Field(default=(), description="what imported checkpoints were not compared by")
    snapshots: int | None = Field(default=None, description="how many there were when the fit ended; null = it has not ended")
    spot_checks: dict[str, SpotCheck] = Field(default={}, description="snapshot -> result of the check of its products")

    @property
    def known_loss(self) -> str:
        """The loss.

        Raises:
            TracInError: nobody has looked at it yet.
        """
        if not self.loss:
            raise TracInError(
                f"The run {self.run} is of a sharded fit, whose loss is checked when its influence is computed; call `attribute` "
                "first."
            )
        return self.loss

    @property
    def uncovered(self) -> str | None:
        """What the run does not know of its fit, in one sentence; None if it covers the whole fit."""
        if self.began_at == 0:
            return None
        return (
            f"The run covers its fit from optimizer step {self.began_at + 1} on. Snapshots of the {self.began_at} steps before "
            "are missing, because the fit was resumed without them; what was learned in these steps is not counted."
        )

    @property
    def cautions(self) -> tuple[str, ...]:
        """What readers of the run's scores have to know, in sentences."""
        unknown = None
        if self.not_compared:
            unknown = f"Its checkpoints were taken for those of one fit without a look at {', '.join(self.not_compared)}."
        coarse = None
        if self.options.dtype == "bfloat16" and self.options.preconditioner in SCALED:
            coarse = (
                "Its scores are mostly rounding: Adam's metric scales up gradients that are smaller than rounding in bfloat16."
            )
        return tuple(one for one in (self.uncovered, self.estimated_rates, unknown, coarse) if one is not None)

    @model_validator(mode="before")
    @classmethod
    def _of_version_2(cls, values: Any) -> Any:
        """Convert the format of versions before 0.3, which had the options in two parts and the method by its name."""
        if not isinstance(values, dict) or values.get("format") != 2:
            return values
        values = dict(values)
        settings, choices = dict(values.pop("settings")), dict(values.pop("choices", {}))
        values["mask"] = settings.pop("mask", None)
        for name in ("languages_given", "languages_of_probes_given"):
            values[name] = choices.pop(name, False)
        means = settings.pop("method") == "means"
        return {**values, "format": 3, "options": {"when": "fit_end", **settings, **choices, "language_means": means}}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute the scores."""
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in _PACKAGES}
    return {"python": platform.python_version()} | {name: found[0].version for name, found in installed.items() if found}


def known_samples(table: SampleTable) -> Samples:
    """The entry in a run's record that identifies a table of samples.

    Example:
        >>> known = known_samples(SampleTable(("de",), (None,), ("Hallo",), (None,)))
        >>> known.count, known.sha256[:8]
        (1, 'd5e75be6')
    """
    return Samples(count=len(table), sha256=hashlib.sha256(as_lines(table.rows())).hexdigest())


#: Options that decide when snapshots are taken. They differ within a run whose fit was resumed with others.
SCHEDULE = ("every_n_epochs", "every_n_train_steps")


def differing_options(ours: Options, theirs: Options) -> list[tuple[str, Any, Any]]:
    """The options that stored products depend on and that differ: name, our value, their value.

    Example:
        >>> differing_options(Options(batch_size=16), Options(batch_size=8))
        [('batch_size', 16, 8)]
    """
    names = [name for name in Stored.model_fields if name not in SCHEDULE]
    pairs = _differing(ours, theirs, ("method_name", *names))
    return [(name.removesuffix("_name"), a, b) for name, a, b in pairs if "auto" not in (a, b)]  # whatever the fit's is


def differences(ours: RunRecord, theirs: RunRecord) -> list[tuple[str, Any, Any]]:
    """Options, and the identity of the fit and its samples, that differ between two records: name, our value, their value."""
    names = ("mask", "run", "loss", "train", "probes", "elements")
    pairs = [one for one in _differing(ours, theirs, names) if one[0] != "loss" or "" not in one[1:]]  # not looked at yet
    return differing_options(ours.options, theirs.options) + pairs


def _differing(ours: BaseModel, theirs: BaseModel, names: Iterable[str]) -> list[tuple[str, Any, Any]]:
    pairs = ((name, getattr(ours, name), getattr(theirs, name)) for name in names)
    return [(name, a, b) for name, a, b in pairs if a != b]
