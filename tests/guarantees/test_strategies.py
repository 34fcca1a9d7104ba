"""Strategies that shard the model are refused before anything is loaded or written, with the supported way named.

`TracInCallback` takes one of them, ModelParallelStrategy (`test_sharded_fits`).
FSDP needs a GPU before Lightning makes a Trainer with it, and DeepSpeed is not installed: there the strategy is put into a
Trainer (or Fabric) that exists; the latter's is known by its name, so a class of that name stands for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning_fabric.strategies as of_fabric
import pytest
import pytorch_lightning.strategies as of_trainer
import torch
from lightning_fabric import Fabric

from lightning_tracin import ContributionCallback, TracInCallback, TracInError, attribute
from tests.support.fits import Classifier, loaders, trainer


class Sharded(Classifier):
    """Lightning shards a module's weights in this hook."""

    def configure_model(self) -> None:
        """Nothing is left to do."""


def deepspeed(parent: type[Any]) -> Any:
    """A strategy of that name; Lightning's own is a DDPStrategy too."""
    return type("DeepSpeedStrategy", (parent,), {})()


def test_contributions_of_a_sharded_model_are_refused_before_the_first_step(tmp_path: Path) -> None:
    strategy = of_trainer.ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    fitting = trainer(tmp_path, [ContributionCallback(tmp_path / "run")], strategy=strategy)
    message = "ModelParallelStrategy shards the model, but ContributionCallback needs whole weights on every rank; use `strategy="
    try:
        with pytest.raises(TracInError, match=message):
            fitting.fit(Sharded(), *loaders())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert fitting.global_step == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "strategy", [of_trainer.FSDPStrategy(), deepspeed(of_trainer.DDPStrategy)], ids=lambda one: type(one).__name__
)
def test_callback_refuses_in_setup(tmp_path: Path, strategy: Any) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5)
    fitting = trainer(tmp_path, [callback])
    fitting._accelerator_connector.strategy = strategy
    message = (
        rf"{type(strategy).__name__} shards the model, but TracInCallback needs whole weights on every rank; use `strategy='ddp'`"
        r" or a single device, or ModelParallelStrategy with `fully_shard` in `configure_model`, under which the fit takes snap"
    )
    with pytest.raises(TracInError, match=message):
        callback.setup(fitting, Classifier(), "fit")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "strategy",
    [
        of_fabric.FSDPStrategy(),
        deepspeed(of_fabric.DDPStrategy),
        of_fabric.ModelParallelStrategy(lambda model, mesh: model),
    ],
    ids=lambda one: type(one).__name__,
)
def test_attribute_refuses_a_fabric_that_shards(tmp_path: Path, strategy: Any) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric._strategy = strategy
    message = (
        rf"{type(strategy).__name__} shards the model, but attribute needs whole weights .* give a Fabric with `strategy='ddp'`"
    )
    with pytest.raises(TracInError, match=message):
        attribute(Classifier(), tmp_path, *loaders(), fabric=fabric)
