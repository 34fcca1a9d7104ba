"""Masks of parameters: scores under them against a loop, how they are refused, and those of attention heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.masks import read_mask, write_mask
from lightning_tracin.snapshots import load_weights
from tests.fits import Classifier, loaders, trainer
from tests.models import padded
from tests.oracles import gradient_loop
from tests.test_bad_input import refused
from tests.test_resume import fit as resumed_fit

WORDS = "model.roberta.embeddings.word_embeddings.weight"
QUERY = "model.roberta.encoder.layer.0.attention.self.query.weight"


class Tied(Classifier):
    """Its labels are words, which a layer tells apart that shares the word embeddings' weight."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(16, 60, bias=False)
        self.decoder.weight = self.model.roberta.embeddings.word_embeddings.weight

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        states = self.model.roberta(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
        return nn.functional.cross_entropy(self.decoder(states), batch["labels"], reduction="none")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass


def loss_of_one(module: Classifier, sample: dict[str, Any]) -> Tensor:
    one = padded([sample])
    return module.per_sample_loss(one).sum() if isinstance(module, Tied) else module.model(**one).loss


def random_mask(module: nn.Module) -> dict[str, Tensor]:
    """Three elements in ten of most parameters; none of some that are named, and some are not named at all."""
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(tensor.shape, generator=generator) < 0.3 for name, tensor in module.named_parameters()}
    for name in list(mask):
        if name.endswith("key.weight"):
            mask[name] = torch.zeros_like(mask[name])
        if name.endswith("key.bias"):
            del mask[name]
    return mask


def fitted(folder: Path, module: pl.LightningModule, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    trainer(folder, [TracInCallback(folder / "run", top_k=5, **settings)], max_epochs=2).fit(module, *loaders())
    return TracInRun.open(folder / "run")


def assert_scores_equal_the_masked_loop(run: TracInRun, module: Classifier, mask: dict[str, Tensor], adam: bool = False) -> None:
    """Every similarity, summed over snapshots, against gradients of single samples multiplied with the mask."""
    module = module.eval()
    expected: dict[str, Any] = dict.fromkeys(("dot", "cosine", "relatif"), 0)
    scale: dict[str, Any] = dict.fromkeys(expected, 0)
    for snapshot in run.snapshots:
        load_weights(module, snapshot.state_dict())
        factors = {name: kept.double().flatten() for name, kept in mask.items()}
        for name, adams in snapshot.scales().items() if adam else ():
            factors[name] = factors[name] * adams.double().flatten()
        sides = []
        for loader in loaders():
            found = gradient_loop(module, lambda one: loss_of_one(module, one), loader.dataset.samples, list(factors))
            sides.append(torch.cat([found[name] * factor for name, factor in factors.items()], 1))
        dot = sides[0] @ sides[1].T
        norm, probe_norm = sides[0].norm(dim=1)[:, None], sides[1].norm(dim=1)[None]
        for similarity, divisor in (("dot", torch.ones_like(dot)), ("cosine", norm * probe_norm), ("relatif", norm)):
            expected[similarity] = expected[similarity] + dot / divisor
            scale[similarity] = scale[similarity] + norm * probe_norm / divisor
    for similarity, want in expected.items():
        difference = np.abs(run.influence(similarity).to_numpy() - want.numpy()) / scale[similarity].numpy()
        assert difference.max() <= 1e-5, (similarity, difference.max())


@pytest.mark.parametrize("preconditioner", [None, "adam"])
@pytest.mark.parametrize("kind", [Classifier, Tied])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_scores_are_those_of_the_masked_gradients(tmp_path: Path, kind: Any, preconditioner: Any, batch_size: int) -> None:
    mask = random_mask(kind())
    write_mask(tmp_path / "mask.safetensors", mask)
    settings = {"mask": tmp_path / "mask.safetensors", "preconditioner": preconditioner, "batch_size": batch_size}
    run = fitted(tmp_path, kind(), **settings)
    assert_scores_equal_the_masked_loop(run, kind(), mask, adam=preconditioner == "adam")


def test_a_mask_and_patterns_leave_what_both_choose(tmp_path: Path) -> None:
    mask = random_mask(Classifier())
    write_mask(tmp_path / "mask.safetensors", mask)
    run = fitted(tmp_path, Classifier(), mask=tmp_path / "mask.safetensors", parameters=["*.query.*", "*.value.*"])
    both = {name: kept for name, kept in mask.items() if ".query." in name or ".value." in name}
    assert set(run.snapshots[0].record.groups) == set(both)
    assert_scores_equal_the_masked_loop(run, Classifier(), both)


def test_a_mask_of_ones_changes_nothing(tmp_path: Path) -> None:
    ones = {name: torch.ones(tensor.shape, dtype=torch.int8) for name, tensor in Classifier().named_parameters()}
    write_mask(tmp_path / "mask.safetensors", ones)
    masked = fitted(tmp_path / "masked", Classifier(), mask=tmp_path / "mask.safetensors").influence()
    plain = fitted(tmp_path / "plain", Classifier()).influence()
    np.testing.assert_allclose(masked.to_numpy(), plain.to_numpy(), atol=1e-5)


def test_what_the_mask_leaves_is_said_and_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = torch.zeros(16, 16)
    kept[:3] = 1
    write_mask(tmp_path / "mask.safetensors", {QUERY: kept, WORDS: torch.zeros(60, 16)})
    with caplog.at_level("INFO"):
        run = fitted(tmp_path, Classifier(), mask=str(tmp_path / "mask.safetensors"))
    assert "256 elements of 1 parameters (all that were chosen: Linear 256), of which the mask leaves 48" in caplog.text
    assert (run.record.elements, run.record.kept_elements) == (256, 48)
    assert run.record.settings.mask == read_mask(tmp_path / "mask.safetensors").sha256


def test_a_run_without_a_mask_is_read_as_before(tmp_path: Path) -> None:
    run = fitted(tmp_path, Classifier())
    old = json.loads((run.path / "run.json").read_text())
    del old["kept_elements"], old["settings"]["mask"]  # as they were before there were masks
    (run.path / "run.json").write_text(json.dumps(old))
    again = TracInRun.open(run.path)
    assert again.record == run.record
    np.testing.assert_array_equal(again.influence(), run.influence())


def test_a_masked_run_is_not_resumed_with_another_mask(tmp_path: Path) -> None:
    mask = random_mask(Classifier())
    write_mask(tmp_path / "one.safetensors", mask)
    write_mask(tmp_path / "same.safetensors", {name: kept.float() for name, kept in reversed(mask.items()) if kept.any()})
    write_mask(tmp_path / "other.safetensors", {**mask, QUERY: ~mask[QUERY]})
    resumed_fit(tmp_path, 2, mask=tmp_path / "one.safetensors")
    checkpoint = tmp_path / "checkpoints" / "epoch=1.ckpt"
    for mask_file in (tmp_path / "other.safetensors", None):
        with pytest.raises(TracInError, match=r"holds a run with mask [0-9a-f]{64}, but this fit has"):
            resumed_fit(tmp_path, 3, checkpoint, mask=mask_file)
    assert len(resumed_fit(tmp_path, 3, checkpoint, mask=tmp_path / "same.safetensors").snapshots) == 3


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            {"model.pooler.weight": torch.ones(2)},
            r"names 'model\.pooler\.weight', which is no parameter .* names are like 'model\.",
        ),
        (
            {QUERY.removeprefix("model."): torch.ones(2)},
            rf"names .*, which is no parameter of this module; names are like '{QUERY}'",
        ),
        ({QUERY: torch.ones(256)}, r"has shape \[256\] for the parameter '.*query\.weight', which has \[16, 16\]"),
        ({QUERY: torch.full((16, 16), 0.5)}, r"has the value 0\.5 for '.*query\.weight'; .* give 0 or 1"),
        ({QUERY: torch.full((16, 16), float("nan"))}, r"has the value nan for '.*query\.weight'; .* give 0 or 1"),
        ({QUERY: torch.zeros(16, 16)}, r"keeps no element: its tensors are 0 everywhere"),
        ({}, r"names no parameter"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, mask: dict[str, Tensor], message: str) -> None:
    write_mask(tmp_path / "mask.safetensors", mask)
    refused(tmp_path, rf"The mask .*mask\.safetensors {message}", mask=tmp_path / "mask.safetensors")


