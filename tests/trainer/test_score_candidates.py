"""`run.score` on samples that were not trained on: as if they had been, and equal to a loop of `autograd.grad`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.attribution.masks import write_mask
from lightning_tracin.storage.snapshots import load_weights
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop

CHOSEN = [29, 3, 17, 4, 4, 11, 0]


class Part(Subset[dict[str, Any]]):
    """Some of the train samples, with their languages."""

    def __init__(self) -> None:
        super().__init__(Samples(30, 1), CHOSEN)
        self.language = [self.dataset.language[index] for index in CHOSEN]  # type: ignore[attr-defined]


def of(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=3, collate_fn=padded)


def fitted(folder: Path, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(folder / "run", top_k=5, **settings)
    trainer(folder, [callback], max_epochs=2).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def content(run: TracInRun) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def a_mask(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(tensor.shape, generator=generator) < 0.3 for name, tensor in Classifier().named_parameters()}
    write_mask(folder / "mask.safetensors", mask)
    return folder / "mask.safetensors"


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"language_means": True},
        {"projection_dim": 200},
        {"projection_dim": 200, "preconditioner": "fisher"},
        {"projection_dim": 200, "preconditioner": "adam-fisher"},
        {"preconditioner": "adam", "dtype": "float64"},
        {"mask": True},
        {"method": "ekfac", "dtype": "float64"},
        {"per_layer": False, "memory_budget": 20_000, "batch_size": 4},
    ],
    ids=lambda settings: "-".join(settings) or "exact",
)
def test_candidates_that_were_trained_on_have_the_scores_of_train_samples(tmp_path: Path, settings: dict[str, Any]) -> None:
    given = {"mask": a_mask(tmp_path)} if "mask" in settings else {}
    run = fitted(tmp_path, **{**settings, **given})
    before = content(run)
    probes = None if "projection_dim" in settings else loaders()[1]
    for similarity in ("cosine", "dot"):
        how = {"similarity": similarity, "weighting": "learning_rate"}
        scores = run.score(Classifier(), of(Part()), probes, **how, **given, progress=False)
        expected = run.influence(**how)  # type: ignore[arg-type]
        assert scores.dims == ("candidate", "probe")
        assert list(scores["candidate_language"].values) == [("de", "en", "ru")[index % 3] for index in CHOSEN]
        assert list(scores["probe_language"].values) == list(expected["probe_language"].values)
        assert scores.attrs == expected.attrs
        largest = float(np.abs(expected).max())
        tolerance = 1e-4 if "projection_dim" in settings else 1e-6  # features are kept in half precision
        np.testing.assert_allclose(scores.to_numpy(), expected.to_numpy()[CHOSEN], rtol=0, atol=tolerance * largest)
    assert content(run) == before


def test_samples_that_were_not_trained_on_have_the_scores_of_a_loop(tmp_path: Path) -> None:
    run = fitted(tmp_path, preconditioner=None)
    new, probes = Samples(9, 5, ("sw", "hi")), Samples(12, 2)
    found = run.score(Classifier(), of(new), loaders()[1], similarity="dot", weighting="learning_rate", snapshots=[1])
    module = Classifier().eval()
    snapshot = run.snapshots[1]
    load_weights(module, snapshot.state_dict())
    groups = snapshot.record.groups
    z, q = (
        gradient_loop(module, lambda one: module.model(**padded([one])).loss, data.samples, list(groups))
        for data in (new, probes)
    )
    expected = sum(
        snapshot.learning_rates[group] * snapshot.visits * (z[name] @ q[name].T).numpy() for name, group in groups.items()
    )
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert sorted(set(found["candidate_language"].values)) == ["hi", "sw"]


def test_added_probes_are_scored_too(tmp_path: Path) -> None:
    run = fitted(tmp_path, projection_dim=200)
    grown = run.add_probes(Classifier(), of(Samples(9, 5)))
    scores = grown.score(Classifier(), of(Part()), progress=False)
    assert scores.shape == (len(CHOSEN), 21)
    np.testing.assert_allclose(scores.to_numpy(), grown.influence().to_numpy()[CHOSEN], rtol=0, atol=1e-4)


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    before = content(run)
    probes = loaders()[1]
    for given, how, message in (
        (None, {}, r"candidates need the probes again: `run\.score\(module, candidates, probes=val_loader\)`"),
        (loaders(probes=9)[1], {}, r"is a run on 12 probes, but there are 9"),
        (probes, {"preconditioner": "fisher"}, "run the fit with a `projection_dim`"),
        (probes, {"similarity": "euclid"}, "similarity should be one of"),
        (probes, {"snapshots": [7]}, "There is no snapshot 7"),
        (probes, {"mask": "mask.safetensors"}, "has no mask"),
        (probes, {"languages": "de"}, "languages should be a list of strings"),
        (probes, {"language_column": "tongue"}, "'tongue'"),
    ):
        with pytest.raises(TracInError, match=message):
            run.score(Classifier(), of(Part()), given, progress=False, **how)
    with pytest.raises(TypeError, match="similarty"):
        run.score(Classifier(), of(Part()), probes, similarty="dot")
    run.snapshots[0].discard_weights()
    with pytest.raises(TracInError, match="weights of snapshot 0000-step5 were not kept"):
        TracInRun.open(run.path).score(Classifier(), of(Part()), probes, progress=False)
    assert {path for path in before if path.exists() and path.read_bytes() != before[path]} == set()


class Spoilt(Classifier):
    """Has no finite loss for texts that begin with one word."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if bool((batch["input_ids"][:, 0] == Samples(30, 1)[29]["input_ids"][0]).any()) else loss


def test_messages_call_a_candidate_what_it_is(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    with pytest.raises(TracInError, match=r"The loss of candidate \d+ \(language '\w+'\) is nan"):
        run.score(Spoilt(), of(Part()), loaders()[1], progress=False)
