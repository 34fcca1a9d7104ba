"""Every option, defined, documented and validated once.

`TracInCallback` takes the fields of `Options` by name, the run's record stores them, and the rest of the package passes one
`Options` object around. An invalid value raises `TracInError`.
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

When = Literal["auto", "fit_end", "snapshot", "never"]
Precision = Literal["float32", "float64", "bfloat16"]
Similarity = Literal["cosine", "dot", "relatif"]
Weighting = Literal["uniform", "learning_rate"]
LossUnit = Literal["sample", "token"]
Preconditioner = Literal["adam", "adam-factored", "fisher", "adam-fisher"]
PreconditionerChoice = Literal["auto", "adam", "adam-factored", "fisher", "adam-fisher"]
Sign = Literal["positive", "negative"]
Measure = Literal["sum", "mean", "share", "mass"]

#: The preconditioners to choose from when reading scores; "none" overrides the one that the run was made with.
Preconditioning = Literal["adam", "adam-factored", "fisher", "adam-fisher", "none"]
SCALED = ("adam", "adam-factored", "adam-fisher")  # by Adam's second moments
WHITENED = ("fisher", "adam-fisher")  # by the Fisher information

Blocks = Literal["whole", "layer"]  # whiten all features together, or each layer separately (F without its cross-layer blocks)
Damping = Annotated[float, Field(gt=0)] | Literal["steps"]  # the ridge: a fraction of F's trace, or from the fit's steps
DAMPING = 0.0025  # mid-range of the best values in `docs/lds.md`, for any number of features


def check_choice(name: str, value: str, choices: object) -> None:
    """Check that a value is one of its choices.

    Args:
        name: name of the option, for the message.
        value: the value to check.
        choices: a `Literal` type.

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
    """Reject a string where a list is expected: pydantic would split it into letters."""
    if isinstance(value, str):
        raise TracInError(f"{info.field_name} should be a list of strings, but is the string {value!r}.")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_not_one_string)]
Positive = Annotated[int, Field(ge=1)]


class OptionGroup(BaseModel):
    """A frozen set of options; an invalid value or unknown name raises `TracInError` instead of pydantic's error.

    Raises:
        TracInError: a value is invalid, or an option does not exist.

    Example:
        >>> Shown(top_k=0)
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: top_k should be 1 or more, but is 0.
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
        """A copy with some values replaced; None leaves a value as it is.

        Example:
            >>> View(top_k=10).but(top_k=None, similarity="dot")
            View(top_k=10, similarity='dot', weighting='learning_rate', measure='share')
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self)(**{**dict(self), **given})


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    """Describe the first invalid option in one sentence."""
    first = error.errors()[0]
    name, value = str(first["loc"][0]) if first["loc"] else model.__name__, first["input"]
    if first["type"] == "extra_forbidden":
        return f"There is no option {name!r}; the options are {', '.join(model.model_fields)}."
    if first["type"] == "literal_error":
        return f"{name} should be one of {first['ctx']['expected'].replace(' or ', ', ')}, but is {value!r}."
    words = next((one["ctx"]["expected"] for one in error.errors() if one["type"] == "literal_error"), None)
    if words is not None and first["type"].startswith("float"):
        return f"{name} should be a number or {words}, but is {value!r}."
    if first["type"] == "greater_than_equal":
        return f"{name} should be {first['ctx']['ge']} or more, but is {value}."
    if first["type"] == "greater_than":
        return f"{name} should be above {first['ctx']['gt']:g}, but is {value}."
    return f"{name} has the value {value!r}: {first['msg']}."


class SampleColumns(OptionGroup):
    """Which columns of a dataset hold language, item, text and label."""

    language_column: str | Names = Field(
        default="language",
        description="dataset column (or attribute) with each sample's language; two (source, target) make pairs such as `en>de`.",
    )
    item_column: str | None = Field(default=None, description="column with an id that all translations of one sentence share.")
    text_columns: Names | None = Field(default=None, description="columns to show as text. Default: all other string columns.")
    label_column: str | None = Field(default=None, description="column to show as label. Default: `label` or `labels`.")


class ProbeChoice(OptionGroup):
    """Which samples of the probe loaders to use as probes."""

    probe_languages: Names | None = Field(default=None, description="languages to probe. Default: all in the probe data.")
    max_probes_per_language: Positive | None = Field(
        default=50,
        description="at most this many probes per language (None: all). Parallel data keep the same items in every language.",
    )


class Shown(OptionGroup):
    """Which scores are logged and shown in tables and on the page."""

    top_k: Positive = Field(default=100, description="reliance is counted over each probe's `top_k` strongest proponents.")
    similarity: Similarity = Field(
        default="dot",
        description='inner product of two gradients (`"dot"`), their `"cosine"`, or the product over the train gradient\'s norm '
        '(`"relatif"`). Applies to logged results; any other can be computed from the finished run.',
    )
    weighting: Weighting = Field(
        default="learning_rate",
        description='how to sum over snapshots: `"uniform"`, or each weighted by `"learning_rate"` and visits per sample. '
        "Applies to logged results, like `similarity`.",
    )


