"""Imported learning rates equal those that the callback recorded in the same fit, or the record says that they are estimates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules

from lightning_tracin import TracInCallback, TracInRun, attribute, import_checkpoints
from lightning_tracin.cli.commands import status
from tests.support.fits import Classifier, loaders, trainer

Made = Callable[[Any], Any]

SCHEDULERS: dict[str, tuple[Made, str]] = {
    "step": (lambda o: schedules.StepLR(o, 1, 0.5), "epoch"),
    "lambda": (lambda o: schedules.LambdaLR(o, lambda n: 1 / (n + 2)), "epoch"),
    "cosine": (lambda o: schedules.CosineAnnealingLR(o, 3), "epoch"),
    "cosine by step": (lambda o: schedules.CosineAnnealingLR(o, 15), "step"),
    "one cycle": (lambda o: schedules.OneCycleLR(o, 0.1, 15), "step"),
    "sequential": (
        lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o, 0.1, 1), schedules.ExponentialLR(o, 0.5)], [1]),
        "epoch",
    ),
    "chained": (lambda o: schedules.ChainedScheduler([schedules.LinearLR(o, 0.3, 1.0, 2), schedules.StepLR(o, 1, 0.5)]), "epoch"),
    "plateau": (lambda o: schedules.ReduceLROnPlateau(o, patience=0, threshold=10.0), "epoch"),
}


@pytest.mark.results
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_estimates_are_in_the_record_the_status_and_the_findings(tmp_path: Path) -> None:
    fitted(tmp_path, "one cycle", {"save_on_train_epoch_end": True})
    module = Scheduled("step")  # another schedule than the fit's
    with pytest.warns(UserWarning, match="The learning rates before step 5, 10, 15 are estimates"):
        import_checkpoints(tmp_path / "run", tmp_path / "checkpoints", module, *loaders(), top_k=5)
    assert "The learning rates before step 5, 10, 15 are estimates" in status(str(tmp_path / "run"))
    run = attribute(Scheduled("step"), tmp_path / "run", *loaders(), progress=False)
    assert run.record.estimated_rates is not None
    assert run.record.estimated_rates in (run.path / "results" / "report.html").read_text(encoding="utf-8")


class Scheduled(Classifier):
    """Two groups with a scheduler by its name; the schedule can be unknown without a Trainer."""

    def __init__(self, name: str, told: bool = True) -> None:
        super().__init__()
        self.name, self.told = name, told

    def configure_optimizers(self) -> Any:
        if not self.told:
            raise RuntimeError("no schedule without a Trainer")
        several = list(self.parameters())
        optimizer = SGD([{"params": several[:3], "lr": 0.1}, {"params": several[3:], "lr": 0.02}], momentum=0.5)
        make, interval = SCHEDULERS[self.name]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": make(optimizer), "interval": interval, "monitor": "val_loss"},
        }


def fitted(folder: Path, name: str, moment: dict[str, Any]) -> TracInRun:
    """Fit with the callback beside ModelCheckpoint; the callback's run."""
    pl.seed_everything(3)
    steps = moment.get("every_n_train_steps")
    callbacks = [
        TracInCallback(folder / "own", top_k=5, when="never", **({} if steps is None else {"every_n_train_steps": steps})),
        ModelCheckpoint(folder / "checkpoints", filename="{step}", save_top_k=-1, **moment),
    ]
    trainer(folder, callbacks, enable_checkpointing=True).fit(Scheduled(name), *loaders())
    return TracInRun.open(folder / "own")


def rates(run: TracInRun) -> dict[int, list[float]]:
    return {one.step: [*one.record.learning_rates, *one.record.last_learning_rates] for one in run.snapshots}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "moment",
    [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}, {"every_n_train_steps": 4}],
    ids=["after the epoch", "after validation", "steps"],
)
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_rates_are_the_callbacks_or_said_to_be_estimates(tmp_path: Path, name: str, moment: dict[str, Any]) -> None:
    own = rates(fitted(tmp_path, name, moment))
    for told in (True, False):
        module = Scheduled(name, told)
        given: dict[str, Any] = {}
        if not told:
            several = list(module.parameters())
            given = {"optimizers": [SGD([{"params": several[:3]}, {"params": several[3:]}], lr=0.1)]}
        run = import_checkpoints(tmp_path / f"run-{told}", tmp_path / "checkpoints", module, *loaders(), top_k=5, **given)
        said = run.record.estimated_rates or ""
        estimates = [int(word.strip(",")) for word in said.partition(" are ")[0].split() if word.strip(",").isdigit()]
        for step, found in rates(run).items():
            if step not in estimates:
                assert found == pytest.approx(own[step], rel=1e-9), (told, step)
        if told and name != "plateau":
            assert not estimates
        if not told and name in ("step", "cosine", "plateau"):
            assert not estimates
        if not told and name in ("one cycle", "cosine by step"):
            assert estimates == sorted(rates(run))
