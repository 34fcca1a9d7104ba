"""Data whose samples cannot be told apart by language are refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_tracin import TracInError
from tests.support.accounted_fits import Module, fit, loader, rows, without_language


class Streams(IterableDataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


class OwnIterable:
    """Batches that come from no DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader())


class Fetching(Module):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, _, _ = next(dataloader_iter)
        return super().training_step(batch, 0)


class Keys(Dataset[dict[str, Any]]):
    """A dataset whose keys are no positions."""

    language = ["de"] * 8

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: str) -> dict[str, Any]:
        return rows()[int(key[1:])]


def missing() -> list[dict[str, Any]]:
    found = rows(language="de")
    found[5] = {**found[5], "language": None}
    return found


REFUSED: dict[str, tuple[Callable[[], Any], type[Module], dict[str, Any], str]] = {
    "no column": (
        lambda: DataLoader(Streams(rows()), batch_size=4),
        Module,
        {},
        r"no column 'language' with their language, neither in the dataset nor in the raw samples .* `language_column=\.\.\.`",
    ),
    "no group column": (
        lambda: DataLoader(Streams(rows()), batch_size=4),
        Module,
        {"group_column": "domain", "languages_of_probes": ["web"] * 9},
        r"no column 'domain' with their domain, .* `group_column=\.\.\.`, or give `languages=",
    ),
    "missing language": (
        lambda: DataLoader(Streams(missing()), batch_size=4, collate_fn=without_language),
        Module,
        {},
        "Sample 1 of the batch of step 2 has no language; name one for each sample",
    ),
    "several loaders": (
        lambda: {"a": loader(), "b": loader()},
        Module,
        {},
        "accounts for one train DataLoader, but the fit has 2; use one DataLoader over a `torch.utils.data.ConcatDataset`",
    ),
    "combined loader": (lambda: CombinedLoader([loader(), loader()]), Module, {}, "one train DataLoader, but the fit has 2"),
    "no DataLoader": (OwnIterable, Module, {}, "the train batches come from OwnIterable; use a torch DataLoader"),
    "out of order": (
        lambda: loader(num_workers=1, in_order=False),
        Module,
        {},
        "has in_order=False, so nothing tells which samples a batch holds; leave it out",
    ),
    "iterator": (loader, Fetching, {}, r"let the module take them as `training_step\(self, batch, batch_idx\)`"),
    "keys": (
        lambda: DataLoader(Keys(), batch_size=4, sampler=[f"k{index}" for index in range(8)]),  # type: ignore[arg-type]
        Module,
        {},
        "does not draw positions in the dataset, so no language can be looked up there; let each raw sample have its own",
    ),
    "languages for a stream": (
        lambda: DataLoader(Streams(rows()), batch_size=4),
        Module,
        {"languages": ["de"] * 8},
        "8 languages were given for a stream, whose samples have no position",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_without_languages_are_refused(tmp_path: Path, name: str) -> None:
    train, kind, options, message = REFUSED[name]
    with pytest.raises(TracInError, match=message):
        fit(tmp_path, train(), kind(), options)
