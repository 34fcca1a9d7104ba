"""After a real fit, every score equals a loop of `autograd.grad` over single samples, and captum's exact path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from captum.influence import TracInCP
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_tracin import TracInCallback, TracInRun, attribute
from lightning_tracin.storage.snapshots import load_weights
from tests.support.fits import Classifier, Samples, loaders, trainer, with_texts
from tests.support.models import padded
from tests.support.oracles import gradient_loop, ingredients_loop
from tests.trainer.test_attribute import assert_same_files, files


def fitted(folder: Path, batch_size: int = 7, attention: str = "sdpa", **settings: Any) -> tuple[Classifier, TracInRun]:
    pl.seed_everything(7)
    module = Classifier(attention)
    callback = TracInCallback(folder / "run", top_k=5, batch_size=batch_size, preconditioner=None)
    trainer(folder, [callback], **settings).fit(module, *loaders())
    return module, TracInRun.open(folder / "run")


def loss_of_one(module: Classifier, sample: dict[str, Any]) -> Tensor:
    return module.model(**padded([sample])).loss


def assert_scores_equal_the_loop(module: Classifier, run: TracInRun) -> None:
    """Every similarity and weighting, summed over snapshots, against DESIGN's formulas on gradients of single samples."""
    module = module.float().eval()
    names = [name for name, _ in module.named_parameters()]
    rates = [3e-3 if name.endswith("bias") else 1e-2 for name in names]  # which group of the optimizer each belongs to
    groups = {name: int(rate == 3e-3) for name, rate in zip(names, rates, strict=True)}
    train, probes = Samples(30, 1).samples, Samples(12, 2).samples
    expected: dict[tuple[str, str], Any] = {}
    scale: dict[tuple[str, str], Any] = {}
    for snapshot in run.snapshots:
        load_weights(module, snapshot.state_dict())
        dot, norm, probe_norm = ingredients_loop(
            *(gradient_loop(module, lambda one: loss_of_one(module, one), samples, names) for samples in (train, probes)),
            groups,
            2,
        )
        whole, probe_whole = norm.square().sum(0).sqrt(), probe_norm.square().sum(0).sqrt()
        for weighting in ("uniform", "learning_rate"):
            weight = torch.ones(2) if weighting == "uniform" else torch.tensor(snapshot.learning_rates) * snapshot.visits
            summed = torch.einsum("g,gtp->tp", weight.double(), dot)
            size = torch.einsum("g,gt,gp->tp", weight.double(), norm, probe_norm)
            for similarity, divisor in (
                ("dot", torch.ones_like(summed)),
                ("cosine", whole[:, None] * probe_whole[None]),
                ("relatif", whole[:, None].expand_as(summed)),
            ):
                key = similarity, weighting
                expected[key] = expected.get(key, 0) + summed / divisor
                scale[key] = scale.get(key, 0) + size / divisor
    for (similarity, weighting), want in expected.items():
        got = run.influence(similarity, weighting).to_numpy()
        difference = np.abs(got - want.numpy()) / scale[similarity, weighting].numpy()
        assert difference.max() <= 1e-5, (similarity, weighting, difference.max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_scores_after_a_fit(tmp_path: Path, attention: str, batch_size: int) -> None:
    assert_scores_equal_the_loop(*fitted(tmp_path, batch_size, attention))


def test_scores_with_accumulated_gradients(tmp_path: Path) -> None:
    assert_scores_equal_the_loop(*fitted(tmp_path, accumulate_grad_batches=2))


def test_scores_after_a_mixed_precision_fit_are_those_of_float32(tmp_path: Path) -> None:
    assert_scores_equal_the_loop(*fitted(tmp_path, precision="bf16-mixed"))


class _Logits(nn.Module):
    """Captum wants a model that returns logits."""

    def __init__(self, module: Classifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.module.model(input_ids=ids, attention_mask=mask).logits


def test_dot_products_equal_captums_exact_path(tmp_path: Path) -> None:
    module, run = fitted(tmp_path)
    module.eval()
    train, probes = padded(Samples(30, 1).samples), padded(Samples(12, 2).samples)

    def load(model: _Logits, index: Any) -> float:
        load_weights(model.module, run.snapshots[int(index)].state_dict())
        return 1.0

    captum = TracInCP(
        _Logits(module),
        TensorDataset(train["input_ids"], train["attention_mask"], train["labels"]),
        checkpoints=[str(snapshot.index) for snapshot in run.snapshots],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=10,
        sample_wise_grads_per_batch=False,
    )
    want = captum.influence((probes["input_ids"], probes["attention_mask"], probes["labels"])).T.numpy()
    got = run.influence("dot", "uniform").to_numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.results
def test_attributing_at_each_snapshot_gives_the_same_bytes_as_at_the_end(tmp_path: Path) -> None:
    runs = []
    for when in ("fit_end", "snapshot"):
        pl.seed_everything(7)
        callback = TracInCallback(tmp_path / when, top_k=5, when=when)
        trainer(tmp_path, [callback]).fit(Classifier(), *loaders())
        runs.append(TracInRun.open(tmp_path / when))
    assert sum(name.startswith("ingredients/") for name in files(runs[0])) == 3
    assert_same_files(*runs)


def test_small_memory_budget_takes_the_probes_in_chunks_with_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted(tmp_path / "whole")[1].influence("dot")
    pl.seed_everything(7)
    monkeypatch.setattr("lightning_tracin.attribution.batching.bytes_of_a_probe", lambda *_: 3000)
    callback = TracInCallback(
        tmp_path / "run", top_k=5, memory_budget=4 * 1000 * 5 + 4, preconditioner=None
    )  # three quarters of it: five probes
    trainer(tmp_path, [callback]).fit(Classifier(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert len(list((run.path / "ingredients" / run.snapshots[0].name).iterdir())) == 3
    np.testing.assert_allclose(run.influence("dot"), whole, rtol=1e-4, atol=1e-6 * float(np.abs(whole).max()))


def test_probes_may_be_scored_in_float64(tmp_path: Path) -> None:
    pl.seed_everything(7)
    module = Classifier()
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, dtype="float64", preconditioner=None)]).fit(module, *loaders())
    assert_scores_equal_the_loop(module, TracInRun.open(tmp_path / "run"))


_PROCESSES = """
import json
import sys
from pathlib import Path

import pytorch_lightning as pl

import lightning_tracin.attribution.exact as engine
import lightning_tracin.attribution.samples as samples
import lightning_tracin.attribution.prepare as prepare
import lightning_tracin.attribution.batching as work
from lightning_tracin import TracInCallback
from lightning_tracin.storage.ingredients import IngredientStore
from tests.support.fits import Classifier, loaders, trainer, with_texts

work.SHARD_SAMPLES = int(sys.argv[2])
noted = {"facts": [], "texts": 0, "measured": [], "went through the model": [], "written": []}
run_batch, write, read_table, size = engine.run_batch, IngredientStore.write, samples.read_table, samples.size_of
measured = prepare.measured


def noted_run(capture, job, samples, batch, consumer, kind, name):
    if kind == "train sample":
        noted["went through the model"] += batch
    run_batch(capture, job, samples, batch, consumer, kind, name)


def noted_write(store, shard, block):
    noted["written"] += block.train
    write(store, shard, block)


def noted_facts(dataset, columns, role, languages):
    noted["facts"].append(role)
    return read_table(dataset, columns, role, languages)


def noted_set(train, environment):
    noted["texts"] = sum(1 for text in train.table.text if text)
    return measured(train, environment)


def noted_size(value):
    if isinstance(value, dict):
        noted["measured"].append(value["input_ids"])
    return size(value)


engine.run_batch, IngredientStore.write = noted_run, noted_write
samples.read_table, samples.size_of, prepare.measured = noted_facts, noted_size, noted_set

if __name__ == "__main__":
    pl.seed_everything(7)
    callback = TracInCallback("run", top_k=5, batch_size=4, text_columns=["text"], preconditioner=None)
    fitting = trainer(Path("."), [callback], strategy="ddp", devices=int(sys.argv[1]), max_epochs=2)
    fitting.fit(Classifier(), *with_texts(*loaders(batch_size=5)))
    Path(f"rank{fitting.global_rank}").write_text(json.dumps(noted))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "shard", "shares"),
    [
        (2, 8, [14, 16]),
        pytest.param(3, 8, [8, 8, 14], marks=pytest.mark.long),
        pytest.param(2, 100, [0, 30], marks=pytest.mark.long),
    ],
    ids=["two, uneven", "three, uneven", "fewer shards than ranks"],
)
def test_processes_share_the_work_and_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, shard: int, shares: list[int]
) -> None:
    (tmp_path / "script.py").write_text(_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "script.py", str(ranks), str(shard)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = TracInRun.open(tmp_path / "run")
    assert len(run.snapshots) == 2
    assert [snapshot.visits for snapshot in run.snapshots] == pytest.approx([1.0, 1.0], abs=0.1)
    assert_scores_equal_the_loop(Classifier(), run)

    noted = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(ranks)]
    for what in ("went through the model", "written"):
        each = [one[what] for one in noted]
        assert sorted(len(mine) // 2 for mine in each) == shares, what  # of two snapshots
        assert sorted(index for mine in each for index in set(mine)) == list(range(30)), what  # nothing twice, by no two ranks
        assert all(sorted(mine) == sorted([*set(mine)] * 2) for mine in each), what

    assert [one["facts"] for one in noted] == [["train samples", "probes"]] + [[]] * (ranks - 1)
    assert [one["texts"] for one in noted] == [30] + [0] * (ranks - 1)
    texts = [sample["input_ids"] for sample in Samples(30, 1)]
    for rank, one in enumerate(noted):  # lengths of its own part, and of all probes
        assert [text for text in one["measured"] if text in texts] == texts[rank::ranks]

    monkeypatch.setattr("lightning_tracin.attribution.batching.SHARD_SAMPLES", shard)
    alone = attributed_alone(tmp_path)
    for ours, theirs in zip(run.snapshots, alone.snapshots, strict=True):
        np.testing.assert_array_equal(run.scores(ours.index), alone.scores(theirs.index))
    assert {path.name for path in (run.path / "results").iterdir()} >= {"reliance.csv", "top.csv", "report.html"}
    pd.testing.assert_frame_equal(run.reliance(5), alone.reliance(5), check_exact=True)


def attributed_alone(folder: Path) -> TracInRun:
    """The same snapshots, attributed by one process."""
    shutil.copytree(folder / "run", folder / "alone")
    for computed in ("ingredients", "results"):
        shutil.rmtree(folder / "alone" / computed)
    return attribute(Classifier(), folder / "alone", *with_texts(*loaders(batch_size=5)), progress=False)