def test_a_mask_of_a_parameter_that_is_not_trained(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.safetensors", {QUERY: torch.ones(16, 16)})
    module = Classifier()
    module.get_parameter(QUERY).requires_grad_(False)
    refused(tmp_path, r"names '.*query\.weight', which is not trainable", module, mask=tmp_path / "mask.safetensors")


def test_a_mask_under_the_second_name_of_a_shared_weight(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.safetensors", {"decoder.weight": torch.ones(60, 16)})
    message = rf"names 'decoder\.weight', which shares the weight of '{WORDS}'; name that one"
    refused(tmp_path, message, Tied(), mask=tmp_path / "mask.safetensors")


def test_a_mask_that_has_nothing_in_common_with_the_patterns(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.safetensors", {QUERY: torch.ones(16, 16)})
    message = (
        r"keeps no element of the parameters .* such as 'model\.classifier\.dense\.bias'; it keeps some of '.*query\.weight'"
    )
    refused(tmp_path, message, mask=tmp_path / "mask.safetensors", parameters=["*.classifier.*"])


def test_mask_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    refused(tmp_path, r"The mask .*mask\.safetensors is not there; `.*write_mask` writes one", mask=path)
    write_mask(path, {QUERY: torch.ones(16, 16)})
    path.write_bytes(path.read_bytes()[:-10])
    refused(tmp_path, r"mask\.safetensors is damaged .*; write the mask again", mask=path)


@pytest.mark.parametrize("other", [{"language_means": True}, {"projection_dim": 100}])
def test_masks_go_with_exact_influence_only(other: dict[str, Any]) -> None:
    with pytest.raises(TracInError, match=r"mask='m\.safetensors' chooses elements .* leave out `language_means` and `proj"):
        TracInCallback(mask="m.safetensors", **other)
