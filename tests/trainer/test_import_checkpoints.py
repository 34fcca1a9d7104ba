"""Checkpoints of real fits give the scores of the callback's own snapshots, or of a loop over their gradients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from transformers import Trainer, TrainerCallback, TrainingArguments

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute, import_checkpoints
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded, tiny_xlmr
from tests.support.oracles import gradient_loop

pytestmark = pytest.mark.results


class Constant(Classifier):
    """Two groups whose learning rates do not change, so that rates at checkpoints are the rates between them."""

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()["optimizer"]
        return torch.optim.AdamW([{"params": group["params"], "lr": group["initial_lr"]} for group in made.param_groups])


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the callback, and the checkpoints of ModelCheckpoint in the same fit."""
    folder = tmp_path_factory.mktemp("fit")
    pl.seed_everything(7)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{step}", save_top_k=-1, every_n_train_steps=4, save_last=True)
    watcher = TracInCallback(folder / "run", top_k=5, every_n_train_steps=4, preconditioner=None)
    trainer(folder, [watcher, saver], enable_checkpointing=True, max_epochs=4).fit(Constant(), *loaders())
    return folder


def facts(run: TracInRun) -> np.ndarray:
    """Index, epoch, step, steps, visits and learning rates of every snapshot."""
    return np.array([(s.index, s.epoch, s.step, s.steps, s.visits, *s.learning_rates) for s in run.snapshots])


def test_lightning_checkpoints_give_the_scores_of_the_callback(tmp_path: Path, fit: Path) -> None:
    own = TracInRun.open(fit / "run")
    run = import_checkpoints(tmp_path / "run", fit / "checkpoints", Constant(), *loaders(), top_k=5)
    assert run.record.loss == own.record.loss
    assert (run.record.train, run.record.probes) == (own.record.train, own.record.probes)
    assert facts(own)[:, 2].tolist() == [4, 8, 12, 16, 20]
    np.testing.assert_allclose(np.delete(facts(run), 4, 1), np.delete(facts(own), 4, 1), rtol=1e-12)
    np.testing.assert_allclose(facts(run)[:, 4], 0.8)  # 4 of 5 batches; the callback counts samples
    done = attribute(Constant(), run, *loaders(), progress=False)
    for similarity in ("cosine", "dot", "relatif"):
        np.testing.assert_allclose(done.influence(similarity), own.influence(similarity), rtol=1e-6, atol=1e-7)
    groups = [snapshot.record.groups for snapshot in (*done.snapshots[:1], *own.snapshots[:1])]
    assert groups[0] == groups[1]
    assert (done.path / "results" / "report.html").exists()


def test_rates_between_checkpoints_are_the_mean_of_both_ends(tmp_path: Path) -> None:
    pl.seed_everything(7)
    saver = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1)
    trainer(tmp_path, [saver], enable_checkpointing=True, max_epochs=2).fit(Classifier(steps=100), *loaders())
    run = import_checkpoints(tmp_path / "run", tmp_path / "checkpoints", Classifier(), *loaders(), top_k=5)
    ends = [0.01 * 0.95, 0.01 * 0.9]  # of the schedule at steps 5 and 10
    assert [s.learning_rates[0] for s in run.snapshots] == pytest.approx([ends[0], sum(ends) / 2])
    assert [s.record.last_learning_rates[1] for s in run.snapshots] == pytest.approx([end * 0.3 for end in ends])
    assert [s.visits for s in run.snapshots] == [1, 1]


class Wrapped(pl.LightningModule):
    """A module around the model that Hugging Face's Trainer fits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.model = tiny_xlmr(seed=seed)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        return loss


class Watch(TrainerCallback):
    """What the fit was at each epoch's end: its weights, and the mean of the rates of its steps."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.seen: list[tuple[float, dict[str, torch.Tensor]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weights = {name: tensor.clone() for name, tensor in kwargs["model"].state_dict().items()}
        self.seen.append((sum(self.rates) / len(self.rates), weights))
        self.rates.clear()


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    """Checkpoints of a real fit, and what was seen of it."""
    pytest.importorskip("accelerate")
    folder, watch = tmp_path_factory.mktemp("trainer"), Watch()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=7,
        learning_rate=1e-2,
        warmup_steps=4,
        save_strategy="epoch",
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(tiny_xlmr(), arguments, data_collator=padded, train_dataset=Samples(30, 1), callbacks=[watch]).train()
    return folder, watch


