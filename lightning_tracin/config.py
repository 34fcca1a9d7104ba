"""Every option, defined, documented and validated once.

`TracInCallback` takes an `Options` field by field, the run's record stores it, and the rest of the package receives it whole. A
value that is not possible is a `TracInError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Self

from lightning_tracin.errors import TracInError

When = Literal["fit_end", "snapshot", "never"]
Precision = Literal["float32", "float64", "bfloat16"]
Similarity = Literal["cosine", "dot", "relatif"]
Weighting = Literal["uniform", "learning_rate"]
Preconditioner = Literal["adam", "fisher"]
Sign = Literal["positive", "negative"]
Measure = Literal["share", "mass", "mean"]

#: What a reader may ask for: one of the preconditioners, or explicitly none.
Asked = Literal["adam", "fisher", "none"]

#: Whether features are whitened all together, or layer by layer (F without its blocks between layers).
Blocks = Literal["whole", "layer"]

#: The ridge, as a part of F's trace: the middle of the range that was best in `docs/lds.md`, whatever the number of features.
DAMPING = 0.0025


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a value that is not among its choices.

    Raises:
        TracInError: it is not.

    Example:
        >>> check_choice("sign", "positive", Sign)
        >>> check_choice("sign", "both", Sign)
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: sign should be one of 'positive', 'negative', but is 'both'.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise TracInError(f"{name} should be one of {', '.join(map(repr, allowed))}, but is {value!r}.")


def _not_one_string(value: Any, info: ValidationInfo) -> Any:
    """Refuse a string where a list is expected: it would be read as a list of its letters."""
    if isinstance(value, str):
        raise TracInError(f"{info.field_name} should be a list of strings, but is the string {value!r}.")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_not_one_string)]
Positive = Annotated[int, Field(ge=1)]


class OptionGroup(BaseModel):
    """A frozen set of options.

    Raises:
        TracInError: a value is not possible, or there is no such option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _readable(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise TracInError(_sentence(cls, error)) from None

    def but(self, **changes: Any) -> Self:
        """The same options with other values for some; None changes nothing.

        Example:
            >>> View(top_k=10).but(top_k=None, similarity="dot")
            View(top_k=10, similarity='dot', weighting='uniform', measure='share')
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **given})


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with the first wrong option, in words."""
    first = error.errors()[0]
    name, value = str(first["loc"][0]) if first["loc"] else model.__name__, first["input"]
    if first["type"] == "extra_forbidden":
        return f"There is no option {name!r}; there are {', '.join(model.model_fields)}."
    if first["type"] == "literal_error":
        return f"{name} should be one of {first['ctx']['expected'].replace(' or ', ', ')}, but is {value!r}."
    if first["type"] == "greater_than_equal":
        return f"{name} should be {first['ctx']['ge']} or more, but is {value}."
    if first["type"] == "greater_than":
        return f"{name} should be above {first['ctx']['gt']:g}, but is {value}."
    return f"{name} has the value {value!r}: {first['msg']}."


class SampleColumns(OptionGroup):
    """Where a dataset keeps the facts about its samples."""

    language_column: str = Field(
        default="language", description="column (or attribute) of the dataset with each sample's language."
    )
    item_column: str | None = Field(default=None, description="column whose value parallel samples share.")
    text_columns: Names | None = Field(
        default=None, description="columns to show as text; default: all columns of strings that have no other use."
    )
    label_column: str | None = Field(default=None, description="column to show as label; default: `label` or `labels`.")


class ProbeChoice(OptionGroup):
    """Which samples of the probe loaders are the probes."""

    probe_languages: Names | None = Field(default=None, description="languages to probe; default: all that the probes have.")
    max_probes_per_language: Positive | None = Field(
        default=50,
        description="largest number of probes of a language (None: all); the same items in every language where parallel.",
    )


class Shown(OptionGroup):
    """Which scores tables, curves and pages show."""

    top_k: Positive = Field(default=100, description="number of proponents that count in what is logged.")
    similarity: Similarity = Field(default="cosine", description="of what is logged.")
    weighting: Weighting = Field(default="uniform", description="of what is logged.")


class View(Shown):
    """What is shown, with the measure that the run's method allows."""

    measure: Measure = "share"

    @property
    def described(self) -> str:
        """What the curves show."""
        return f"share of the top {self.top_k} proponents" if self.measure == "share" else f"mean influence ({self.similarity})"


class Scoring(OptionGroup):
    """Which score: similarity and weighting, and the inner product that both are taken in."""

    similarity: Similarity = "cosine"
    weighting: Weighting = "uniform"
    preconditioner: Asked | None = None  # None: as the run was made
    damping: float = Field(default=DAMPING, gt=0)
    blocks: Blocks = "whole"


class Stored(OptionGroup):
    """What the stored products depend on, beside the fit itself. A fit resumes only with the same values."""

    every_n_epochs: Positive | None = Field(
        default=None, description="snapshot at the end of every n-th epoch (default 1, unless `every_n_train_steps` is given)."
    )
    every_n_train_steps: Positive | None = Field(default=None, description="snapshot after every n optimizer steps instead.")
    parameters: Names | None = Field(
        default=None, description="glob patterns of parameter names; only these are scored. None: all trainable parameters."
    )
    dtype: Precision = Field(default="float32", description="precision of the attribution, whatever the fit's precision.")
    batch_size: Positive = Field(default=32, description="samples in one forward pass of the attribution.")
    language_means: bool = Field(
        default=False,
        description="compute only each train sample's mean influence on the probes of each language, at a cost that does not "
        "depend on the number of probes.",
    )
    projection_dim: Positive | None = Field(
        default=None,
        description="None computes exact products; else the number of values stored for each sample (seeded projections), so "
        "that new probes cost only themselves (`run.add_probes`).",
    )
    method: str | None = Field(
        default=None,
        description="name of a registered method of attribution. Default: `means` with `language_means`, `projected` with a "
        "`projection_dim`, else `exact`.",
    )
    preconditioner: Preconditioner | None = Field(
        default=None,
        description='`"adam"` takes every product under the optimizer\'s second moments; `"fisher"` shows scores of projected '
        "features that are whitened (needs `projection_dim`).",
    )
    per_layer: bool = Field(
        default=True,
        description='keep products by layer, for `run.reliance(by="layer")`; False keeps them by optimizer group only.',
    )

    @property
    def method_name(self) -> str:
        """How influence is computed.

        Example:
            >>> Stored(language_means=True).method_name
            'means'
        """
        if self.method is not None:
            return self.method
        return "means" if self.language_means else "projected" if self.projection_dim is not None else "exact"


class Options(SampleColumns, ProbeChoice, Shown, Stored):
    """Everything that `TracInCallback` can be told, apart from where the run goes and its data.

    Raises:
        TracInError: a value is out of range, two contradict each other, or there is no such option.

    Example:
        >>> Options(projection_dim=4096).method_name
        'projected'
        >>> Options(when="never", keep_snapshots=False)
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: when='never' with keep_snapshots=False would keep nothing; drop one of the two.
    """

    when: When = Field(
        default="fit_end",
        description='`"fit_end"` computes influence when the fit ends, `"snapshot"` at each snapshot, `"never"` not at all.',
    )
    keep_snapshots: bool = Field(default=True, description="False deletes a snapshot's weights once its influence is computed.")
    mask: Path | None = Field(
        default=None,
        exclude=True,  # the record keeps the digest of what the file says instead
        description="a safetensors file, parameter -> 0/1 tensor of its shape (`write_mask`): gradients are compared only where "
        "it is 1, so not at all for parameters that it does not name. Where `parameters` is given too, what both choose counts; "
        'with `preconditioner="adam"`, gradients are multiplied with both. None: everywhere.',
    )
    memory_budget: Positive | None = Field(
        default=None, description="bytes for the probes' gradients and a block's factors; None: a share of what is free."
    )
    dry_run: bool = Field(
        default=False, description="print what the run would cost and do nothing else: the fit goes on as without the callback."
    )

    @model_validator(mode="before")
    @classmethod
    def _every_epoch(cls, values: Any) -> Any:
        """Snapshots are taken every epoch unless something else is asked for."""
        if isinstance(values, dict) and values.get("every_n_epochs") is None and values.get("every_n_train_steps") is None:
            return {**values, "every_n_epochs": 1}
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.every_n_epochs is not None and self.every_n_train_steps is not None:
            raise TracInError("Give `every_n_epochs` or `every_n_train_steps`, not both.")
        if self.when == "never" and not self.keep_snapshots:
            raise TracInError("when='never' with keep_snapshots=False would keep nothing; drop one of the two.")
        if self.language_means and self.projection_dim is not None:
            raise TracInError("Give `language_means` or `projection_dim`, not both: means are exact and need no projection.")
        if self.preconditioner == "fisher" and self.projection_dim is None:
            raise TracInError("preconditioner='fisher' whitens projected features; give a `projection_dim` too, such as 4096.")
        exact = not self.language_means and self.projection_dim is None
        if self.preconditioner == "adam" and not exact:
            raise TracInError(
                "preconditioner='adam' scales every element of a gradient, so it goes with exact influence only; leave out "
                "`language_means` and `projection_dim`."
            )
        if self.mask is not None and not exact:
            raise TracInError(
                f"mask={str(self.mask)!r} chooses elements of a gradient, so it goes with exact influence only; leave out "
                "`language_means` and `projection_dim`."
            )
        return self

    @property
    def writes_weights(self) -> bool:
        """Whether a snapshot's weights are written to disk: to be kept, or until they are attributed."""
        return self.keep_snapshots or self.when != "snapshot"

    def view(self, measure: Measure) -> View:
        """What is shown, by the measure that the run's method allows."""
        return View(**{name: getattr(self, name) for name in Shown.model_fields}, measure=measure)
