"""EK-FAC of a whole fit against a loop over single samples with explicit eigenvectors; and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute
from lightning_tracin.attribution.ekfac import halves_of
from lightning_tracin.attribution.method import method_of
from lightning_tracin.config import Options
from lightning_tracin.gradients.second_moments import DAMPINGS
from lightning_tracin.storage.snapshots import load_weights
from tests.support.fits import Classifier, loaders, trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop


def fitted(folder: Path, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(folder / "run", **{"top_k": 5, "method": "ekfac", "dtype": "float64", **settings})
    trainer(folder, [callback], max_epochs=2).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    return fitted(tmp_path_factory.mktemp("ekfac"))


def factors_of(module: Classifier, samples: list[Any]) -> dict[str, tuple[Tensor, ...]]:
    """Sums over samples and positions of ``delta delta'`` and ``a a'`` of every Linear layer, from its inputs and outputs."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    sums = {
        f"{name}.weight": tuple(torch.zeros(size, size, dtype=torch.float64) for size in layer.weight.shape)
        for name, layer in layers.items()
    }
    for sample in samples:
        seen: list[tuple[str, Tensor, Tensor]] = []
        handles = [
            layer.register_forward_hook(lambda _, inputs, output, name=name: seen.append((name, inputs[0], output)))
            for name, layer in layers.items()
        ]
        loss = module.model(**padded([sample])).loss
        for handle in handles:
            handle.remove()
        gradients = torch.autograd.grad(loss, [output for _, _, output in seen])
        for (name, inputs, _), gradient in zip(seen, gradients, strict=True):
            outputs, inputs = gradient.flatten(0, -2), inputs.detach().flatten(0, -2)
            has = (outputs != 0).any(1)
            sums[f"{name}.weight"][0].add_(outputs[has].T @ outputs[has])
            sums[f"{name}.weight"][1].add_(inputs[has].T @ inputs[has])
    return sums


def chosen(first: Tensor, second: Tensor) -> float:
    """The damping, as a multiple of the mean, that predicts each half's second moments from the other's best."""
    losses = []
    for damping in DAMPINGS:
        c = damping * (first + second).mean() / 2
        losses.append(
            sum(float(((one + c).log() + other / (one + c)).sum()) for one, other in ((first, second), (second, first)))
        )
    return DAMPINGS[int(np.argmin(losses))]


def by_loop(run: TracInRun, snapshot: int) -> tuple[np.ndarray, np.ndarray]:
    """EK-FAC's products and cosines, written out: [train, probes]."""
    module = Classifier().eval().double()
    load_weights(module, run.snapshots[snapshot].state_dict())
    train, probes = (loader.dataset.samples for loader in loaders())
    names = list(run.snapshots[snapshot].record.groups)
    z, q = (gradient_loop(module, lambda one: module.model(**padded([one])).loss, some, names) for some in (train, probes))
    factors, halves = factors_of(module, train), halves_of([None] * len(train))
    dot, left, right = np.zeros((len(train), len(probes))), np.zeros(len(train)), np.zeros(len(probes))
    whole = sum(float(one.square().sum()) for one in z.values())
    for name, parameter in module.named_parameters():
        sides = [side[name].view(-1, *(parameter.shape if parameter.ndim > 1 else (parameter.numel(), 1))) for side in (z, q)]
        if "embeddings" in name and parameter.ndim > 1:
            vectors = torch.linalg.eigh(torch.einsum("nrc,nrd->cd", sides[0], sides[0]))[1]
            sides = [one @ vectors for one in sides]
        elif parameter.ndim > 1:
            of_outputs, of_inputs = (torch.linalg.eigh(one)[1] for one in factors[name])
            sides = [of_outputs.T @ one @ of_inputs for one in sides]
        phi, psi = (one.flatten(1) for one in sides)
        squares = phi.square()
        if squares.sum() < 1e-12 * whole:  # the keys' biases: a softmax does not see them
            assert name.endswith("key.bias")
            continue
        known = squares.sum(0) > 1e-12 * squares.sum(0).max()
        first, second = (squares[halves == half][:, known].mean(0) for half in (0, 1))
        values = squares[:, known].mean(0)
        inverse = 1 / (values + chosen(first, second) * values.mean())
        phi, psi = phi[:, known], psi[:, known]
        dot += ((phi * inverse) @ psi.T).numpy()
        left += (phi.square() * inverse).sum(1).numpy()
        right += (psi.square() * inverse).sum(1).numpy()
    return dot, dot / np.sqrt(left)[:, None] / np.sqrt(right)


