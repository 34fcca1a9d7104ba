"""Sets up a pass, for a fit, `attribute`, imported checkpoints, added probes and masks.

sources --read_samples--> train samples and probes
options, mask, module --scored_names--> the parameters to score
a copy of the module --verify--> coverage and loss, compared with plain autograd on real batches
all of these --Setup--> input of `Attributor`, and the record of the run
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_tracin.attribution.batching import TRAIN_SAMPLE
from lightning_tracin.attribution.checks import check_gradients
from lightning_tracin.attribution.language_names import language_name
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.masks import Mask, read_mask
from lightning_tracin.attribution.probes import chosen_probes, probes_from_loaders
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.attribution.progress import Progress
from lightning_tracin.attribution.samples import SampleSet, from_loader, measured
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Coverage, plan_coverage
from lightning_tracin.gradients.coverage import Counted
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.frozen_digest import frozen_digest
from lightning_tracin.storage.records import RunRecord, known_samples, package_versions
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import Snapshot


@dataclass(frozen=True)
class GivenLanguages:
    """Languages that the user gave as lists, in dataset order. None: they are read from the datasets.

    Raises:
        TracInError: one of them is no list, or holds True or False, which is what YAML makes of `no` and `on`.
    """

    train: Sequence[str | bool] | None = None
    probes: Sequence[str | bool] | None = None

    def __post_init__(self) -> None:
        given: Any
        for name, given in (("languages", self.train), ("languages_of_probes", self.probes)):
            if isinstance(given, str):
                raise TracInError(f"{name} should be a list of strings, but is the string {given!r}.")
            if isinstance(given, Set | Mapping):
                raise TracInError(f"{name} should be a list of strings, but is {given!r}, which has no order.")
            for value in () if given is None else given:
                if isinstance(value, bool):
                    language_name(value)  # raises the error


@dataclass(frozen=True)
class Verified:
    """What `verify` found: the rules of the parameters, and the largest deviation of a loss or gradient (see `Setup`)."""

    coverage: Coverage
    deviation: float


@dataclass(frozen=True)
class Setup:
    """What all passes of a run share.

    Attributes:
        options: the run's options.
        train: the train samples.
        probes: the probes.
        loss: name of the loss, for `losses.loss_named`.
        mask: the elements to score. None: all.
        progress: the bars that are shown.
        decisions: results of an earlier check of the module's layers.
        deviation: largest difference between a batch and its samples one at a time that the check before the fit found, in losses
            and gradients, relative to them. None: unknown.
        train_kind: what messages call the train samples.
    """

    options: Options
    train: SampleSet
    probes: SampleSet
    loss: str
    mask: Mask | None = None
    progress: Progress = False
    decisions: Decisions | None = None
    deviation: float | None = None
    train_kind: str = TRAIN_SAMPLE

    @property
    def dtype(self) -> torch.dtype:
        """The data type for computing influence."""
        return dtype_of(self.options)


def dtype_of(options: Options) -> torch.dtype:
    """The data type for computing influence.

    Example:
        >>> dtype_of(Options(dtype="float64"))
        torch.float64
    """
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def read_samples(
    train_loader: Any,
    probe_loaders: Any,
    languages: GivenLanguages,
    options: Options,
    processes: Processes | None = None,
    progress: Progress = False,
) -> tuple[SampleSet, SampleSet]:
    """Read the train samples and the probes; ranks share the work of measuring the train samples' lengths.

    Args:
        train_loader: a DataLoader of the train samples.
        probe_loaders: a DataLoader of the probes, or several.
        languages: given instead of a column.
        options: the columns, and which probes to choose.
        processes: the processes that read the same samples. None: this process alone.
        progress: the bar that is shown when measuring takes long.

    Raises:
        TracInError: a loader or dataset is not supported, languages are missing, or there are no probes.
    """
    train = from_loader(train_loader, options, "train samples", languages.train, processes)
    if processes is not None:
        train = measured(replace(train, progress=progress), processes)
    probes = probes_from_loaders(probe_loaders, options, languages.probes, processes)
    return train, chosen_probes(probes, options)


def require_languages(directory: RunDirectory, languages: GivenLanguages) -> None:
    """Check that languages are given again as a list if the fit was given a list.

    Raises:
        TracInError: they are not.
    """
    record = directory.record()
    for given, now, name in (
        (record.languages_given, languages.train, "languages"),
        (record.languages_of_probes_given, languages.probes, "languages_of_probes"),
    ):
        if given and now is None:
            raise TracInError(f"The fit of {directory.path} was given its `{name}` as a list; give them again: `{name}=[...]`.")


def require_run_samples(directory: RunDirectory, train: SampleSet, probes: SampleSet, processes: Processes) -> None:
    """Check on rank 0 that samples are the run's.

    Raises:
        TracInError: they differ; the message names the first difference.
    """

    def compare() -> None:
        require_same_samples(train.table, directory.samples("train"), "train sample", directory.path)
        held = directory.samples("probes").take(range(directory.record().probes.count))  # without added probes
        require_same_samples(probes.table, held, "probe", directory.path)

    on_rank_zero(processes, compare)


def require_same_samples(found: SampleTable, held: SampleTable, kind: str, path: Path) -> None:
    """Check that samples are a run's.

    Args:
        found: the samples.
        held: the run's samples.
        kind: "train sample" or "probe".
        path: the run directory.

    Raises:
        TracInError: they differ; the message names the first difference.

    Example:
        >>> ours, theirs = (SampleTable((language,), (None,), ("",), (None,)) for language in ("de", "sw"))
        >>> try:
        ...     require_same_samples(ours, theirs, "probe", Path("runs/a"))
        ... except TracInError as error:
        ...     print(error)
        Probe 0 has the language 'de', but 'sw' in the run runs/a. Give the data of the fit, in the same order.
    """
    if known_samples(found) == known_samples(held):
        return
    remedy = "Give the data of the fit, in the same order."
    if len(found) != len(held):
        raise TracInError(f"{path} is a run on {len(held)} {kind}s, but there are {len(found)}. {remedy}")
    for index, (ours, theirs) in enumerate(zip(found.rows(), held.rows(), strict=True)):
        for column, value in theirs.items():
            if ours[column] != value:
                raise TracInError(
                    f"{kind.capitalize()} {index} has the {column} {ours[column]!r}, but {value!r} in the run {path}. {remedy}"
                )


def require_top_k(top_k: int, train: int) -> None:
    """Check that `top_k` is not larger than the train set.

    Raises:
        TracInError: it is larger.

    Example:
        >>> require_top_k(100, train=60)
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: top_k=100 is larger than the train set (60 samples); choose a smaller `top_k`.
    """
    if top_k > train:
        raise TracInError(f"top_k={top_k} is larger than the train set ({train} samples); choose a smaller `top_k`.")


def opened_mask(path: Path | None, module: nn.Module) -> Mask | None:
    """Read the mask of a new run.

    Raises:
        TracInError: its file is missing or damaged, or it does not fit the module.
    """
    if path is None:
        return None
    mask = read_mask(path)
    mask.require_fits(module)
    return mask


def mask_of_run(directory: RunDirectory, path: Path | None) -> Mask | None:
    """Read the mask of an existing run again.

    Raises:
        TracInError: the run has another mask, or none, or the file is missing.
    """
    digest = directory.record().mask
    if path is None and digest is None:
        return None
    if path is None:
        raise TracInError(f"{directory.path} has a mask, but a run keeps only its digest; give the file as `mask=`.")
    if digest is None:
        raise TracInError(f"{directory.path} has no mask, but mask={str(path)!r} was given; leave it out.")
    mask = read_mask(path)
    if mask.sha256 != digest:
        raise TracInError(
            f"The mask {path} is not the one of the run {directory.path}: its digest is {mask.sha256[:12]}..., the run's "
            f"{digest[:12]}...; give the file that the fit had."
        )
    return mask


def scored_names(options: Options, mask: Mask | None, module: nn.Module) -> frozenset[str]:
    """Names of the parameters to score now: trainable, matching the patterns, and kept by the mask.

    Raises:
        TracInError: there are none, or a pattern matches nothing.

    Example:
        >>> module = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1))
        >>> sorted(scored_names(Options(parameters=["1.*"]), None, module))
        ['1.bias', '1.weight']
    """
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise TracInError("The module has no trainable parameters, so there is no gradient to compare.")
    patterns = ("*",) if options.parameters is None else options.parameters
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise TracInError(
                f"The pattern {pattern!r} in `parameters` matches no trainable parameter; names are like {trainable[0]!r}."
            )
    names = frozenset(name for name in trainable if any(fnmatchcase(name, pattern) for pattern in patterns))
    return names if mask is None else mask.restricted(names)


def verify(
    model: nn.Module,
    names: frozenset[str],
    loss: SummedLoss,
    train: SampleSet | None,
    probes: SampleSet | None,
    prepared: Callable[[Any], Any],
    moment: str,
    decisions: Decisions | None = None,
    train_kind: str = TRAIN_SAMPLE,
) -> Verified:
    """Find which rules cover a module's parameters, and compare the gradients with plain autograd's.

    Args:
        model: a copy in evaluation mode, with the weights to check.
        names: the parameters to score.
        loss: of its samples.
        train: the train samples; None leaves their gradients unchecked.
        probes: the probes; None leaves their gradients unchecked.
        prepared: turns a collated batch into what a step gets.
        moment: when this is, for messages, such as "before the fit".
        decisions: what an earlier check found out about the module's layers.
        train_kind: what messages call the train samples.

    Raises:
        TracInError: a loss is not finite, or a gradient differs.
    """
    coverage = plan_coverage(model, names, decisions)
    largest = loss.deviation
    for samples, kind in ((train, train_kind), (probes, "probe")):
        if samples is not None:
            largest = max(largest, check_gradients(model, coverage, loss, samples, prepared, kind, moment))
    return Verified(coverage, float(f"{largest:.1e}"))  # machines round sums differently in the last place


@dataclass(frozen=True)
class Scored:
    """What is scored, without the model: number of elements by parameter, and how many each rule covers."""

    elements: Mapping[str, int]
    by_rule: Mapping[str, Counted]

    @classmethod
    def of(cls, coverage: Coverage) -> Scored:
        """What a coverage scores."""
        return cls(coverage.elements, coverage.by_rule)


def run_record(run: str, setup: Setup, scored: Scored, languages: GivenLanguages, averaging: str | None = None) -> RunRecord:
    """Create the record of a new run.

    Args:
        run: id of the fit.
        setup: the setup of its passes.
        scored: the scored parameters.
        languages: given by the user instead of a column.
        averaging: name of a callback that averages weights.
    """
    return RunRecord(
        run=run,
        options=setup.options,
        mask=None if setup.mask is None else setup.mask.sha256,
        languages_given=languages.train is not None,
        languages_of_probes_given=languages.probes is not None,
        loss=setup.loss,
        train=known_samples(setup.train.table),
        probes=known_samples(setup.probes.table),
        parameters=len(scored.elements),
        elements=sum(scored.elements.values()),
        kept_elements=None if setup.mask is None else setup.mask.elements(frozenset(scored.elements)),
        coverage=dict(scored.by_rule),
        versions=package_versions(),
        averaging=averaging,
        deviation=setup.deviation,
    )


def require_frozen_alike(module: nn.Module, snapshots: Sequence[Snapshot]) -> None:
    """Check that the module's frozen parameters have the fit's values."""
    with_weights = [snapshot for snapshot in snapshots if snapshot.kept]
    if not with_weights or with_weights[-1].record.frozen is None:
        return
    names = [snapshot.own_names for snapshot in with_weights]
    if not frozenset().union(*names) <= names[-1]:  # trained earlier, frozen later: those values are unknown
        return
    if frozen_digest(module, names[-1]) != with_weights[-1].record.frozen:
        frozen = [name for name, _ in module.named_parameters() if name not in names[-1]]
        which = f"such as {frozen[0]!r}" if frozen else "of which this module has none"
        raise TracInError(
            f"The parameters that the fit did not train ({which}) are not those of the fit: the run stores trained weights only, "
            "so give a module with the fit's values of all other parameters (the same pre-trained weights)."
        )