class View(Shown):
    """What results show: `Shown`, and the measure that the run's method supports."""

    measure: Measure = "share"

    @property
    def described(self) -> str:
        """Axis label of the curves.

        Example:
            >>> View(top_k=50).described
            'share of the strongest 50'
        """
        return f"share of the strongest {self.top_k}"


class Scoring(OptionGroup):
    """Which score to compute: similarity, weighting, and the preconditioner of the inner product."""

    similarity: Similarity = "cosine"
    weighting: Weighting = "uniform"
    preconditioner: Preconditioning | None = None  # None: the one that the run was made with
    damping: Damping = DAMPING
    blocks: Blocks = "whole"


class Evaluation(OptionGroup):
    """How samples are evaluated outside the fit."""

    dtype: Precision = Field(default="float32", description="precision of influence, independent of the fit's precision.")
    batch_size: Positive = Field(default=32, description="samples per forward pass when influence is computed.")


class Replacing(OptionGroup):
    """Whether something may be deleted."""

    overwrite: bool = Field(
        default=False,
        exclude=True,
        description="replace another run in `dirpath` (one without snapshots is replaced in any case).",
    )


class Stored(Evaluation):
    """Options that stored results depend on. A fit can only be resumed with the same values."""

    every_n_epochs: Positive | None = Field(
        default=None, description="snapshot at the end of every n-th epoch. Default: 1, unless `every_n_train_steps` is given."
    )
    every_n_train_steps: Positive | None = Field(default=None, description="snapshot every n optimizer steps instead.")
    parameters: Names | None = Field(
        default=None, description="glob patterns of the parameter names to score. Default: all trainable parameters."
    )
    loss_unit: LossUnit = Field(
        default="sample",
        description='the loss of one sample: the mean over its own tokens, as it has it alone (`"sample"`), or the sum over its '
        'tokens of what each weighs in training (`"token"`), so that class weights, sample weights and lengths count.',
    )
    language_means: bool = Field(
        default=False,
        description="compute only each train sample's mean influence on each probe language. The cost does not grow with the "
        "number of probes, but there is no top k.",
    )
    projection_dim: Positive | None = Field(
        default=None,
        description="store this many values of a seeded random projection per sample (for example 4096) instead of computing "
        "exact products. Probes can then be added later without another pass over the train samples (`run.add_probes`).",
    )
    method: str | None = Field(
        default=None,
        description="name of a registered attribution method. Default: `means` with `language_means`, `projected` with "
        "`projection_dim`, else `exact`.",
    )
    preconditioner: PreconditionerChoice | None = Field(
        default="auto",
        description='`"adam"` scales gradients as the Adam optimizer does, by its second moments; `"adam-factored"` by their '
        'means over rows and columns, at about the cost of plain gradients. `"fisher"` whitens projected features (needs '
        '`projection_dim`), `"adam-fisher"` those of scaled gradients. None: plain gradients. `"auto"`: `"adam-factored"` for '
        "exact scores with Adam, but not in bfloat16.",
    )
    per_layer: bool = Field(
        default=True,
        description='store results per layer, for `run.reliance(by="layer")`. False stores them per optimizer group: less disk.',
    )

    @property
    def method_name(self) -> str:
        """Name of the attribution method.

        Example:
            >>> Stored(language_means=True).method_name
            'means'
        """
        if self.method is not None:
            return self.method
        return "means" if self.language_means else "projected" if self.projection_dim is not None else "exact"


