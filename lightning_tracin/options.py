"""A callback's settings, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_tracin.directory import Choices, Method, Precision, Settings
from lightning_tracin.errors import TracInError
from lightning_tracin.influence import Preconditioner, check_choice
from lightning_tracin.results import View
from lightning_tracin.tables import Columns

When = Literal["fit_end", "snapshot", "never"]


@dataclass(frozen=True)
class Options:
    """What a user chose; `TracInCallback` describes each.

    Raises:
        TracInError: a value is out of range, or two contradict each other.
    """

    columns: Columns
    view: View
    probes: Any
    probe_languages: list[str] | None
    max_probes_per_language: int | None
    languages: list[str] | None
    languages_of_probes: list[str] | None
    every_n_epochs: int | None
    every_n_train_steps: int | None
    when: When
    parameters: list[str] | None
    keep_snapshots: bool
    batch_size: int
    dtype: Precision
    memory_budget: int | None
    per_layer: bool
    language_means: bool
    projection_dim: int | None
    preconditioner: Preconditioner | None
    mask: Path | None
    dry_run: bool

    def __post_init__(self) -> None:
        check_choice("when", self.when, When)
        check_choice("dtype", self.dtype, Precision)
        for name in ("probe_languages", "languages", "languages_of_probes", "parameters"):
            if isinstance(getattr(self, name), str):
                raise TracInError(f"{name} should be a list of strings, but is the string {getattr(self, name)!r}.")
        for name in (
            "every_n_epochs",
            "every_n_train_steps",
            "max_probes_per_language",
            "batch_size",
            "memory_budget",
            "projection_dim",
        ):
            _require_positive(name, getattr(self, name))
        if self.every_n_epochs is not None and self.every_n_train_steps is not None:
            raise TracInError("Give `every_n_epochs` or `every_n_train_steps`, not both.")
        if self.when == "never" and not self.keep_snapshots:
            raise TracInError("when='never' with keep_snapshots=False would keep nothing; drop one of the two.")
        if self.preconditioner is not None:
            check_choice("preconditioner", self.preconditioner, Preconditioner)
        if self.language_means and self.projection_dim is not None:
            raise TracInError("Give `language_means` or `projection_dim`, not both: means are exact and need no projection.")
        if self.preconditioner == "fisher" and self.projection_dim is None:
            raise TracInError("preconditioner='fisher' whitens projected features; give a `projection_dim` too, such as 4096.")
        if self.preconditioner == "adam" and (self.language_means or self.projection_dim is not None):
            raise TracInError(
                "preconditioner='adam' scales every element of a gradient, so it goes with exact influence only; leave out "
                "`language_means` and `projection_dim`."
            )
        if self.mask is not None and (self.language_means or self.projection_dim is not None):
            raise TracInError(
                f"mask={str(self.mask)!r} chooses elements of a gradient, so it goes with exact influence only; leave out "
                "`language_means` and `projection_dim`."
            )

    @property
    def method(self) -> Method:
        """How influence is computed."""
        return "means" if self.language_means else "projected" if self.projection_dim is not None else "exact"

    def settings(self, mask: str | None) -> Settings:
        """What the scores depend on, beside the fit itself.

        Args:
            mask: digest of the mask, if there is one.
        """
        return Settings(
            every_n_epochs=self.every_n_epochs,
            every_n_train_steps=self.every_n_train_steps,
            parameters=None if self.parameters is None else tuple(self.parameters),
            dtype=self.dtype,
            batch_size=self.batch_size,
            method=self.method,
            projection_dim=self.projection_dim,
            preconditioner=self.preconditioner,
            per_layer=self.per_layer,
            mask=mask,
        )

    @property
    def choices(self) -> Choices:
        """What else is needed to do the rest of a run's work later."""
        columns, view = self.columns, self.view
        return Choices(
            language_column=columns.language,
            item_column=columns.item,
            text_columns=columns.text,
            label_column=columns.label,
            probe_languages=None if self.probe_languages is None else tuple(self.probe_languages),
            max_probes_per_language=self.max_probes_per_language,
            languages_given=self.languages is not None,
            languages_of_probes_given=self.languages_of_probes is not None,
            top_k=view.top_k,
            similarity=view.similarity,
            weighting=view.weighting,
            memory_budget=self.memory_budget,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The data type in which influence is computed."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def writes_weights(self) -> bool:
        """Whether a snapshot's weights go to disk: to be kept, or until they are attributed."""
        return self.keep_snapshots or self.when != "snapshot"

    def scored(self, module: nn.Module) -> frozenset[str]:
        """Names of the parameters whose gradients are compared: the trainable ones that match the patterns.

        Raises:
            TracInError: there are none, or a pattern matches nothing.
        """
        trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        if not trainable:
            raise TracInError("The module has no trainable parameters, so there is no gradient to compare.")
        if self.parameters is None:
            return frozenset(trainable)
        for pattern in self.parameters:
            if not any(fnmatchcase(name, pattern) for name in trainable):
                raise TracInError(
                    f"The pattern {pattern!r} in `parameters` matches no trainable parameter; names are like {trainable[0]!r}."
                )
        return frozenset(name for name in trainable if any(fnmatchcase(name, pattern) for pattern in self.parameters))


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise TracInError(f"{name} should be 1 or more, but is {value}.")
