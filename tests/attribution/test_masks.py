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
from lightning_tracin.attribution.attention_heads import head_importance, head_mask, random_heads, strongest_heads
from lightning_tracin.attribution.losses import StepLoss
from lightning_tracin.attribution.masks import read_mask, write_mask
from lightning_tracin.attribution.samples import SampleSet, from_loader
from lightning_tracin.config import SampleColumns
from lightning_tracin.storage.snapshots import load_weights
from tests.guarantees.test_bad_input import refused
from tests.guarantees.test_resume import fit as resumed_fit
from tests.support.fits import Classifier, loaders, trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop

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
    run = fitted(
        tmp_path, Classifier(), mask=tmp_path / "mask.safetensors", parameters=["*.query.*", "*.value.*"], preconditioner=None
    )
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
    assert run.record.mask == read_mask(tmp_path / "mask.safetensors").sha256


_SETTINGS = ("every_n_epochs", "every_n_train_steps", "parameters", "dtype", "batch_size", "projection_dim", "preconditioner")
_CHOICES = ("language_column", "item_column", "text_columns", "label_column", "probe_languages", "max_probes_per_language")


def test_a_run_of_version_2_without_a_mask_is_read_as_before(tmp_path: Path) -> None:
    run = fitted(tmp_path, Classifier())
    old = json.loads((run.path / "run.json").read_text())
    options = old.pop("options")
    for name in ("checksum", "kept_elements", "mask", "languages_given", "languages_of_probes_given"):
        del old[name]  # as they were before there were masks
    old["format"] = 2
    old["settings"] = {name: options[name] for name in (*_SETTINGS, "per_layer")} | {"method": "exact"}
    old["choices"] = {name: options[name] for name in (*_CHOICES, "top_k", "similarity", "weighting", "memory_budget")}
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
            r"names 'model\.pooler\.weight', which is not a parameter .* names are like 'model\.",
        ),
        (
            {QUERY.removeprefix("model."): torch.ones(2)},
            rf"names .*, which is not a parameter of this module; names are like '{QUERY}'",
        ),
        ({QUERY: torch.ones(256)}, r"has shape \[256\] for the parameter '.*query\.weight', which has \[16, 16\]"),
        (
            {QUERY: torch.full((16, 16), 0.5)},
            r"has the value 0\.5 for '.*query\.weight'; use 1 for elements to score and 0 for the others",
        ),
        (
            {QUERY: torch.full((16, 16), float("nan"))},
            r"has the value nan for '.*query\.weight'; use 1 for elements to score and 0 for the others",
        ),
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
    refused(tmp_path, r"The mask .*mask\.safetensors does not exist; `.*write_mask` writes one", mask=path)
    write_mask(path, {QUERY: torch.ones(16, 16)})
    path.write_bytes(path.read_bytes()[:-10])
    refused(tmp_path, r"mask\.safetensors is damaged .*; write the mask again", mask=path)


@pytest.mark.parametrize("other", [{"language_means": True}, {"projection_dim": 100}])
def test_masks_go_with_exact_influence_only(other: dict[str, Any]) -> None:
    with pytest.raises(TracInError, match=r"mask='m\.safetensors' needs exact influence; leave out `language_means` and `proj"):
        TracInCallback(mask="m.safetensors", **other)


def train_samples() -> SampleSet:
    return from_loader(loaders()[0], SampleColumns(), "train samples")


def importance(module: nn.Module, batch_size: int = 7) -> np.ndarray:
    return head_importance(module, train_samples(), StepLoss(module, "mean"), lambda batch: batch, batch_size)


