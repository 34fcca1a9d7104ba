"""Language means, layers, projected features, and preconditioners: each against what exact influence or a loop says."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.gradients import Outer, Sketch
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.snapshots import load_weights
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded, tiny_xlmr
from tests.support.oracles import gradient_loop, written_out


def fitted(folder: Path, module: pl.LightningModule | None = None, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(folder / "run", top_k=5, **settings)
    trainer(folder, [callback], max_epochs=2).fit(Classifier() if module is None else module, *loaders())
    return TracInRun.open(folder / "run")


def gradients(run: TracInRun, snapshot: int, train: bool) -> dict[str, torch.Tensor]:
    """Every sample's gradient at a snapshot, by the loop: parameter -> [samples, elements]."""
    module = Classifier().eval()
    load_weights(module, run.snapshots[snapshot].state_dict())
    samples = loaders()[0 if train else 1].dataset.samples
    names = list(run.snapshots[snapshot].record.groups)
    return gradient_loop(module, lambda one: module.model(**padded([one])).loss, samples, names)


@pytest.mark.parametrize("weighting", ["uniform", "learning_rate"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "relatif"])
def test_language_means_are_the_means_of_exact_influence(runs: dict[str, TracInRun], similarity: Any, weighting: Any) -> None:
    exact = runs["exact"].influence(similarity, weighting)
    means = runs["means"].influence(similarity, weighting)
    assert list(means["probe_language"].values) == ["de", "en", "ru"]
    expected = exact.groupby("probe_language").mean()
    scale = float(np.abs(exact).max())
    np.testing.assert_allclose(means.to_numpy(), expected.to_numpy(), rtol=1e-4, atol=1e-5 * scale)
    table = runs["means"].reliance(measure="mean", similarity=similarity, weighting=weighting)
    whole = runs["exact"].reliance(measure="mean", similarity=similarity, weighting=weighting)
    np.testing.assert_allclose(table["value"], whole["value"], rtol=1e-4, atol=1e-5 * scale)
    assert list(table["probes"]) == list(whole["probes"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TracInRun]:
    """The same fit, with influence computed in each way; 7,000 numbers hold all of the model's 6,163 elements."""
    ways: dict[str, dict[str, Any]] = {
        "exact": {"preconditioner": None},
        "means": {"language_means": True},
        "projected": {"projection_dim": 7000},
        "fisher": {"projection_dim": 300, "preconditioner": "fisher"},
        "adam": {"preconditioner": "adam"},
        "adam projected": {"preconditioner": "adam", "projection_dim": 1500},
        "adam fisher": {"preconditioner": "adam-fisher", "projection_dim": 300},
    }
    return {name: fitted(tmp_path_factory.mktemp(name), **way) for name, way in ways.items()}


def test_language_means_have_no_ranks_for_each_probe(runs: dict[str, TracInRun]) -> None:
    with pytest.raises(TracInError, match="holds language means only"):
        runs["means"].reliance(5, measure="share")
    with pytest.raises(TracInError, match="a layer's own cosine does not follow"):
        runs["means"].reliance(measure="mean", similarity="cosine", by="layer")


def test_layers_have_their_own_cosine(runs: dict[str, TracInRun]) -> None:
    run = runs["exact"]
    groups = run.snapshots[1].record.groups
    parts = parts_of(groups, per_layer=True)
    z, q = gradients(run, 1, train=True), gradients(run, 1, train=False)
    table = run.reliance(measure="mean", by="layer", similarity="cosine", weighting="uniform", snapshots=[1])
    assert list(table["layer"].unique()) == ["embeddings", "layer 0", "layer 1", "head"]
    languages = np.array(run.train.language), np.array(run.probes.language)
    for layer in parts.depths:
        names = [name for name in groups if parts.layers[parts.of[name]] == layer]
        both = [torch.cat([side[name] for name in names], 1) for side in (z, q)]
        cosine = (torch.nn.functional.normalize(both[0]) @ torch.nn.functional.normalize(both[1]).T).numpy()
        for _, line in table[table["layer"] == layer].iterrows():
            cells = cosine[np.ix_(languages[0] == line["train_language"], languages[1] == line["probe_language"])]
            assert line["value"] == pytest.approx(cells.mean(), rel=1e-3, abs=1e-5)


def test_layers_add_up_to_the_whole(runs: dict[str, TracInRun]) -> None:
    run = runs["exact"]
    asked: dict[str, Any] = {"measure": "mean", "similarity": "dot", "weighting": "uniform", "cumulative": True}
    whole, layers = run.reliance(**asked), run.reliance(**asked, by="layer")
    keys = ["snapshot", "probe_language", "train_language"]
    np.testing.assert_allclose(layers.groupby(keys)["value"].sum(), whole.set_index(keys)["value"].sort_index(), rtol=1e-4)


def test_run_without_layers_says_so(tmp_path: Path) -> None:
    run = fitted(tmp_path, per_layer=False)
    with pytest.raises(TracInError, match="per_layer=True"):
        run.reliance(5, by="layer")


@pytest.mark.parametrize("similarity", ["cosine", "dot", "relatif"])
def test_features_that_hold_whole_gradients_give_exact_influence(runs: dict[str, TracInRun], similarity: Any) -> None:
    exact, projected = (runs[name].influence(similarity).to_numpy() for name in ("exact", "projected"))
    np.testing.assert_allclose(projected, exact, rtol=1e-2, atol=1e-3 * float(np.abs(exact).max()))
    asked: dict[str, Any] = {"measure": "mean", "by": "layer", "similarity": "cosine", "weighting": "uniform"}
    layers = [runs[name].reliance(**asked)["value"] for name in ("exact", "projected")]
    np.testing.assert_allclose(*layers, rtol=1e-2, atol=1e-3)


def features(run: TracInRun, snapshot: int) -> tuple[torch.Tensor, torch.Tensor]:
    store = FeatureStore(run.path / "features" / run.snapshots[snapshot].name, len(run.train), len(run.probes))
    sides = []
    for side, count in (("train", len(run.train)), ("probes", len(run.probes))):
        blocks = list(store.blocks(side))  # type: ignore[arg-type]
        whole = torch.zeros(count, blocks[0][1].shape[1], dtype=torch.float64)
        for index, values in blocks:
            whole[index] = values.double()
        sides.append(whole)
    return sides[0], sides[1]


@pytest.mark.parametrize("damping", [0.0003, 0.01])
def test_fisher_is_the_cosine_under_the_damped_second_moment(runs: dict[str, TracInRun], damping: float) -> None:
    run = runs["fisher"]
    phi, psi = features(run, 1)
    moment = phi.T @ phi / len(phi)
    moment += damping * moment.trace() * torch.eye(len(moment))
    inverse = torch.linalg.inv(moment)
    norms = [torch.einsum("nd,de,ne->n", side, inverse, side).sqrt() for side in (phi, psi)]
    expected = (phi @ inverse @ psi.T) / norms[0][:, None] / norms[1]
    got = run.influence(snapshots=[1], damping=damping)
    assert got.attrs["preconditioner"] == "fisher"
    np.testing.assert_allclose(got.to_numpy(), expected, atol=1e-4)
    dot = run.influence("dot", snapshots=[1], damping=damping).to_numpy()
    np.testing.assert_allclose(dot, phi @ inverse @ psi.T, rtol=1e-3, atol=1e-4 * float(np.abs(dot).max()))


def test_fisher_by_layer_leaves_out_what_lies_between_layers(runs: dict[str, TracInRun]) -> None:
    run = runs["fisher"]
    store = FeatureStore(run.path / "features" / run.snapshots[0].name, len(run.train), len(run.probes))
    parts = parts_of(run.snapshots[0].record.groups, per_layer=True)
    phi, psi = features(run, 0)
    moment = phi.T @ phi / len(phi)
    layer = np.zeros(len(moment), dtype=object)
    for name, where in store.sketch().layout.items():
        layer[where] = parts.layers[parts.of[name]]
    moment *= torch.tensor(layer[:, None] == layer[None, :])
    inverse = torch.linalg.inv(moment + 0.0025 * moment.trace() * torch.eye(len(moment)))
    norms = [torch.einsum("nd,de,ne->n", side, inverse, side).sqrt() for side in (phi, psi)]
    got = run.influence(snapshots=[0], blocks="layer")
    np.testing.assert_allclose(got.to_numpy(), (phi @ inverse @ psi.T) / norms[0][:, None] / norms[1], atol=1e-4)
    of_head = torch.tensor(layer == "head")
    inner = inverse[of_head][:, of_head]
    one, other = phi[:, of_head], psi[:, of_head]
    norms = [torch.einsum("nd,de,ne->n", side, inner, side).sqrt() for side in (one, other)]
    cosine = ((one @ inner @ other.T) / norms[0][:, None] / norms[1]).numpy()
    table = run.reliance(measure="mean", by="layer", similarity="cosine", weighting="uniform", snapshots=[0], blocks="layer")
    head = table[(table["layer"] == "head") & (table["probe_language"] == "de") & (table["train_language"] == "ru")]
    cells = cosine[np.ix_(np.array(run.train.language) == "ru", np.array(run.probes.language) == "de")]
    assert float(head["value"].iloc[0]) == pytest.approx(cells.mean(), abs=1e-4)
    with pytest.raises(TracInError, match="take blocks='layer'"):
        run.reliance(5, by="layer")


class Remembering(Classifier):
    """Keeps the optimizer's state at each epoch's end, for the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self) -> None:
        optimizer = self.trainer.optimizers[0]
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        moments = {}
        for name, parameter in self.named_parameters():
            state, group = optimizer.state[parameter], group_of[id(parameter)]
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
            inverse = 1 / (corrected.sqrt() + group["eps"])
            moments[name] = torch.where(state["exp_avg_sq"] > 0, inverse, 0.0).double().flatten()
        self.kept.append(moments)


def test_adam_is_the_cosine_under_the_second_moments(tmp_path: Path) -> None:
    module = Remembering()
    run = fitted(tmp_path, module, preconditioner="adam")
    z, q = gradients(run, 1, train=True), gradients(run, 1, train=False)
    sides = [torch.cat([side[name] * module.kept[1][name].sqrt() for name in side], 1) for side in (z, q)]
    dot = run.influence("dot", snapshots=[1]).to_numpy()
    expected = (sides[0] @ sides[1].T).numpy()
    scale = np.outer(sides[0].norm(dim=1), sides[1].norm(dim=1))
    assert (np.abs(dot - expected) <= 1e-5 * scale).all()
    np.testing.assert_allclose(run.influence(snapshots=[1]).to_numpy(), expected / scale, atol=1e-5)


@pytest.mark.parametrize("way", ["dot", "cosine"])
def test_projections_of_scaled_gradients_estimate_exact_influence_under_adam(runs: dict[str, TracInRun], way: Any) -> None:
    exact, projected = (runs[name].influence(way).to_numpy().ravel() for name in ("adam", "adam projected"))
    plain = runs["exact"].influence(way).to_numpy().ravel()
    apart, without_scale = (1 - np.corrcoef(exact, other)[0, 1] for other in (projected, plain))
    assert apart < 1e-3
    assert apart < without_scale / 4


def test_scaled_features_are_whitened_by_their_own_second_moment(tmp_path: Path) -> None:
    """A loop of single gradients, times Adam's scale, times the sketch written out as a matrix, times a plain inverse."""
    module, damping = Remembering(), 0.004
    run = fitted(tmp_path, module, preconditioner="adam-fisher", projection_dim=300)
    store = FeatureStore(run.path / "features" / run.snapshots[1].name, len(run.train), len(run.probes))
    sketch, sides = store.sketch(), []
    for is_train in (True, False):
        found = gradients(run, 1, train=is_train)
        scaled = [found[name] * module.kept[1][name].sqrt() for name in sketch.parts]
        sides.append(torch.cat([one @ written_out(sketch, name) for one, name in zip(scaled, sketch.parts, strict=True)], 1))
    phi, psi = sides
    moment = phi.T @ phi / len(phi)
    inverse = torch.linalg.inv(moment + damping * moment.trace() * torch.eye(len(moment)))
    dot = (phi @ inverse @ psi.T).numpy()
    norms = [torch.einsum("nd,de,ne->n", side, inverse, side).sqrt().numpy() for side in sides]
    got = run.influence("dot", snapshots=[1], damping=damping)
    assert got.attrs["preconditioner"] == "adam-fisher"
    np.testing.assert_allclose(got.to_numpy(), dot, atol=3e-3 * np.abs(dot).max())  # features are kept in half precision
    cosine = run.influence("cosine", snapshots=[1], damping=damping).to_numpy()
    np.testing.assert_allclose(cosine, dot / norms[0][:, None] / norms[1], atol=3e-3)
    plain = torch.nn.functional.normalize(phi) @ torch.nn.functional.normalize(psi).T
    np.testing.assert_allclose(run.influence(snapshots=[1], preconditioner="adam").to_numpy(), plain, atol=1e-3)


def test_adam_predicts_what_a_small_step_does_to_a_probe(tmp_path: Path) -> None:
    """To first order: the loss of a probe after AdamW stepped on a train sample, less its loss after a step on nothing."""
    rate, small = 1e-3, 1e-3
    run = fitted(tmp_path, preconditioner="adam")
    influence = run.influence("dot", snapshots=[1]).to_numpy()
    train, probes = (loader.dataset.samples for loader in loaders())
    scales = run.snapshots[1].scales()
    steps, beta = 2000, 0.999  # so many steps made: their bias correction is nearly 1, as at any late step of a fit

    def after(sample: Any) -> torch.Tensor:
        module = Classifier().eval()
        load_weights(module, run.snapshots[1].state_dict())
        module.double()
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.0, beta), eps=0.0, weight_decay=0.01)
        for name, parameter in module.named_parameters():
            second = torch.where(scales[name] > 0, scales[name].double() ** -4, 1.0)  # P = scale^2 = 1 / sqrt(v)
            second = second * (1 - beta ** (steps + 1)) / beta  # as it decays in the step
            optimizer.state[parameter] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": second,
            }
            parameter.grad = torch.zeros_like(parameter)
        if sample is not None:
            (small * module.model(**padded([sample])).loss).backward()
        optimizer.step()
        with torch.no_grad():
            return torch.stack([module.model(**padded([probe])).loss for probe in probes])

    nothing = after(None)
    for index in (0, 7, 19):
        change = (after(train[index]) - nothing).numpy()
        np.testing.assert_allclose(change, -rate * small * influence[index], rtol=0.02, atol=0.01 * np.abs(change).max())


