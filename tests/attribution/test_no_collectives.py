"""A step with collectives is scored without them: ranks that evaluate different numbers of batches do not wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_tracin import TracInRun
from tests.guarantees.test_exact_scores import assert_scores_equal_the_loop
from tests.support.fits import Classifier

_SCRIPT = """
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable

import lightning_tracin.attribution.batching as batching
from lightning_tracin import TracInCallback
from tests.support.fits import Classifier, loaders, trainer

batching.SHARD_SAMPLES = 8


class Talkative(Classifier):
    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        world = dist.get_world_size()
        with torch.no_grad():
            gathered = self.all_gather(loss.detach())
            total = loss.detach().clone()
            dist.all_reduce(total)
            dist.all_reduce(total, async_op=True).wait()
            each = [torch.zeros_like(total) for _ in range(world)]
            dist.all_gather(each, total)
            names = [None] * world
            dist.all_gather_object(names, self.global_rank)
            whole = torch.zeros(world)
            dist.all_gather_into_tensor(whole, total.reshape(1))
            dist.broadcast(total, src=0)
            dist.barrier()
            self.trainer.strategy.barrier()
        self.log("loss", loss, sync_dist=True)
        return loss + 0 * (gathered.sum() + torch.stack(each).sum() + whole.sum()) + 0 * differentiable.all_reduce(loss)


if __name__ == "__main__":
    pl.seed_everything(7)
    callback = TracInCallback("run", top_k=5, batch_size=4, preconditioner=None)
    trainer(Path("."), [callback], strategy="ddp", devices=2, max_epochs=1).fit(Talkative(), *loaders(batch_size=5))
"""


@pytest.mark.long
def test_a_step_full_of_collectives_ends_and_has_the_scores_of_a_loop(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert_scores_equal_the_loop(Classifier(), TracInRun.open(tmp_path / "run"))
