"""Every option, defined and validated once."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from lightning_tracin.errors import TracInError

When = Literal["fit_end", "snapshot", "never"]
Method = Literal["exact", "means", "projected"]
Precision = Literal["float32", "float64", "bfloat16"]
Similarity = Literal["cosine", "dot", "relatif"]
Weighting = Literal["uniform", "learning_rate"]
Preconditioner = Literal["adam", "fisher"]
#: What a user may ask for: one of the preconditioners, or outright none.
Asked = Preconditioner | Literal["none"]


Sign = Literal["positive", "negative"]
Measure = Literal["share", "mass", "mean"]
#: Whether features are whitened all together, or layer by layer (F without its blocks between layers).
Blocks = Literal["whole", "layer"]


#: The ridge, as a part of F's trace: the middle of the range that was best in `docs/lds.md`, whatever the number of features.
DAMPING = 0.0025


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a setting that is not among its choices.

    Raises:
        TracInError: it is not.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise TracInError(f"{name} should be one of {', '.join(map(repr, allowed))}, but is {value!r}.")


@dataclass(frozen=True)
class SampleColumns:
    """Where in a dataset the facts about its samples stand.

    Args:
        language: name of the column (or attribute of the dataset) with each sample's language.
        item: name of the column whose value parallel samples share, or None.
        text: names of the columns to show as text; None takes every column of strings that is not used otherwise.
        label: name of the column with the label; None takes `label` or `labels` where there is one.
    """

    language: str = "language"
    item: str | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None


@dataclass(frozen=True)
class View:
    """Which of a run's scores are shown.

    Raises:
        TracInError: a value is not among its choices.
    """

    top_k: int = 100
    similarity: Similarity = "cosine"
    weighting: Weighting = "uniform"
    measure: Measure = "share"  # "mean" where the run holds language means only

    @property
    def described(self) -> str:
        """What the curves show."""
        return f"share of the top {self.top_k} proponents" if self.measure == "share" else f"mean influence ({self.similarity})"

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, Similarity)
        check_choice("weighting", self.weighting, Weighting)
        check_choice("measure", self.measure, Measure)
        if self.top_k < 1:
            raise TracInError(f"top_k should be 1 or more, but is {self.top_k}.")


@dataclass(frozen=True)
class Scoring:
    """Which score: DESIGN's `similarity` and `weighting`, and the inner product that both are taken in.

    Raises:
        TracInError: a value is not among its choices.
    """

    similarity: Similarity = "cosine"
    weighting: Weighting = "uniform"
    preconditioner: Asked | None = None  # None: as the run was made
    damping: float = DAMPING
    blocks: Blocks = "whole"

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, Similarity)
        check_choice("weighting", self.weighting, Weighting)
        check_choice("blocks", self.blocks, Blocks)
        if self.preconditioner is not None and self.preconditioner != "none":
            check_choice("preconditioner", self.preconditioner, Preconditioner)
        if not self.damping > 0:
            raise TracInError(f"damping should be above 0, but is {self.damping}.")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Record):
    """What the scores depend on, beside the fit itself."""

    every_n_epochs: int | None
    every_n_train_steps: int | None
    parameters: tuple[str, ...] | None = Field(description="patterns of the scored parameters' names; null = all trainable")
    dtype: Precision
    batch_size: int
    method: Method = Field(description="what is stored: of every probe, of the languages' means, or projected features")
    projection_dim: int | None = Field(description="numbers stored of a sample; null = nothing is projected")
    preconditioner: Preconditioner | None = Field(description="of the stored products (adam), or of what is shown (fisher)")
    per_layer: bool = Field(description="whether products are kept by layer")
    mask: str | None = Field(default=None, description="sha256 of what the mask keeps; null = all elements count")


class Choices(_Record):
    """What else the callback was told: which samples, and what is shown. Settings are what scores depend on."""

    language_column: str = "language"
    item_column: str | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    probe_languages: tuple[str, ...] | None = None
    max_probes_per_language: int | None = 50
    languages_given: bool = Field(default=False, description="whether the train samples' languages were given outright")
    languages_of_probes_given: bool = Field(default=False, description="whether the probes' languages were given outright")
    top_k: int = 100
    similarity: Similarity = "cosine"
    weighting: Weighting = "uniform"
    memory_budget: int | None = None


@dataclass(frozen=True)
class Options:
    """What a user chose; `TracInCallback` describes each.

    Raises:
        TracInError: a value is out of range, or two contradict each other.
    """

    columns: SampleColumns
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
