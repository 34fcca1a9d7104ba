"""Lets a fit go over a recorded copy of its train loader, which the Trainer builds before any hook that could replace it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pytorch_lightning import Trainer

from lightning_tracin.attribution.recorded_loader import BatchFacts, RecordedLoader, recorded
from lightning_tracin.errors import TracInError


class LoaderWatch:
    """Records the train loader of a fit.

    The Trainer passes every loader through its strategy, which may wrap it, and every batch through its precision plugin before
    any hook may change it. This class stands in both places.

    Args:
        trainer: before it has set up its train loader.
        columns: columns of the raw samples to remember; called with the loader's dataset.
    """

    def __init__(self, trainer: Trainer, columns: Callable[[Any], Sequence[str]]) -> None:
        self._trainer, self._columns = trainer, columns
        self._is_training = False
        self._facts: BatchFacts | None = None
        self._patches: list[tuple[Any, str, Any, Any]] = []  # owner, name, what was there before, ours
        self._set_up = self._patch(trainer.fit_loop, "setup_data", self._setup_data)
        self._process = self._patch(trainer.strategy, "process_dataloader", self._process_dataloader)
        self._convert = self._patch(trainer.precision_plugin, "convert_input", self._convert_input)

    def _patch(self, owner: Any, name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
        original: Callable[..., Any] = getattr(owner, name)
        self._patches.append((owner, name, vars(owner).get(name), ours))
        setattr(owner, name, ours)
        return original

    def _setup_data(self) -> None:
        self._is_training = True
        try:
            self._set_up()
        finally:
            self._is_training = False

    def _process_dataloader(self, loader: Any) -> Any:
        if self._is_training:
            loader = recorded(loader, self._columns(getattr(loader, "dataset", None)))
        return self._process(loader)

    def _convert_input(self, batch: Any) -> Any:
        loaders = self._loaders()
        if len(loaders) == 1 and isinstance(loaders[0], RecordedLoader):
            each = (loaders[0].facts_of(one) for one in _inside(batch))
            self._facts = next((facts for facts in each if facts is not None), None)
        return self._convert(batch)

    def _loaders(self) -> Sequence[Any]:
        combined = self._trainer.fit_loop._combined_loader
        return [] if combined is None else combined.flattened

    @property
    def loader(self) -> Any:
        """The recorded train loader of the fit.

        Raises:
            TracInError: the fit has several train loaders, or takes no batches from one that was recorded.
        """
        if type(self._trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
            raise _unseen()
        loaders = self._loaders()
        if len(loaders) > 1:
            raise TracInError(
                f"ContributionCallback accounts for one train DataLoader, but the fit has {len(loaders)}; use one DataLoader "
                "over a `torch.utils.data.ConcatDataset`."
            )
        if not loaders or not isinstance(loaders[0], RecordedLoader):
            raise TracInError(
                "The Trainer set up its train loader before ContributionCallback could record it; use a new Trainer for each fit."
            )
        return loaders[0]

    def taken(self) -> BatchFacts:
        """What is known of the batch that the fit has just taken.

        Raises:
            TracInError: nothing.
        """
        facts, self._facts = self._facts, None
        if facts is None:
            raise _unseen()
        return facts

    def close(self) -> None:
        """Give the Trainer its own methods back."""
        for owner, name, before, ours in reversed(self._patches):
            if vars(owner).get(name) == ours:
                if before is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)
        self._patches.clear()


def _inside(batch: Any) -> Iterator[Any]:
    """A batch, and what it holds if it comes from a list or mapping of loaders."""
    yield batch
    if isinstance(batch, Mapping):
        yield from batch.values()
    elif isinstance(batch, list | tuple):
        yield from batch


def _unseen() -> TracInError:
    return TracInError(
        "The fit trains on batches that ContributionCallback does not see coming from the train DataLoader; let the module take "
        "them as `training_step(self, batch, batch_idx)`, not as a `dataloader_iter`."
    )
