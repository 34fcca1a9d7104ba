"""Train data of all kinds: batches are what they were, and each sample's language is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value, interleave_datasets
from datasets import Dataset as Stored
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, IterableDataset, Subset, WeightedRandomSampler

from tests.support.accounted_fits import LANGUAGES, Module, Tokens, fit, numbers
from tests.support.fits import trainer

TOKENS = Tokens(20, seed=1)

Rows = list[dict[str, Any]]


def rows(count: int = 20) -> Rows:
    """The samples with their languages."""
    return [
        {"tokens": TOKENS.tokens[i].tolist(), "labels": int(TOKENS.labels[i]), "language": TOKENS.language[i], "place": i}
        for i in range(count)
    ]


def collate(samples: Rows) -> dict[str, Tensor]:
    """Drops the strings; nothing but what the samples had may be in them."""
    assert all({"tokens", "labels"} <= set(sample) <= {"tokens", "labels", "language", "place"} for sample in samples)
    found = {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in ("tokens", "labels")}
    if "place" in samples[0]:
        found["place"] = torch.tensor([sample["place"] for sample in samples])
    return found


class Noisy(Tokens):
    """Draws random numbers in each sample, from all generators, and makes other samples in each epoch."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        tokens = (self.tokens[index] + int(noise * 10)) % 31
        return {"tokens": tokens, "labels": self.labels[index], "place": index}


class Stream(IterableDataset[dict[str, Any]]):
    """A stream that its workers share; a new language comes late."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for row in rows()[first::step]:
            yield {**row, "language": "uk"} if row["place"] > 15 else row


class Whole(IterableDataset[dict[str, Any]]):
    """Yields whole batches, with a list of languages."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for at in range(0, 20, 4):
            some = rows()[at : at + 4]
            yield {**collate(some), "language": [row["language"] for row in some]}


class Buckets:
    """A batch sampler of the user's own: batches of different sizes, as arrays."""

    def __iter__(self) -> Iterator[Any]:
        yield from (np.array([3, 1]), np.array([2, 0, 7]), torch.tensor([19, 4, 5, 6]), [12])

    def __len__(self) -> int:
        return 4


class PlaceOnly(Tokens):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "place": index}


def hidden() -> Stored:
    stored = Stored.from_list(rows())
    stored.set_format("torch", columns=["tokens", "labels", "place"])
    return stored


def classes() -> Stored:
    names = [{**row, "language": LANGUAGES.index(row["language"])} for row in rows()]
    features = Features(
        {
            "tokens": [Value("int64")],
            "labels": Value("int64"),
            "language": ClassLabel(names=list(LANGUAGES)),
            "place": Value("int64"),
        }
    )
    return Stored.from_list(names, features=features)


def doubled(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "labels": 2 - row["labels"]}


def interleaved() -> Any:
    parts = [Stored.from_list([row for row in rows() if row["language"] == name]).to_iterable_dataset() for name in LANGUAGES]
    return interleave_datasets(parts, probabilities=[0.5, 0.3, 0.2], seed=1).map(doubled).with_format("torch")


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(PlaceOnly(20, 1), batch_size=6, shuffle=True),
    "workers": lambda: DataLoader(Noisy(20, 1), batch_size=3, shuffle=True, num_workers=2, prefetch_factor=3),
    "persistent workers": lambda: DataLoader(Noisy(20, 1), batch_size=3, shuffle=True, num_workers=2, persistent_workers=True),
    "random samples": lambda: DataLoader(Noisy(20, 1), batch_size=6, shuffle=True),
    "own generator": lambda: DataLoader(PlaceOnly(20, 1), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "weighted": lambda: DataLoader(PlaceOnly(20, 1), batch_size=6, sampler=WeightedRandomSampler(range(20), 24)),
    "buckets": lambda: DataLoader(PlaceOnly(20, 1), batch_sampler=Buckets()),
    "buckets in workers": lambda: DataLoader(PlaceOnly(20, 1), batch_sampler=Buckets(), num_workers=2),
    "list of indices": lambda: DataLoader(PlaceOnly(20, 1), batch_size=3, sampler=[3, 1, 4, 1, 5, 9, 2], drop_last=True),
    "batches as samples": lambda: DataLoader(
        hidden(), batch_size=None, sampler=BatchSampler(WeightedRandomSampler([1.0] * 20, 20), 6, drop_last=False)
    ),
    "subset": lambda: DataLoader(Subset(PlaceOnly(20, 1), [7, 3, 2, 11, 13, 17]), batch_size=4),
    "concatenated": lambda: DataLoader(
        ConcatDataset([PlaceOnly(20, 1), Subset(PlaceOnly(20, 1), [4, 2])]), batch_size=8, shuffle=True
    ),
    "raw samples": lambda: DataLoader(rows(), batch_size=6, shuffle=True, collate_fn=collate),  # type: ignore[arg-type]
    "hidden column": lambda: DataLoader(hidden(), batch_size=6, shuffle=True),
    "classes": lambda: DataLoader(classes(), batch_size=6, shuffle=True, collate_fn=collate),
    "stream": lambda: DataLoader(Stream(), batch_size=3, collate_fn=collate),
    "stream in workers": lambda: DataLoader(Stream(), batch_size=3, collate_fn=collate, num_workers=2),
    "whole batches": lambda: DataLoader(Whole(), batch_size=None),
    "datasets stream": lambda: DataLoader(
        Stored.from_list(rows()).to_iterable_dataset(num_shards=2), batch_size=3, collate_fn=collate, num_workers=2
    ),
    "datasets stream of classes": lambda: DataLoader(
        classes().to_iterable_dataset().with_format("torch"), batch_size=3, collate_fn=collate
    ),
    "interleaved": lambda: DataLoader(interleaved(), batch_size=4, collate_fn=collate),
}


class Seen(Callback):
    """Keeps the batches that reach the module."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


def random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def seeded() -> None:
    torch.manual_seed(4)
    random.seed(4)
    np.random.seed(4)


def language_at(name: str, place: int) -> str:
    return "uk" if name.startswith("stream") and place > 15 else TOKENS.language[place]


@pytest.mark.parametrize("name", LOADERS)
def test_the_fit_is_the_same_and_languages_are_known(tmp_path: Path, name: str) -> None:
    seen, expected = Seen(), Seen()
    loader, other = LOADERS[name](), LOADERS[name]()
    seeded()
    module = Module(dropout=0.3)
    trainer(tmp_path, [expected], precision="64-true", max_epochs=2).fit(module, other)
    end = random_state()

    before = dict(vars(loader))
    seeded()
    found = fit(tmp_path, loader, Module(dropout=0.3), {"window": 1}, [seen])
    assert random_state() == end
    after = vars(loader)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
    for one, two in zip(found.parameters(), module.parameters(), strict=True):
        assert torch.equal(one, two)
    assert len(seen.batches) == len(expected.batches)
    for batch, reference in zip(seen.batches, expected.batches, strict=True):
        assert batch.keys() == reference.keys()
        assert all(
            torch.equal(torch.as_tensor(batch[key]), reference[key]) if key != "language" else batch[key] == reference[key]
            for key in batch
        )
    for batch, window in zip(seen.batches, numbers(tmp_path), strict=True):
        languages = [language_at(name, int(place)) for place in batch["place"]]
        assert window["samples"] == {language: languages.count(language) for language in sorted(set(languages))}
