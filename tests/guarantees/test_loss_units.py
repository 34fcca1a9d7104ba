"""Whole fits of token models, in both units, against a loop; and how few samples are looked at one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import XLMRobertaForTokenClassification

from lightning_tracin import TracInCallback, TracInRun, attribute
from lightning_tracin.config import LossUnit
from tests.support.fits import Classifier, Samples, trainer
from tests.support.models import padded, tiny_xlmr
from tests.support.oracles import gradient_loop

IGNORED = -100


class Tagger(Classifier):
    """Counts how many samples its steps get, on all copies together."""

    sizes: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = XLMRobertaForTokenClassification(tiny_xlmr().config)  # type: ignore[assignment]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.sizes.append(len(batch["labels"]))
        loss: Tensor = self.model(**batch).loss
        return loss


class Tagged(Samples):
    """A label for each token; some are ignored, and one sample has none."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        made = torch.Generator().manual_seed(seed)
        for index, sample in enumerate(self.samples):
            labels = torch.randint(3, (len(sample["input_ids"]),), generator=made)
            labels[torch.rand(len(labels), generator=made) < 0.4] = IGNORED
            labels[1] = 2
            sample["labels"] = [IGNORED] * len(labels) if index == 4 else labels.tolist()


def collated(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = padded([{**sample, "labels": 0} for sample in samples])
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for line, sample in zip(labels, samples, strict=True):
        line[: len(sample["labels"])] = torch.tensor(sample["labels"])
    return {**batch, "labels": labels}


def data() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return (
        DataLoader(Tagged(40, 1), batch_size=8, shuffle=True, collate_fn=collated),
        DataLoader(Tagged(12, 2), batch_size=5, collate_fn=collated),
    )


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_scores_of_a_fit_are_those_of_a_loop_in_both_units(tmp_path: Path, unit: LossUnit) -> None:
    pl.seed_everything(3)
    module = Tagger()
    callback = TracInCallback(tmp_path / "run", top_k=5, when="never", loss_unit=unit, preconditioner=None)
    train, probes = data()
    trainer(tmp_path, [callback], max_epochs=1).fit(module, train, probes)
    run = attribute(module, TracInRun.open(tmp_path / "run"), *data(), progress=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["loss_unit"] == unit
    module = module.eval()
    module.load_state_dict(run.snapshots[0].state_dict(), strict=False)

    def loss(sample: dict[str, Any]) -> Tensor:
        count = sum(label != IGNORED for label in sample["labels"])
        if not count:
            return 0 * next(module.parameters()).sum()
        return module.model(**collated([sample])).loss * (count if unit == "token" else 1)

    sides = (
        gradient_loop(module, loss, Tagged(*which).samples, list(run.snapshots[0].record.groups)) for which in ((40, 1), (12, 2))
    )
    of_train, of_probes = sides
    want = sum(of_train[name] @ of_probes[name].T for name in of_train).numpy()
    got = run.influence("dot").to_numpy()
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert (got[4] == 0).all()
    assert (run.influence("cosine").to_numpy()[4] == 0).all()


def test_a_pass_looks_at_no_sample_alone_beyond_its_checks(tmp_path: Path) -> None:
    def evaluations(count: int) -> tuple[int, int]:
        pl.seed_everything(3)
        module = Tagger()
        module.sizes.clear()
        train = DataLoader(Tagged(count, 1), batch_size=8, collate_fn=collated)
        trainer(tmp_path, [TracInCallback(tmp_path / f"run{count}", top_k=5)], max_epochs=1).fit(module, train, data()[1])
        return sum(size == 1 for size in module.sizes), len(module.sizes)

    few, many = evaluations(40), evaluations(400)
    assert few[0] == many[0]
    assert many[1] > few[1] + 11
