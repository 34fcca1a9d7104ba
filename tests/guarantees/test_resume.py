"""A fit that goes on from a checkpoint ends with the ledger and the scores of one that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInError, TracInRun
from tests.support.fits import Classifier, loaders, trainer


def fit(folder: Path, epochs: int, checkpoint: Path | None = None, **options: Any) -> TracInRun:
    pl.seed_everything(5)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    watcher = TracInCallback(folder / "run", top_k=5, **options)
    module = Classifier()
    module.model.config.hidden_dropout_prob = 0.0
    for part in module.modules():
        if type(part).__name__ == "Dropout":
            part.p = 0.0
    train, probes = loaders(batch_size=30)  # one batch: the order of samples does not matter
    trainer(folder, [watcher, saver], enable_checkpointing=True, max_epochs=epochs).fit(
        module, train, probes, ckpt_path=checkpoint
    )
    return TracInRun.open(folder / "run")


def facts(run: TracInRun) -> np.ndarray:
    """Index, epoch, step, steps, visits and learning rates of every snapshot."""
    return np.array([(s.index, s.epoch, s.step, s.steps, s.visits, *s.learning_rates) for s in run.snapshots])


@pytest.mark.parametrize("every", [{"every_n_epochs": 1}, {"every_n_epochs": 2}, {"every_n_train_steps": 3}])
def test_resumed_fit_continues_the_ledger(tmp_path: Path, every: dict[str, int]) -> None:
    whole = fit(tmp_path / "whole", 6, **every)
    fit(tmp_path / "cut", 4, when="never", **every)
    resumed = fit(tmp_path / "cut", 6, tmp_path / "cut" / "checkpoints" / "epoch=2.ckpt", **every)
    assert facts(resumed).shape == facts(whole).shape
    np.testing.assert_allclose(facts(resumed), facts(whole), rtol=1e-12)
    np.testing.assert_allclose(resumed.influence(), whole.influence(), rtol=1e-4, atol=1e-5)


def test_resuming_with_other_settings_names_the_difference(tmp_path: Path) -> None:
    fit(tmp_path, 2, batch_size=16)
    with pytest.raises(TracInError, match=r"holds a run with batch_size 16, but this fit has 8"):
        fit(tmp_path, 4, tmp_path / "checkpoints" / "epoch=1.ckpt", batch_size=8)


def test_resuming_in_another_directory_starts_a_ledger_of_its_own(tmp_path: Path) -> None:
    fit(tmp_path / "first", 2)
    run = fit(tmp_path / "second", 4, tmp_path / "first" / "checkpoints" / "epoch=1.ckpt")
    assert [(snapshot.index, snapshot.epoch, snapshot.step) for snapshot in run.snapshots] == [(0, 3, 3), (1, 4, 4)]


def test_interrupted_attribution_computes_only_what_is_missing(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", 3)
    shards = sorted((run.path / "ingredients").rglob("*.safetensors"))
    before = [path.read_bytes() for path in shards]
    time = shards[1].stat().st_mtime_ns
    shards[0].unlink()
    fit(tmp_path / "run", 3, tmp_path / "run" / "checkpoints" / "epoch=1.ckpt")
    assert [path.read_bytes() for path in shards[:2]] == before[:2]
    assert shards[1].stat().st_mtime_ns == time


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("run.json", lambda content: content[:50], r"run\.json is damaged or of another version"),
        ("run.json", lambda content: content.replace(b'"format": 3', b'"format": 4'), r"another version \(format:"),
        ("samples/train.jsonl", lambda content: content[:-200], r"train\.jsonl is damaged"),
        ("samples/train.jsonl", lambda content: content[: content.rindex(b"{")], r"train\.jsonl is damaged or of another run"),
        (
            "samples/probes.jsonl",
            lambda content: content.replace(b'"de"', b'"ru"'),
            r"probes\.jsonl is damaged or of another run",
        ),
        ("samples/probes.jsonl", lambda content: content.replace(b'"item"', b'"itom"'), r"probes\.jsonl is damaged \(no 'item'"),
        ("snapshots/0000-step1/snapshot.json", lambda content: b"{}", r"snapshot\.json is damaged"),
        ("snapshots/0000-step1/weights.safetensors", lambda content: content[:100], r"weights\.safetensors is damaged"),
        ("ingredients/0000-step1/0000+0012-00000.safetensors", lambda content: content[:-10], r"00000\.safetensors is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    path = fit(tmp_path, 1).path / name
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))

    def read_everything() -> None:
        run = TracInRun.open(tmp_path / "run")
        run.influence()
        run.snapshots[0].state_dict()

    with pytest.raises(TracInError, match=message):
        read_everything()


def test_missing_snapshot_is_noticed(tmp_path: Path) -> None:
    run = fit(tmp_path, 3)
    (run.snapshots[1].path / "snapshot.json").unlink()
    with pytest.raises(TracInError, match=r"position 1 of the ledger but its record says index 2"):
        TracInRun.open(tmp_path / "run")


def test_weights_that_were_not_kept(tmp_path: Path) -> None:
    kept = fit(tmp_path / "kept", 2)
    for when in ("fit_end", "snapshot"):
        run = fit(tmp_path / when, 2, when=when, keep_snapshots=False)
        assert not list(run.path.rglob("weights.safetensors"))
        np.testing.assert_array_equal(run.influence(), kept.influence())
        with pytest.raises(TracInError, match=r"weights of snapshot 0000-step1 were not kept"):
            run.snapshots[0].state_dict()


def test_snapshot_holds_the_weights_of_its_moment(tmp_path: Path) -> None:
    run = fit(tmp_path, 2)
    module = Classifier()

    checkpoint = torch.load(tmp_path / "checkpoints" / "epoch=0.ckpt", weights_only=True)["state_dict"]
    weights = run.snapshots[0].state_dict()
    assert set(weights) >= {name for name, _ in module.named_parameters()}
    assert all(torch.equal(value, weights[name]) for name, value in checkpoint.items())


def test_last_steps_get_a_snapshot_of_their_own(tmp_path: Path) -> None:
    run = fit(tmp_path, 5, every_n_epochs=2, when="never")
    assert [(snapshot.epoch, snapshot.step, snapshot.steps) for snapshot in run.snapshots] == [(2, 2, 2), (4, 4, 2), (5, 5, 1)]


def test_nothing_happens_in_a_fast_dev_run(tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(tmp_path / "run")], fast_dev_run=True).fit(Classifier(), *loaders())
    assert not (tmp_path / "run").exists()


class Unfreeze(pl.Callback):
    """Trains the head alone in the first epoch, the embeddings too from the third on, and everything in the fourth."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            parameter.requires_grad_(
                "classifier" in name or trainer.current_epoch >= 3 or ("embeddings" in name and trainer.current_epoch >= 2)
            )