def test_added_probes_score_as_if_they_had_been_there(tmp_path: Path) -> None:
    def fit(folder: Path, count: int) -> TracInRun:
        pl.seed_everything(7)
        probes = DataLoader(Samples(9, 5), batch_size=5, collate_fn=padded) if count == 9 else loaders()[1]
        callback = TracInCallback(folder / "run", probes=probes, top_k=5, projection_dim=200)
        trainer(folder, [callback], max_epochs=2).fit(Classifier(), loaders()[0])
        return TracInRun.open(folder / "run")

    run, other = fit(tmp_path / "one", 12), fit(tmp_path / "other", 9)
    before = run.influence().to_numpy()
    grown = run.add_probes(Classifier(), DataLoader(Samples(9, 5), batch_size=5, collate_fn=padded))
    assert grown.probes.language == run.probes.language + other.probes.language
    np.testing.assert_array_equal(grown.influence().to_numpy()[:, :12], before)
    np.testing.assert_allclose(grown.influence().to_numpy()[:, 12:], other.influence().to_numpy(), atol=1e-5)
    again = grown.add_probes(Classifier(), DataLoader(Samples(4, 6), batch_size=5, collate_fn=padded))
    assert again.influence().shape == (30, 25)
    assert TracInRun.open(run.path).reliance(5)["probes"].sum() == 2 * 3 * 25


