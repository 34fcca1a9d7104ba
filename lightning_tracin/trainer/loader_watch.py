"""Lets a fit go over a recorded copy of its train loader, which the Trainer builds before any hook that could replace it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning import Trainer

from lightning_tracin.attribution.recorded_loader import RecordedLoader, recorded
from lightning_tracin.errors import TracInError


class LoaderWatch:
    """Records the train loader of a fit.

    The Trainer passes every loader through its strategy, which may wrap it. While it sets up the train loader, this class stands
    there.

    Args:
        trainer: before it has set up its train loader.
        columns: columns of the raw samples to remember; called with the loader's dataset.
    """

    def __init__(self, trainer: Trainer, columns: Callable[[Any], Sequence[str]]) -> None:
        self._trainer, self._columns = trainer, columns
        loop: Any = trainer.fit_loop
        strategy: Any = trainer.strategy
        self._loop, self._strategy = loop, strategy
        self._is_training = False
        self._set_up: Callable[[], None] = self._loop.setup_data
        self._process: Callable[[Any], Any] = self._strategy.process_dataloader
        self._loop.setup_data = self._setup_data
        self._strategy.process_dataloader = self._process_dataloader

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

    @property
    def loader(self) -> Any:
        """The recorded train loader of the fit.

        Raises:
            TracInError: the fit has several train loaders, or its loader was set up before.
        """
        loader: Any = self._trainer.train_dataloader
        if isinstance(loader, list | tuple | dict):
            raise TracInError(
                f"ContributionCallback accounts for one train DataLoader, but the fit has {len(loader)}; use one DataLoader "
                "over a `torch.utils.data.ConcatDataset`."
            )
        if not isinstance(loader, RecordedLoader):
            raise TracInError(
                "The Trainer set up its train loader before ContributionCallback could record it; use a new Trainer for each fit."
            )
        return loader

    def close(self) -> None:
        """Give the Trainer its own methods back."""
        for owner, name in ((self._loop, "setup_data"), (self._strategy, "process_dataloader")):
            vars(owner).pop(name, None)