def gated_importance(module: Classifier, layers: int, heads: int) -> np.ndarray:
    """The mean over samples of the absolute gradient by a gate before each head, one sample at a time."""
    gates = torch.ones(layers, heads, requires_grad=True)
    for layer, gate in zip(module.model.roberta.encoder.layer, gates, strict=True):
        dense = layer.attention.output.dense
        dense.register_forward_pre_hook(
            lambda _, args, gate=gate: (args[0] * gate.repeat_interleave(args[0].shape[-1] // heads),)
        )
    samples = loaders()[0].dataset.samples
    each = [torch.autograd.grad(module.model(**padded([one])).loss, gates)[0].abs() for one in samples]
    return torch.stack(each).double().mean(0).numpy()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("trainable", [True, False])
def test_importance_is_the_gradient_by_a_gate(attention: str, batch_size: int, trainable: bool) -> None:
    module = Classifier(attention).eval().requires_grad_(trainable)
    found = importance(module, batch_size)
    np.testing.assert_allclose(found, gated_importance(Classifier(attention).eval(), 2, 2), rtol=1e-4)
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_head_mask_has_what_only_the_kept_heads_depend_on() -> None:
    module = Classifier().eval()
    kept = np.array([[False, True], [False, False]])
    mask = head_mask(module, kept)
    attention = module.model.roberta.encoder.layer[0].attention
    states = torch.randn(2, 5, 16)
    context = attention.self(states)[0]
    context[..., 8:].square().sum().backward()  # of the second head
    attention.output.dense(context.detach() * torch.tensor([0.0] * 8 + [1.0] * 8)).square().sum().backward()
    reached = {
        name: parameter.grad != 0
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not name.endswith(("key.bias", "dense.bias"))  # no softmax sees the key's bias
    }
    key_bias = mask.pop(QUERY.replace("query.weight", "key.bias"))
    assert torch.equal(key_bias, mask[QUERY.replace("weight", "bias")])
    assert set(mask) == set(reached)
    assert all(torch.equal(mask[name], reached[name]) for name in mask)


def test_influence_within_all_heads_is_that_of_their_parameters(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.safetensors", head_mask(Classifier(), np.ones((2, 2), dtype=bool)))
    masked = fitted(tmp_path / "masked", Classifier(), mask=tmp_path / "mask.safetensors").influence()
    patterns = [f"*.attention.{part}" for part in ("self.*", "output.dense.weight")]
    chosen = fitted(tmp_path / "chosen", Classifier(), parameters=patterns).influence()
    np.testing.assert_allclose(masked.to_numpy(), chosen.to_numpy(), atol=1e-5)


def test_strongest_heads_by_hand() -> None:
    table = np.array([[0.1, 0.4, 0.2], [0.4, 0.0, 0.4]])
    assert strongest_heads(table, 2).tolist() == [[False, True, False], [True, False, False]]
    assert strongest_heads(table, 4).tolist() == [[False, True, True], [True, False, True]]


def test_random_heads_are_so_many_and_each_as_often_as_another() -> None:
    draws = np.stack([random_heads((3, 4), 5, seed) for seed in range(2000)])
    assert (draws.sum((1, 2)) == 5).all()
    np.testing.assert_allclose(draws.mean(0), 5 / 12, atol=0.05)  # four standard errors
    assert np.array_equal(random_heads((3, 4), 5, 8), draws[8])


class Twice(Classifier):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        return self.model(**batch).loss + self.model(**batch).loss


class Blind(Classifier):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        with torch.no_grad():
            return self.model(**batch).loss


class Broken(Classifier):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        factor = torch.where((batch["input_ids"] == 3).any(), float("inf"), 1.0)
        return self.model(**batch).loss * factor


def test_importance_that_cannot_be_told() -> None:
    for module, message in (
        (nn.Linear(2, 2), r"no attention heads of a BERT-like transformers model \(modules `attention\.self\.query`"),
        (
            Twice().eval(),
            r"calls a layer's attention with \[\[7, \d+, 16\], \[7, \d+, 16\]\] instead of once with \[7, positions, width\]",
        ),
        (Blind().eval(), r"does not depend on the attention heads; is it computed under `torch\.no_grad\(\)`"),
    ):
        with pytest.raises(TracInError, match=message):
            importance(module)


def test_importance_of_a_sample_whose_gradient_is_not_finite() -> None:
    samples = train_samples()
    samples.datasets[0].samples[17]["input_ids"][1] = 3  # a token that no other sample has
    module = Broken().eval()
    with pytest.raises(TracInError, match=r"gradient of sample 17 \(language 'ru'\) is not finite"):
        head_importance(module, samples, StepLoss(module, "mean"), lambda batch: batch, batch_size=1)


def test_importance_over_no_samples() -> None:
    module = Classifier().eval()
    with pytest.raises(TracInError, match=r"no samples to average the heads' importance over"):
        head_importance(module, train_samples().take([]), StepLoss(module, "mean"), lambda batch: batch)


def test_heads_out_of_range() -> None:
    uneven = Classifier()
    uneven.model.roberta.encoder.layer[1].attention.self.num_attention_heads = 4
    for ask, message in (
        (lambda: head_mask(Classifier(), np.ones((2, 3), dtype=bool)), r"kept should have shape \[2, 2\] .* but has \[2, 3\]"),
        (lambda: head_mask(Classifier(), np.zeros((2, 2), dtype=bool)), r"No head is kept"),
        (lambda: head_mask(uneven, np.ones((2, 2), dtype=bool)), r"different numbers of attention heads \(\[2, 4\]\)"),
        (lambda: strongest_heads(np.ones((2, 2)), 5), r"count should be between 1 and the number of heads \(4\), but is 5"),
        (lambda: random_heads((2, 2), 0, seed=0), r"count should be between 1 and the number of heads \(4\), but is 0"),
    ):
        with pytest.raises(TracInError, match=message):
            ask()
