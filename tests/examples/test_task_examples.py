"""The examples of other tasks at tiny size: every score is that of a loop over single samples."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_tracin import TracInRun
from tests.support.rows import real_data

TASKS = ("slots", "intents", "causal_lora", "translation", "answers")
TRAIN, PROBES = (0, 7, 30), (0, 3, 11)


def gradient(trainer: pl.Trainer, loader: object, index: int, scales: Mapping[str, Tensor]) -> Tensor:
    """The gradient of one sample's loss, over all trainable parameters, by plain autograd; scaled as the fit's Adam does."""
    module = trainer.lightning_module
    batch = loader.collate_fn([loader.dataset[index]])
    named = {name: one for name, one in module.named_parameters() if one.requires_grad}
    found = torch.autograd.grad(module.training_step(batch, 0), list(named.values()), allow_unused=True)
    pairs = zip(named, found, strict=True)
    return torch.cat([((0 if gradient is None else gradient) * scales[name]).flatten() for name, gradient in pairs])


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_single_samples(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = importlib.import_module(task).main(output=str(tmp_path / "out"), items=15, epochs=1)
    run = TracInRun.open(tmp_path / "out")
    module = trainer.lightning_module.eval()
    assert run.record.elements == sum(one.numel() for one in module.parameters() if one.requires_grad)
    influence = run.influence("dot").to_numpy()
    assert run.record.options.preconditioner == "adam-factored"
    scales = run.snapshots[0].scales()
    train = torch.stack([gradient(trainer, trainer.train_dataloader, index, scales) for index in TRAIN]).double()
    probes = torch.stack([gradient(trainer, trainer.val_dataloaders, index, scales) for index in PROBES]).double()
    off = (train @ probes.T - torch.from_numpy(influence[list(TRAIN)][:, list(PROBES)])).abs()
    assert float((off / (train.norm(dim=1)[:, None] * probes.norm(dim=1))).max()) < 1e-5
    if run.record.options.per_token:
        top, tokens = (pd.read_csv(tmp_path / "out" / "results" / f"{name}.csv") for name in ("top", "tokens"))
        sums = tokens.groupby(["probe", "train"])["score"].sum()
        assert all(sums[line.probe, line.train] == pytest.approx(line.score, abs=1e-5) for line in top.itertuples())
        assert tokens["text"].notna().all()
    printed = capsys.readouterr().out.split("Influence of the train languages")[1]
    assert printed.startswith(" (columns) on the probe languages (rows), nats (first order)\n")
    rows = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in printed.splitlines()[3:-1]}
    assert set(rows) == set(run.probes.language)
    (only,) = run.snapshots
    nats = run.influence("dot", "learning_rate") * only.steps / (len(run.train) * only.visits)
    sums = nats.groupby("train_language").sum("train").groupby("probe_language").mean("probe")
    for language, values in rows.items():
        assert values == pytest.approx(sums.sel(probe_language=language).to_numpy().tolist(), abs=6e-4)
    assert set(run.probes.language) - set(run.train.language) >= {"da", "id"}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_real_commands(task: str, tmp_path: Path) -> None:
    folder = real_data("xsid-0.7")
    importlib.import_module(task).main(output=str(tmp_path / "out"), data=str(folder), items=10, epochs=1)
    run = TracInRun.open(tmp_path / "out")
    translated = task == "translation"  # out of English
    if task != "answers":  # commands without a slot have no question
        assert len(run.train) == 8 * (3 if translated else 4)
        assert len(run.probes) == 2 * (5 if translated else 6)
    lines = [line for line in (folder / "de.valid.conll").read_text("utf-8").splitlines() if line.startswith("# text")]
    spoken = {line.partition("=")[2].strip().casefold().replace(" ", "") for line in lines}
    texts = [text for text, language in zip(run.train.text, run.train.language, strict=True) if language == "de"]
    assert texts
    assert all(text.casefold().replace(" ", "") in spoken for text in texts)


@pytest.mark.parametrize("task", TASKS)
def test_each_is_short_and_names_its_command(task: str, examples: Path) -> None:
    text = (examples / f"{task}.py").read_text()
    assert len(text.splitlines()) <= 50
    assert f"`python examples/{task}.py`" in text.split('"""')[1]
