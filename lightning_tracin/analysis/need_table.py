"""The predicted need of a run's train languages: what its snapshots and features say, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_tracin.analysis.predicted_need import Pull, label_weights, predicted_rise
from lightning_tracin.analysis.resampling import Floats, Interval, bootstrap_mean, by_unit, checked_interval
from lightning_tracin.config import WHITENED
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.storage.snapshots import Snapshot

#: What stands for the Hessian of the train loss.
Curvature = Literal["gauss-newton", "fisher"]


class NeedUnknownError(TracInError):
    """A run does not hold what predicted need is computed from; the message names a fit that would."""


NEED_COLUMNS = ("probe_language", "train_language", "nats", "low", "high", "is_own", "train_samples")


def rises_of_run(directory: RunDirectory, languages: Sequence[str], curvature: Curvature) -> Floats:
    """By how many nats each probe's loss would be higher without each train language: [languages in order, probes].

    Args:
        directory: of a run with features in the metric of the fit's steps.
        languages: language of each train sample.
        curvature: see `TracInRun.predicted_need`.

    Raises:
        NeedUnknownError: the run has no such features, its loss is not a mean, the probabilities of labels are not known, or all
            train samples are in one language.
        TracInError: there are too many features, or a file is missing or damaged.
    """
    if curvature not in get_args(Curvature):
        raise TracInError(f"curvature should be 'gauss-newton' or 'fisher', but is {curvature!r}.")
    _require_steps(directory)
    names = sorted(set(languages))
    if len(names) == 1:
        raise NeedUnknownError(f"All train samples are in one language, {names[0]}, so there is no fit without it.")
    groups = [names.index(name) for name in languages]
    snapshots = directory.ledger.snapshots()
    if not snapshots:
        raise TracInError(f"{directory.path} has no snapshots to predict from; the fit ended before the first one was taken.")
    stores = [directory.features(snapshot) for snapshot in snapshots]
    total = torch.zeros(len(names), stores[0].count("probes"), dtype=torch.float64)
    for position, (snapshot, store) in enumerate(zip(snapshots, stores, strict=True)):
        groups_of = _groups_of(snapshot, store)
        ahead = [one.steps * _rates(one, groups_of) for one in snapshots[position:]]
        own = float(ahead[0].mean())
        if own == 0:
            continue
        later = sum(float(one.mean()) for one in ahead) / own
        pull = Pull(_rates(snapshot, groups_of), snapshot.steps, later, _weights(store, curvature, directory))
        probes = store.some("probes", range(store.count("probes")))
        store.train_of_shards()  # complete, or an error
        total += predicted_rise(lambda store=store: store.blocks("train"), probes, groups, pull)  # type: ignore[misc]
    found: Floats = total.numpy()
    return found


def _require_steps(directory: RunDirectory) -> None:
    record, follows = directory.record(), directory.follows_steps
    used = record.options.preconditioner
    if used not in WHITENED or not follows(used):
        raise NeedUnknownError(
            f"{directory.path} has no features in the metric of the fit's steps; run the fit with "
            f"`TracInCallback(projection_dim=4096, preconditioner='{'fisher' if follows('fisher') else 'adam-fisher'}')`."
        )
    if "mean" not in record.loss:
        raise NeedUnknownError(
            f"A refit takes steps on the mean loss of the samples that are left, but the fit's loss is {record.loss}, so "
            "`predicted_need` does not hold for it."
        )


def _groups_of(snapshot: Snapshot, store: FeatureStore) -> Tensor:
    """The optimizer group of each feature: [features]."""
    sketch = store.sketch()
    groups = torch.zeros(sketch.dim, dtype=torch.int64)
    for name, where in sketch.layout.items():
        groups[where] = snapshot.record.groups[name]
    return groups


def _rates(snapshot: Snapshot, groups: Tensor) -> Tensor:
    """Learning rate of each feature in the interval of a snapshot: [features]."""
    return torch.tensor(snapshot.learning_rates, dtype=torch.float64)[groups]


def _weights(store: FeatureStore, curvature: Curvature, directory: RunDirectory) -> Tensor:
    if curvature == "fisher":
        return torch.ones(store.count("train"), dtype=torch.float64)
    losses = store.label_losses()
    if losses is None:
        raise NeedUnknownError(
            f"{directory.path} has no probabilities of labels: they are stored where the fit's loss is the cross-entropy of one "
            "label a sample, without class weights or smoothing, and seen as such in `training_step`. Take curvature='fisher', "
            "which is too small late in a fit."
        )
    return label_weights(losses)


def need_table(
    rises: Floats,
    train_languages: Sequence[str],
    probe_languages: Sequence[str],
    units: Sequence[str | None],
    interval: Interval | None = None,
) -> pd.DataFrame:
    """Means over the probes of each language, with intervals over their items.

    Args:
        rises: of `rises_of_run`.
        train_languages: language of each train sample.
        probe_languages: language of each probe.
        units: item of each probe; those of one item are drawn together.
        interval: settings of the bootstrap. None: 95 %.

    Example:
        >>> table = need_table(np.array([[1.0, 3.0], [0.0, 0.5]]), ["de", "en"], ["de", "de"], [None, None])
        >>> table[["train_language", "nats", "is_own"]].values.tolist()
        [['de', 2.0, True], ['en', 0.25, False]]
    """
    settings, rows = checked_interval(interval), []
    train, probes = np.asarray(train_languages), np.asarray(probe_languages)
    for probe_language in sorted(set(probe_languages)):
        mine = np.flatnonzero(probes == probe_language)
        values = rises[:, mine].T
        low, high = np.full((2, len(rises)), np.nan)
        if settings.resamples:
            low, high = bootstrap_mean(by_unit(values, [units[int(one)] for one in mine]), settings)
        own = own_languages([probe_language], train_languages).get(probe_language)
        for position, name in enumerate(sorted(set(train_languages))):
            ends = float(low[position]), float(high[position])
            rows.append((probe_language, name, float(values[:, position].mean()), *ends, name == own, int((train == name).sum())))
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(NEED_COLUMNS))
    return table
