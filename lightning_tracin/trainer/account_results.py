"""Stores and logs the windows of an account, and writes its results when the fit ends; what fails does not end the fit."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial

from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Trainer
from torch import Tensor

from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.reporting.attempts import listed
from lightning_tracin.reporting.contribution_points import ContributionPoints
from lightning_tracin.reporting.contribution_results import write_contributions
from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.account import AccountStore, WindowRecord
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.trainer.tolerance import logged, window_written


class AccountResults:
    """What becomes of an account's numbers.

    Args:
        store: the account's files.
        trainer: the fit's, whose loggers get curves.
        processes: those of the fit; the first one writes and logs.
    """

    def __init__(self, store: AccountStore, trainer: Trainer, processes: Processes) -> None:
        self._store, self._processes = store, processes
        self._directory = RunDirectory(store.folder.parent)
        self._points = ContributionPoints(store)
        self._sinks = sinks_for(trainer.loggers) if trainer.is_global_zero else []

    def add(self, record: WindowRecord, numbers: Mapping[str, Tensor]) -> bool:
        """Store a window and log it; False, with a warning, if the system refuses to store it."""
        write = partial(self._store.append, record, numbers)
        refusal = on_rank_zero(self._processes, lambda: window_written(write, record.number, self._store.folder))
        if refusal is not None:
            rank_zero_warn(refusal)
            return False
        for sink in self._sinks:
            self._log(partial(self._log_latest, sink.window))
        return True

    def _log_latest(self, window: Callable[..., None]) -> None:
        window(self._points.latest())

    def finish(self, approximate: str | None, is_whole: bool) -> None:
        """Record the end of the fit, write tables, figures and page, and log them.

        Args:
            approximate: why the account is approximate; None if it is exact.
            is_whole: whether it goes to the end of the fit.
        """
        if self._processes.rank != 0:
            return
        record = self._store.record()
        self._store.write(record.model_copy(update={"ended": is_whole, "approximate": approximate}))
        run = TracInRun(self._directory)
        failed = write_contributions(run)
        if failed:
            command = f"lightning-tracin results --run {shlex.quote(str(run.path))}"
            rank_zero_warn(f"TracIn: not written: {listed(failed)}. Once the cause is gone, `{command}` writes them.")
        table = run.contributions(cumulative=True)
        for sink in self._sinks if len(table) else ():
            for part in sink.finishing_contributions(table):
                self._log(part)

    def _log(self, log: Callable[[], None]) -> None:
        refusal = logged(log, self._directory, "contributions")
        if refusal is not None:
            rank_zero_warn(refusal)