@pytest.mark.parametrize("snapshot", [0, 1])
def test_products_are_those_of_the_eigenvectors_written_out(run: TracInRun, snapshot: int) -> None:
    dot, cosine = by_loop(run, snapshot)
    found = run.influence("dot", snapshots=[snapshot])
    assert found.attrs["preconditioner"] == "ekfac"
    np.testing.assert_allclose(found.to_numpy(), dot, rtol=0, atol=1e-5 * np.abs(dot).max())
    np.testing.assert_allclose(run.influence("cosine", snapshots=[snapshot]).to_numpy(), cosine, rtol=0, atol=1e-5)
    assert np.corrcoef(dot.ravel(), _plain(run, snapshot).ravel())[0, 1] < 0.95  # so the metric matters


def _plain(run: TracInRun, snapshot: int) -> np.ndarray:
    module = Classifier().eval().double()
    load_weights(module, run.snapshots[snapshot].state_dict())
    names = list(run.snapshots[snapshot].record.groups)
    sides = [
        gradient_loop(module, lambda one: module.model(**padded([one])).loss, loader.dataset.samples, names)
        for loader in loaders()
    ]
    z, q = (torch.cat(list(side.values()), 1) for side in sides)
    return (z @ q.T).numpy()


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 30}, {"memory_budget": 20_000}], ids=str)
def test_batches_and_padding_make_no_difference(tmp_path: Path, settings: dict[str, Any], run: TracInRun) -> None:
    other, own = fitted(tmp_path, **settings).influence("dot").to_numpy(), run.influence("dot").to_numpy()
    np.testing.assert_allclose(other, own, rtol=0, atol=1e-5 * np.abs(own).max())


def test_a_killed_pass_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    whole = {path: path.read_bytes() for path in run.path.rglob("*.safetensors")}
    first, second = (snapshot.name for snapshot in run.snapshots)
    (run.path / "factors" / first / "scales.safetensors").unlink()  # as if killed between the first pass and the second,
    shutil.rmtree(run.path / "ingredients")
    shutil.rmtree(run.path / "factors" / second)
    kept = (run.path / "factors" / first / "bases.safetensors").stat().st_mtime_ns
    attribute(Classifier(), run.path, *loaders(), progress=False)
    assert (run.path / "factors" / first / "bases.safetensors").stat().st_mtime_ns == kept
    assert {path: path.read_bytes() for path in run.path.rglob("*.safetensors")} == whole


def test_a_damaged_factor_is_named(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    path = run.path / "factors" / run.snapshots[0].name / "scales.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(run.path / "ingredients" / run.snapshots[0].name)
    with pytest.raises(TracInError, match=r"factors.*scales\.safetensors"):
        attribute(Classifier(), run.path, *loaders(), progress=False)


def test_candidates_are_scored_with_the_factors_of_the_fit(tmp_path: Path, run: TracInRun) -> None:
    copy = TracInRun.open(shutil.copytree(run.path, tmp_path / "copy"))
    train, probes = loaders()
    want = copy.influence("dot").to_numpy()
    found = copy.score(Classifier(), train, probes, similarity="dot", progress=False).to_numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())
    shutil.rmtree(copy.path / "factors")
    with pytest.raises(TracInError, match=r"bases\.safetensors is missing|scales\.safetensors is missing"):
        copy.score(Classifier(), train, probes, progress=False)


def test_the_chosen_damping_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run = fitted(tmp_path)
    assert f"EK-FAC's damping at {run.snapshots[0].name}, by held-out fit: " in caplog.text


def test_what_ekfac_cannot_do_is_refused(run: TracInRun) -> None:
    with pytest.raises(TracInError, match="'ekfac' does not support per_token=True"):
        method_of(Options(method="ekfac", per_token=True))
    with pytest.raises(TracInError, match=r"rounding in dtype='bfloat16' is larger .* take dtype='float32'"):
        method_of(Options(method="ekfac", dtype="bfloat16"))
    with pytest.raises(TracInError, match="Per-token scores are of exact products, not of method='ekfac'"):
        run.per_token(Classifier(), *loaders(), probes=[0])
    with pytest.raises(TracInError, match="can be added to a run with a `projection_dim`"):
        run.add_probes(Classifier(), loaders()[1])


def test_samples_of_one_item_have_no_halves(tmp_path: Path) -> None:
    train, probes = loaders()
    train.dataset.item = ["same"] * len(train.dataset)  # type: ignore[attr-defined]
    probes.dataset.item = ["other"] * len(probes.dataset)  # type: ignore[attr-defined]
    callback = TracInCallback(tmp_path / "run", top_k=5, method="ekfac", item_column="item")
    with pytest.raises(TracInError, match=r"by samples held out, but all 30 train samples are of one item \('same'\)"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), train, probes)


def test_translations_are_in_the_same_half() -> None:
    items = [str(index % 40) for index in range(120)] + [None] * 30
    halves = halves_of(items)
    by_item = halves[:120].view(3, 40)
    assert bool((by_item == by_item[0]).all())
    assert abs(int(halves.sum()) - 75) <= 3
