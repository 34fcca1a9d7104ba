"""The fit does not notice the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import Classifier, loaders, trainer


def final_state(folder: Path, callbacks: list[Any]) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    pl.seed_everything(3)
    module = Classifier()
    fit = trainer(folder, callbacks)
    fit.fit(module, *loaders())
    return module.state_dict(), fit.optimizers[0].state_dict(), torch.rand(4)


@pytest.mark.parametrize("when", ["fit_end", "snapshot", "never"])
def test_final_weights_optimizer_and_random_state_are_bit_identical(tmp_path: Path, when: Any) -> None:
    plain = final_state(tmp_path, [])
    watched = final_state(tmp_path, [TracInCallback(tmp_path / "run", when=when, top_k=5)])
    for name, value in plain[0].items():
        assert torch.equal(value, watched[0][name]), name
    for index, state in plain[1]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, watched[1]["state"][index][name]), (index, name)
    assert torch.equal(plain[2], watched[2])


class Talkative(Classifier):
    """Logs in every way, keeps a metric, counts its steps in a buffer and in an attribute, keeps a computed tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.MeanMetric()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []
        self.kept: list[Tensor] = []
        self.normalise = torch.nn.BatchNorm1d(3, affine=False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        output = self.model(**batch)
        loss = torch.nn.functional.cross_entropy(self.normalise(output.logits), batch["labels"])
        self.accuracy(loss.detach())
        self.log_dict({"loss": loss, "accuracy": self.accuracy}, on_epoch=True)
        self.log("again", loss, prog_bar=True)
        if self.logger is not None:
            self.logger.log_metrics({"direct": float(loss.detach())}, step=len(self.seen))
        self.calls += 1
        self.seen.append(batch_idx)
        self.kept = [loss]
        return {"loss": loss}


@pytest.mark.parametrize("when", ["fit_end", "snapshot"])
def test_running_training_step_outside_the_fit_leaves_no_trace(tmp_path: Path, when: Any) -> None:
    states = []
    for name, callbacks in (("plain", []), ("watched", [TracInCallback(tmp_path / "run", when=when, top_k=5)])):
        pl.seed_everything(3)
        module = Talkative()
        logger = CSVLogger(tmp_path, name=name, version="")
        fit = trainer(tmp_path, callbacks, logger=logger)
        fit.fit(module, *loaders())
        metrics = pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="step").filter(regex="^(?!tracin/)")
        own = {column: metrics[column].dropna().tolist() for column in metrics}
        states.append((module.seen, float(module.calls), module.state_dict(), own, dict(fit.logged_metrics), module.training))
    plain, watched = states
    assert plain[0] == watched[0]
    assert plain[1] == watched[1]
    assert all(torch.equal(value, watched[2][name]) for name, value in plain[2].items())
    assert plain[3] == watched[3]
    assert plain[4] == watched[4]
    assert plain[5] == watched[5]


@pytest.mark.long
def test_compiled_module_is_scored_on_an_uncompiled_copy(tmp_path: Path) -> None:
    """Its weights' gradients stay as the fit left them, and its scores are those of the plain module."""

    class Quiet(Classifier):  # Lightning's own `self.log` cannot be compiled with this version of torch
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.model(**batch).loss

        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            pass

    runs = []
    for name in ("plain", "compiled"):
        pl.seed_everything(3)
        module = Quiet()
        given = torch.compile(module, backend="eager") if name == "compiled" else module
        trainer(tmp_path, [TracInCallback(tmp_path / name, top_k=5)], max_epochs=1).fit(given, *loaders())
        runs.append(TracInRun.open(tmp_path / name).influence("dot").to_numpy())
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4, atol=1e-6 * np.abs(runs[0]).max())


def test_validation_loader_that_the_fit_has_not_asked_for_yet_gives_the_probes(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", when="never")
    settings = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 3, "max_epochs": 1}
    trainer(tmp_path, [callback], **settings).fit(Classifier(), *loaders())
    assert len(TracInRun.open(tmp_path / "run").probes) == 12


def test_several_validation_loaders_give_the_probes_together(tmp_path: Path) -> None:
    class Several(Classifier):
        def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    train, probes = loaders()
    for name, given in (("list", [probes, probes]), ("dict", {"a": probes, "b": probes})):
        callback = TracInCallback(tmp_path / name, when="never")
        trainer(tmp_path, [callback], max_epochs=1).fit(Several(), train, given)
        assert len(TracInRun.open(tmp_path / name).probes) == 24
