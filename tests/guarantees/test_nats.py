"""The influence of a language in nats: against gradients from a loop, and against what the loss really did."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import trainer
from tests.support.two_rates import GROUPS, TRAIN, PlainSteps, Probes, TwoRates, Vectors, fit, gradients_of

LANGUAGES = ("de", "en", "ru")
OF_TRAIN, OF_PROBES = np.array(Vectors(0, TRAIN).language), np.array(Probes().language)
STEPS, SAMPLES = 2, 10  # of an epoch

NATS = "nats (first order)"


def by_hand(module: TwoRates, metric: str) -> list[np.ndarray]:
    """Of each snapshot: mean rate x steps / N x inner product, in a metric; summed over a language's samples."""
    found = []
    for moment in module.moments:
        train, probes = gradients_of(moment)
        rates = moment.weights * TRAIN / SAMPLES  # which the module notes times visits
        nats = np.zeros((TRAIN, len(OF_PROBES)))
        for name, group in GROUPS.items():
            scales = {"adam": moment.preconditioner, "adam-factored": moment.factored}.get(metric)
            scale = np.ones(train[name].shape[1]) if scales is None else scales[name].numpy()
            nats += rates[group] * STEPS / TRAIN * (train[name] * scale) @ probes[name].T
        cells = [
            nats[np.ix_(train == OF_TRAIN, probe == OF_PROBES)].sum(0).mean() for probe, train in product(LANGUAGES, repeat=2)
        ]
        found.append(np.array(cells))
    return found


@pytest.mark.parametrize(
    ("of", "settings", "metric"),
    [
        (TwoRates, {}, "adam-factored"),
        (TwoRates, {"preconditioner": "adam"}, "adam"),
        (PlainSteps, {}, "none"),
    ],
    ids=["AdamW", "AdamW, by elements", "SGD"],
)
def test_sums_are_rates_times_steps_times_inner_products(
    of: type[TwoRates], settings: dict[str, Any], metric: str, tmp_path: Path
) -> None:
    module = fit(tmp_path, TracInCallback(tmp_path / "run", top_k=3, dtype="float64", **settings), of=of)
    run = TracInRun.open(tmp_path / "run")
    expected = by_hand(module, metric)
    alone, summed = run.reliance(), run.reliance(cumulative=True)
    off = 1e-5 * np.abs(expected).max()  # what samples of different signs leave of their sum
    for index in range(2):
        np.testing.assert_allclose(alone[alone["snapshot"] == index]["value"], expected[index], rtol=1e-5, atol=off)
        np.testing.assert_allclose(
            summed[summed["snapshot"] == index]["value"], np.sum(expected[: index + 1], axis=0), rtol=1e-5, atol=off
        )
    means = run.reliance(measure="mean")
    np.testing.assert_allclose(means["value"], alone["value"] / 5, rtol=1e-12)  # five train samples of each language
    # All languages are shuffled as one (there are no labels), so by chance each has its part of the whole.
    whole = alone.groupby(["snapshot", "probe_language"])["value"].transform("sum")
    np.testing.assert_allclose(alone["null"], whole / 3, rtol=1e-9)
    assert {*alone["unit"], *summed["unit"], *means["unit"]} == {NATS}
    assert set(run.reliance(3, measure="share")["unit"]) == {"part"}


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, {"similarity": "cosine"}),
        ({}, {"weighting": "uniform"}),
        ({"preconditioner": None}, {}),  # plain gradients after AdamW's steps
        ({"language_means": True}, {}),
        ({"projection_dim": 60}, {}),
        ({"projection_dim": 60, "preconditioner": "fisher"}, {"blocks": "layer"}),
    ],
)
def test_what_does_not_follow_the_steps_is_in_units_of_the_score(
    settings: dict[str, Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    fit(tmp_path, TracInCallback(tmp_path / "run", top_k=3, **settings))
    run = TracInRun.open(tmp_path / "run")
    table = run.reliance(cumulative=True, snapshots=[1], **asked)
    assert set(table["unit"]) == {"score"}
    view = {"similarity": "dot", "weighting": "learning_rate", **asked}
    scores = run.influence(**view).groupby("train_language").sum("train").groupby("probe_language").mean()
    np.testing.assert_allclose(table["value"], scores.transpose("probe_language", "train_language").to_numpy().ravel(), rtol=1e-6)


def test_plain_scores_of_momentum_are_no_nats(tmp_path: Path) -> None:
    class Momentum(PlainSteps):
        def configure_optimizers(self) -> Any:
            optimizers, schedules = super().configure_optimizers()
            for group in optimizers[0].param_groups:
                group["momentum"] = 0.9
            return optimizers, schedules

    fit(tmp_path, TracInCallback(tmp_path / "run", top_k=3), of=Momentum)
    run = TracInRun.open(tmp_path / "run")
    assert [one.record.plain_steps for one in run.snapshots] == [False, False]
    assert set(run.reliance()["unit"]) == {"score"}


class Small(PlainSteps):
    """Steps so small that a loss falls in a straight line."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.mark.parametrize("size", [TRAIN, 5, 4])
def test_all_languages_together_are_what_the_loss_fell_by(size: int, tmp_path: Path) -> None:
    """Also with a last batch that is smaller; its samples count more in their step, which evens out."""
    pl.seed_everything(7)
    module = Small().double()
    before = loss_of_probes(module)
    train = DataLoader(Doubles(0, TRAIN), batch_size=size, shuffle=True)
    callback = TracInCallback(tmp_path / "run", top_k=3, probes=DataLoader(DoubleProbes(), batch_size=5), dtype="float64")
    trainer(tmp_path, [callback], max_epochs=40).fit(module, train)
    fell = before - loss_of_probes(module)
    table = TracInRun.open(tmp_path / "run").reliance(cumulative=True, snapshots=[39])
    accounted = table.groupby("probe_language")["value"].sum()
    np.testing.assert_allclose(accounted, fell, rtol=0.02 if TRAIN % size == 0 else 0.1)
    assert (np.abs(fell) > 1e-4).all()


class Doubles(Vectors):
    """In double precision."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**super().__getitem__(index), "x": self.x[index].double()}


class DoubleProbes(Probes):
    """In double precision."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**super().__getitem__(index), "x": self.x[index].double()}


def loss_of_probes(module: TwoRates) -> np.ndarray:
    """Mean loss of the probes of each language."""
    probes = Probes()
    with torch.no_grad():
        each = [float(module.loss({"x": probes.x[[i]].double(), "y": probes.y[[i]]})) for i in range(len(probes))]
    return np.array([np.mean(np.array(each)[language == OF_PROBES]) for language in LANGUAGES])
