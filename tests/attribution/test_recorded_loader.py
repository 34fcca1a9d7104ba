"""A recorded loader returns the batches of the loader, and knows what is in each of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from lightning_tracin import TracInError
from lightning_tracin.attribution.recorded_loader import recorded

ROWS: Any = [{"place": place, "language": ("de", "en")[place % 2]} for place in range(10)]


def places(batch: Any) -> list[int]:
    return [int(place) for place in batch["place"]]


def require_known(loader: Any, batches: Iterator[Any]) -> None:
    for batch in batches:
        facts = loader.facts_of(batch)
        assert [int(index) for index in facts.indices] == places(batch)
        assert facts.columns["language"] == batch["language"]


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_do_not_disturb_each_other(workers: int) -> None:
    loader = recorded(DataLoader(ROWS, batch_size=3, shuffle=True, num_workers=workers), ["language"])
    outer = iter(loader)
    first = next(outer)
    require_known(loader, loader)
    assert places(first) == [int(index) for index in loader.facts_of(first).indices]
    require_known(loader, outer)
    assert loader.passes == 2


def test_persistent_workers_have_several_passes() -> None:
    loader = recorded(DataLoader(ROWS, batch_size=3, shuffle=True, num_workers=2, persistent_workers=True), ["language"])
    for _ in range(3):
        require_known(loader, islice(loader, 2))
        require_known(loader, loader)


class Forwarding(DataLoader[Any]):
    """Skips batches by drawing them: what a loader does that goes on in the middle of an epoch."""

    skipped = 2

    def __iter__(self) -> Any:
        iterator: Any = super().__iter__()
        if not self.num_workers:
            iterator._sampler_iter = islice(iterator._sampler_iter, self.skipped, None)
        return iterator


def test_batches_that_are_skipped_do_not_shift_the_others() -> None:
    loader = recorded(Forwarding(ROWS, batch_size=2, shuffle=True), ["language"])
    require_known(loader, loader)
    assert len(list(loader)) == 3


class Stateful(BatchSampler):
    """A sampler whose iterator has a state."""

    def __iter__(self) -> Any:
        return State()


class State:
    at = 0

    def __iter__(self) -> State:
        return self

    def __next__(self) -> list[int]:
        self.at += 1
        if self.at > 3:
            raise StopIteration
        return [self.at, 0]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}


def test_iterators_of_samplers_keep_their_methods() -> None:
    loader = recorded(DataLoader(ROWS, batch_sampler=Stateful(range(3), 2, False)), ["language"])
    found = []

    class Noting(type(loader)):  # type: ignore[misc]
        def _get_iterator(self) -> Any:
            found.append(super()._get_iterator())
            return found[-1]

    loader.__class__ = Noting
    require_known(loader, loader)
    assert found[0]._sampler_iter.state_dict() == {"at": 4}


def test_only_the_last_batches_of_the_last_passes_are_kept() -> None:
    loader = recorded(DataLoader(ROWS, batch_size=1), [])
    passes = [list(loader) for _ in range(3)]
    assert [[loader.facts_of(batch) is not None for batch in batches] for batches in passes] == [
        [False] * 10,
        *[[False] * 8 + [True] * 2] * 2,
    ]


def test_a_pass_that_goes_on_is_not_forgotten() -> None:
    loader = recorded(DataLoader(ROWS, batch_size=2), ["language"])
    outer = iter(loader)
    first = next(outer)
    for _ in range(4):
        require_known(loader, loader)
    assert places(first) == loader.facts_of(first).indices


def test_the_same_object_in_several_passes() -> None:
    batches = [{"language": ["de", "en"]}, {"language": ["ru"]}]
    loader = recorded(DataLoader(batches, batch_size=None, collate_fn=lambda one: one), ["language"])  # type: ignore[arg-type]
    for _ in range(4):
        for batch in loader:
            assert loader.facts_of(batch).columns == batch


def test_a_second_reader_shares_the_copy() -> None:
    loader = recorded(DataLoader(ROWS, batch_size=5), ["language"])
    assert recorded(loader, ["place"]) is loader
    batch = next(iter(loader))
    assert loader.facts_of(batch).columns == {"language": batch["language"], "place": [0, 1, 2, 3, 4]}


def test_batches_of_another_size_than_drawn_are_refused() -> None:
    class More(list[Any]):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices] * 2

    loader = recorded(DataLoader(More(ROWS), batch_size=2), ["language"])  # type: ignore[arg-type]
    with pytest.raises(TracInError, match=r"drew 2 samples for a batch of 4, so nothing tells which samples it holds; use"):
        next(iter(loader))


def test_pinned_batches_keep_their_facts() -> None:
    loader = recorded(DataLoader(ROWS, batch_size=5, pin_memory=torch.cuda.is_available()), ["language"])
    require_known(loader, loader)
