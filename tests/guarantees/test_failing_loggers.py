"""A logger that fails costs its own curves, and no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import wandb
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import Classifier, loaders, trainer

pytestmark = pytest.mark.results


class Failing(CSVLogger):
    """Raises when the callback logs, and not before."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith("tracin/") for name in metrics):
            raise ConnectionError("no route to host")


class FinishesWandb(pl.Callback):
    """Ends the W&B run before the fit has ended."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wandb.finish()


class Silent(Classifier):
    """Logs nothing itself."""

    def log(self, *_: Any, **__: Any) -> None:
        pass


def fitted(folder: Path, logger: Any, others: list[pl.Callback], when: str = "fit_end") -> TracInRun:
    pl.seed_everything(3)
    callback = TracInCallback(folder / "run", top_k=5, when=when)
    trainer(folder, [callback, *others], max_epochs=2, logger=logger).fit(Silent(), *loaders())
    return TracInRun.open(folder / "run")


@pytest.mark.parametrize("when", ["fit_end", "snapshot"])
def test_a_logger_that_raises_is_a_warning_and_everything_is_there(tmp_path: Path, when: str) -> None:
    with pytest.warns(UserWarning, match=r"A logger failed \(ConnectionError: no route to host\).*`lightning-tracin reliance"):
        run = fitted(tmp_path / "failing", [Failing(tmp_path / "logs")], [], when)
    want = fitted(tmp_path / "without", False, [], when)
    assert run.influence().equals(want.influence())
    for name in ("reliance.csv", "top.csv"):
        assert (run.path / "results" / name).read_bytes() == (want.path / "results" / name).read_bytes()


def test_a_finished_wandb_run_costs_no_result(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    with pytest.warns(UserWarning, match="A logger failed"):
        run = fitted(tmp_path / "fit", logger, [FinishesWandb()])
    assert len(run.snapshots) == 2
    assert (run.path / "results" / "report.html").exists()