def test_parameters_unfrozen_later_have_their_old_values_in_earlier_snapshots(tmp_path: Path) -> None:
    runs = []
    for when in ("fit_end", "snapshot"):
        pl.seed_everything(5)
        module = Classifier()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("classifier" in name)
        callbacks = [Unfreeze(), TracInCallback(tmp_path / when, top_k=5, when=when)]
        trainer(tmp_path, callbacks, max_epochs=4).fit(module, *loaders())
        runs.append(TracInRun.open(tmp_path / when))
    assert [len(snapshot.record.groups) for snapshot in runs[0].snapshots] == [4, 4, 9, 41]
    for index in range(4):
        np.testing.assert_array_equal(runs[0].scores(index), runs[1].scores(index))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(runs[0].scores(0), runs[0].scores(1))


def test_callback_used_for_a_second_fit_does_not_mix_the_two(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5, when="never")
    trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    with pytest.raises(TracInError, match="holds another run"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())


def test_fit_called_again_to_go_on_continues_the_ledger(tmp_path: Path) -> None:
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1)
    module = Classifier()
    fitting.fit(module, *loaders())
    fitting.fit_loop.max_epochs = 3
    fitting.fit(module, *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert [(snapshot.index, snapshot.epoch, snapshot.step) for snapshot in run.snapshots] == [(0, 1, 5), (1, 2, 10), (2, 3, 15)]
    assert run.influence().shape == (30, 12)


def test_shards_of_another_chunking_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tracin.attribution.batching.bytes_of_a_probe", lambda *_: 3000)
    run = fit(tmp_path, 2, memory_budget=4 * 1000 * 6 + 4)
    before = run.influence("dot")
    shards = sorted((run.path / "ingredients" / "0000-step1").iterdir())
    assert len(shards) == 2
    shards[0].unlink()
    run = fit(tmp_path, 3, tmp_path / "checkpoints" / "epoch=1.ckpt")
    assert len(list((run.path / "ingredients" / "0000-step1").iterdir())) == 1
    np.testing.assert_allclose(run.influence("dot", snapshots=[0, 1]), before, rtol=1e-4, atol=1e-5)


def test_live_attribution_that_was_killed_is_made_up_for(tmp_path: Path) -> None:
    run = fit(tmp_path, 2, when="snapshot")
    before = run.influence()
    next((run.path / "ingredients" / "0001-step2").iterdir()).unlink()
    run = fit(tmp_path, 3, tmp_path / "checkpoints" / "epoch=1.ckpt", when="snapshot")
    np.testing.assert_array_equal(run.influence(snapshots=[0, 1]), before)


def test_fit_whose_steps_go_unnoticed_says_so(tmp_path: Path) -> None:
    class Raw(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def per_sample_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
            return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            self.per_sample_loss(batch).mean().backward()
            self.optimizers().optimizer.step()

    with pytest.warns(UserWarning, match="noticed no optimizer step"):
        trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1).fit(Raw(), *loaders())