def test_hugging_face_checkpoints_give_the_scores_of_a_loop(tmp_path: Path, hugging_face: tuple[Path, Watch]) -> None:
    folder, watch = hugging_face
    run = import_checkpoints(tmp_path / "run", folder, Wrapped(seed=1), *loaders(), top_k=5)
    assert [(s.epoch, s.step, s.steps, s.visits) for s in run.snapshots] == [(1, 5, 5, 1), (2, 10, 5, 1), (3, 15, 5, 1)]
    assert [s.learning_rates[0] for s in run.snapshots] == pytest.approx([rate for rate, _ in watch.seen])
    done = attribute(Wrapped(seed=2), run, *loaders(), progress=False)
    expected, scale = np.zeros((30, 12)), np.zeros((30, 12))
    for rate, weights in watch.seen:
        model = tiny_xlmr().eval()
        model.load_state_dict(weights)
        names = [name for name, _ in model.named_parameters()]
        z, q = (
            torch.cat(
                list(gradient_loop(model, lambda one: model(**padded([one])).loss, loader.dataset.samples, names).values()), 1
            )
            for loader in loaders()
        )
        expected += rate * (z @ q.T).numpy()
        scale += rate * np.outer(z.norm(dim=1), q.norm(dim=1))
    assert (np.abs(done.influence("dot", "learning_rate") - expected) / scale).max() < 1e-5


def plain(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    torch.save(content, path)
    return path


class Payload:
    """What executes on loading, where a pickle is executed."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_what_is_no_checkpoint_is_named(
    tmp_path: Path, fit: Path, hugging_face: tuple[Path, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    headless = shutil.copytree(hugging_face[0] / "checkpoint-5", tmp_path / "headless")
    (headless / "model.safetensors").unlink()
    quiet = shutil.copytree(hugging_face[0] / "checkpoint-5", tmp_path / "quiet")
    state = json.loads((quiet / "trainer_state.json").read_text())
    (quiet / "trainer_state.json").write_text(json.dumps({**state, "log_history": []}))
    ckpt = next((fit / "checkpoints").glob("step=4.ckpt"))
    for given, module, message in (
        (tmp_path / "none", Constant(), r"There is no checkpoint .*none\."),
        (tmp_path / "empty", Constant(), r"empty holds no checkpoint; give a \.ckpt file of Lightning's ModelCheckpoint, or a"),
        ([], Constant(), r"No checkpoint was given; give a \.ckpt file"),
        (headless, Wrapped(), r"headless has an unknown layout; give a \.ckpt file"),
        (quiet, Wrapped(), r"trainer_state\.json logs no learning rate; fit with `logging_steps`"),
        (plain(tmp_path, "state.ckpt", {"state_dict": {}}), Constant(), r"has no epoch, global_step, optimizer_states\)"),
        (plain(tmp_path, "evil.ckpt", {"state_dict": Payload()}), Constant(), r"cannot be read as weights and plain values"),
        (ckpt, torch.nn.Linear(2, 2), r"holds other parameters than Linear: 'model\.\S+' is not one of them"),
        (ckpt, Larger(), r"it has no 'extra\.weight' \(and 1 more\)"),
    ):
        with pytest.raises(TracInError, match=message):
            import_checkpoints(tmp_path / "run", given, as_module(module), *loaders(), top_k=5)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run" / "run.json").exists()


class Larger(Constant):
    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.nn.Linear(2, 2)


class Linear(pl.LightningModule):
    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner


def as_module(module: torch.nn.Module) -> pl.LightningModule:
    return module if isinstance(module, pl.LightningModule) else Linear(module)  # type: ignore[arg-type]


def test_groups_of_other_optimizers_are_named(tmp_path: Path, fit: Path) -> None:
    module = Constant()
    with pytest.raises(TracInError, match=r"was saved with groups of \d+ \+ \d+ parameters, but the optimizers have 41"):
        import_checkpoints(
            tmp_path / "run",
            fit / "checkpoints",
            module,
            *loaders(),
            top_k=5,
            optimizers=[torch.optim.SGD(module.parameters(), 0.1)],
        )


def test_what_cannot_come_from_checkpoints(tmp_path: Path, fit: Path) -> None:
    with pytest.raises(TracInError, match="preconditioner='adam' needs second moments at each snapshot"):
        import_checkpoints(tmp_path / "run", fit / "checkpoints", Constant(), *loaders(), preconditioner="adam")
    with pytest.raises(TracInError, match="holds another run"):
        import_checkpoints(fit / "run", fit / "checkpoints", Constant(), *loaders())
