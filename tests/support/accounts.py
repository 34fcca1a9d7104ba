"""Accounts of contributions that no fit made, for tests of what is read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_tracin.storage.account import OTHER_SOURCES, AccountRecord, AccountStore, WindowRecord
from lightning_tracin.storage.sample_table import SampleTable

#: A source that is no group of train samples, in a table of nats.
Source = str | tuple[str, bool]


def record_of(groups: Sequence[str], **changes: Any) -> AccountRecord:
    """The record of an account of these probes; by default each is its own item, and all are queries."""
    given = {"account": "drawn", "by": "language", "loss": "per_sample_loss", "items": (None,) * len(groups)}
    return AccountRecord(**{**given, "groups": tuple(groups), "queries": tuple(range(len(groups))), **changes})


def append(
    store: AccountStore,
    nats: Mapping[Source, Sequence[float]],
    before: Sequence[float],
    after: Sequence[float],
    steps: int = 2,
    epoch: int = 1,
    samples: int = 4,
) -> None:
    """Write the next window.

    Args:
        store: the account.
        nats: source -> by how much it lowered the loss of each query; a pair says whether it is a train group, which it
            otherwise is unless it is called decay, momentum or undivided.
        before: loss of each probe at its start.
        after: the same at its end.
        steps: how many steps it covers.
        epoch: of its last step.
        samples: train samples of each train group in it.
    """
    windows = store.windows()
    first = windows[-1].record.last_step + 1 if windows else store.record().began_at + 1
    sources = [source if isinstance(source, tuple) else (source, source not in OTHER_SOURCES) for source in nats]
    record = WindowRecord(
        number=len(windows) + 1,
        first_step=first,
        last_step=first + steps - 1,
        accounted=steps,
        epoch=epoch,
        sources=tuple(name for name, _ in sources),
        is_group=tuple(is_group for _, is_group in sources),
        samples=tuple(samples * is_group for _, is_group in sources),
    )
    numbers = {"nats": np.array(list(nats.values())).T, "before": np.array(before), "after": np.array(after)}
    store.append(record, {name: torch.from_numpy(np.asarray(values, np.float64)) for name, values in numbers.items()})


def small_account(path: Path, **changes: Any) -> AccountStore:
    """Two windows of a fit on German and English; English lowers more, French is a probe language only."""
    store = AccountStore(path)
    store.write(record_of(("de", "de", "fr", "fr"), **{"items": ("1", "2", "1", "2"), "ended": True, **changes}))
    first, second = ([3.0, 3.2, 3.5, 3.3], [2.5, 2.6, 3.0, 3.1]), ([2.5, 2.6, 3.0, 3.1], [2.0, 2.3, 2.8, 2.9])
    append(store, {"de": [0.3, 0.4, 0.1, 0.0], "en": [0.2, 0.1, 0.4, 0.25], "decay": [0.01] * 4}, *first)
    append(store, {"de": [0.4, 0.2, -0.1, 0.0], "en": [0.1, 0.1, 0.3, 0.2], "decay": [0.01] * 4}, *second, epoch=2)
    return store


def with_samples(store: AccountStore) -> None:
    """Add three train samples with their own contributions to German and French."""
    store.write_train(SampleTable(("de", "en", "en"), ("1", "1", None), ("Hallo", "Hello", "Bye"), ("a", None, "b")))
    store.write_samples(torch.tensor([[0.5, -0.1], [0.2, 0.6], [-0.3, 0.3]]))