def test_probes_are_not_added_with_another_frozen_backbone(tmp_path: Path) -> None:
    def module(seed: int) -> Classifier:
        pl.seed_everything(seed)
        made = Classifier()
        made.model = tiny_xlmr(seed=seed)
        for parameter in made.model.roberta.embeddings.parameters():
            parameter.requires_grad_(False)
        return made

    train, probes = loaders()
    callback = TracInCallback(tmp_path / "run", top_k=5, projection_dim=64)
    trainer(tmp_path, [callback], max_epochs=1).fit(module(1), train, probes)
    run = TracInRun.open(tmp_path / "run")
    with pytest.raises(TracInError, match=r"did not train .* are not those of the fit"):
        run.add_probes(module(2), probes)
    with pytest.raises(TracInError, match="languages_of_probes should be a list of strings"):
        run.add_probes(module(1), probes, languages="de")
    assert len(run.add_probes(module(1), probes).probes) == 2 * len(run.probes)


def test_probes_cannot_be_added_to_products(runs: dict[str, TracInRun]) -> None:
    with pytest.raises(TracInError, match="a run with a `projection_dim`"):
        runs["exact"].add_probes(Classifier(), loaders()[1])


@pytest.mark.parametrize(
    ("run", "asked", "message"),
    [
        ("exact", "adam", r"preconditioner='adam'; run the fit with `TracInCallback\(preconditioner='adam'\)`"),
        ("adam", "adam-factored", r"run the fit with `TracInCallback\(preconditioner='adam-factored'\)`"),
        ("exact", "fisher", "run the fit with a `projection_dim`"),
        ("adam", "none", "run the fit with `preconditioner=None`"),
        ("adam projected", "fisher", "run the fit with a `projection_dim` and without preconditioner='adam'"),
        ("adam", "adam-fisher", r"`TracInCallback\(preconditioner='adam-fisher'\)` and a `projection_dim`"),
        ("fisher", "adam-fisher", r"`TracInCallback\(preconditioner='adam-fisher'\)` and a `projection_dim`"),
        ("exact", "newton", "should be one of 'adam', 'adam-factored', 'fisher'"),
    ],
)
def test_what_a_run_cannot_score(runs: dict[str, TracInRun], run: str, asked: Any, message: str) -> None:
    with pytest.raises(TracInError, match=message):
        runs[run].influence(preconditioner=asked)