class Options(SampleColumns, ProbeChoice, Shown, Stored, Replacing):
    """All options of `TracInCallback`, except its directory and data.

    Raises:
        TracInError: a value is invalid, two options contradict each other, or an option does not exist.

    Example:
        >>> Options(projection_dim=4096).method_name
        'projected'
        >>> Options(when="never", keep_snapshots=False)
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: when='never' with keep_snapshots=False would keep nothing; drop one of the two.
    """

    when: When = Field(
        default="auto",
        description='when to compute influence: at the end of the fit (`"fit_end"`), after each snapshot (`"snapshot"`), or '
        '`"never"`: the fit only takes snapshots, and `attribute` computes influence later. `"auto"`: live where that takes '
        "less than a tenth of the training between two snapshots, else at the end.",
    )
    keep_snapshots: bool = Field(default=True, description="False deletes a snapshot's weights after computing its influence.")
    mask: Path | None = Field(
        default=None,
        exclude=True,  # the record stores a digest of the mask's content instead
        description="safetensors file with a 0/1 tensor for each parameter to score (see `write_mask`). Elements that are 0, and "
        "parameters that are not in the file, are ignored. Combines with `parameters` and `preconditioner`.",
    )
    memory_budget: Positive | None = Field(
        default=None, description="bytes of memory for gradients of probes and train samples. Default: 40% of the free memory."
    )
    per_token: bool = Field(
        default=False,
        description="show in the report which tokens of a probe its strongest train samples help and harm: one more pass over "
        "these few samples at each snapshot, at the end of the fit.",
    )
    report: bool = Field(
        default=True,
        description="write tables, figures and a page at the end, and log them. False leaves that to `lightning-tracin results`.",
    )
    dry_run: bool = Field(
        default=False, description="only print the estimated cost; nothing is written and the fit runs as without the callback."
    )

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        """Take a snapshot every epoch by default; `method="means"` says the same as `language_means=True`."""
        if not isinstance(values, dict):
            return values
        every_epoch = values.get("every_n_epochs") is None and values.get("every_n_train_steps") is None
        implied = {"every_n_epochs": 1} if every_epoch else {}
        return {**values, **implied, **({"language_means": True} if values.get("method") == "means" else {})}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.every_n_epochs is not None and self.every_n_train_steps is not None:
            raise TracInError("Give `every_n_epochs` or `every_n_train_steps`, not both.")
        if self.when == "never" and not self.keep_snapshots:
            raise TracInError("when='never' with keep_snapshots=False would keep nothing; drop one of the two.")
        if self.per_token and (self.language_means or self.preconditioner in WHITENED or not self.keep_snapshots):
            raise TracInError(
                "per_token=True splits the scores of pairs at every snapshot; leave out `language_means`, preconditioners that "
                "whiten and `keep_snapshots=False`."
            )
        if self.per_token and not self.report:
            raise TracInError("per_token=True adds to the report that report=False leaves out; drop one of the two.")
        if self.language_means and self.projection_dim is not None:
            raise TracInError("Give `language_means` or `projection_dim`, not both: means are exact and need no projection.")
        chosen = Stored(language_means=self.language_means, projection_dim=self.projection_dim).method_name
        if self.method == "projected" and chosen != "projected":
            raise TracInError("method='projected' needs a `projection_dim`, such as 4096.")
        if self.method not in (None, chosen) and chosen != "exact":
            raise TracInError(
                f"method={self.method!r} contradicts `language_means` or `projection_dim`, which choose {chosen!r}; drop one."
            )
        used = f"preconditioner={self.preconditioner!r}"
        if self.preconditioner in WHITENED and self.projection_dim is None:
            raise TracInError(f"{used} whitens projected features; give a `projection_dim` too, such as 4096.")
        if self.language_means and self.preconditioner in SCALED:
            raise TracInError(f"{used} acts on single elements of a gradient; leave out `language_means`.")
        if chosen != "exact" and self.mask is not None:
            raise TracInError(f"mask={str(self.mask)!r} needs exact influence; leave out `language_means` and `projection_dim`.")
        return self

    @property
    def writes_weights(self) -> bool:
        """Whether a snapshot's weights are written to disk, to be kept or until its influence is computed."""
        return self.keep_snapshots or self.when != "snapshot"

    def view(self, measure: Measure) -> View:
        """What results show, with the measure that the run's method supports."""
        return View(**{name: getattr(self, name) for name in Shown.model_fields}, measure=measure)


class ContributionOptions(SampleColumns, ProbeChoice, Evaluation, Replacing):
    """All options of `ContributionCallback`, except its directory and data."""

    group_column: str | None = Field(
        default=None, description="column with the groups to account for, such as a domain or a script. Default: languages."
    )
    probes_per_language: Positive | None = Field(
        default=5,
        description="split the loss of at most this many probes of each language (or group) by train languages (None: all), and "
        "only measure that of the others, when the fit begins and ends.",
    )
    window: Positive | None = Field(
        default=None,
        description="optimizer steps between two looks at the probes. Default: as many looks as take a quarter of the fit's "
        "time, at most 20 an epoch.",
    )
    every_n_steps: Positive = Field(
        default=1, description="account for one of every n optimizer steps, drawn at random, and scale up: cheaper, less certain."
    )
    samples: bool = Field(
        default=False,
        description="also keep what each train sample contributed to each probe language (needs a map-style dataset).",
    )
    device: str | None = Field(
        default=None, description='where the accounts are kept, such as `"cpu"`. Default: where the parameters are.'
    )

    @property
    def by(self) -> str:
        """What the groups are: languages, or the name of a column."""
        return "language" if self.group_column is None else self.group_column

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns that hold a sample's group."""
        if self.group_column is not None:
            return (self.group_column,)
        return (self.language_column,) if isinstance(self.language_column, str) else self.language_column