def test_fisher_run_gives_plain_scores_too(runs: dict[str, TracInRun]) -> None:
    plain = runs["fisher"].influence(preconditioner="none", snapshots=[1]).to_numpy()
    phi, psi = features(runs["fisher"], 1)
    cosine = torch.nn.functional.normalize(phi) @ torch.nn.functional.normalize(psi).T
    np.testing.assert_allclose(plain, cosine, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preconditioner": "fisher"}, "give a `projection_dim` too"),
        (
            {"preconditioner": "adam-fisher"},
            "'adam-fisher' whitens projected features; give a `projection_dim` too",
        ),
        ({"preconditioner": "adam", "language_means": True}, "acts on single elements of a gradient; leave out `language_means`"),
        ({"language_means": True, "projection_dim": 100}, "not both"),
        ({"projection_dim": 0}, "projection_dim should be 1 or more"),
        ({"preconditioner": "newton"}, "preconditioner should be one of"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        TracInCallback(**settings)


def test_adam_needs_an_optimizer_with_second_moments(tmp_path: Path) -> None:
    class WithSGD(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(TracInError, match="SGD keeps none; use Adam or AdamW"):
        fitted(tmp_path, WithSGD(), preconditioner="adam")


def test_dry_run_says_what_it_would_cost_and_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pl.seed_everything(7)
        module = Classifier()
        trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, dry_run=True)], max_epochs=2).fit(module, *loaders())
    assert not (tmp_path / "run").exists()
    said = caplog.text
    assert "30 train samples (de 10, en 10, ru 10) x 12 probes" in said
    assert "Linear 4,643, Embedding 1,360, LayerNorm 160" in said
    assert "2 snapshots" in said
    assert re.search(r"holds [\d.]+ kB in memory \(products work with 64\.\d MB at most\) and takes about 1 second ", said)
    assert "nothing is written" in said


@pytest.mark.parametrize(("preconditioner", "seconds"), [("fisher", "1 second "), ("adam-fisher", r"([2-9]|\d\d) seconds")])
def test_projections_of_scaled_gradients_are_in_the_estimate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, preconditioner: Any, seconds: str
) -> None:
    def slow(self: Sketch, *arguments: Any) -> None:
        time.sleep(0.01 * len(arguments[1][0].left) if isinstance(arguments[1][0], Outer) else 0)  # 0.01 s for a sample

    monkeypatch.setattr(Sketch, "features", slow)
    callback = TracInCallback(tmp_path / "run", top_k=5, projection_dim=300, preconditioner=preconditioner, dry_run=True)
    with caplog.at_level("INFO"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    assert re.search(f"takes about {seconds}", caplog.text), caplog.text
