"""The predicted need of a run, put together by hand from single samples' gradients and losses."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from lightning_tracin import TracInError, TracInRun
from lightning_tracin.analysis.need_table import NEED_COLUMNS, need_table
from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval
from lightning_tracin.cli.main import main
from lightning_tracin.storage.snapshots import load_weights
from tests.support.planes import CLASSES, LANGUAGES, WIDTH, Planes, Points, fitted


def by_hand(run: TracInRun, weigh: bool) -> np.ndarray:
    """The docstring of `analysis.predicted_need`, with gradients of all parameters instead of features: [languages, probes]."""
    module, total = Planes(), np.zeros((3, 18))
    train, probes = Points(45, 1), Points(18, 2)
    owner = np.array([LANGUAGES.index(name) for name in train.language])
    snapshots = run.snapshots
    for position, snapshot in enumerate(snapshots):
        load_weights(module, snapshot.state_dict())

        def gradients(data: Points) -> np.ndarray:
            found = []
            for index in range(len(data)):
                loss = F.cross_entropy(module.line(data.points[index : index + 1]), data.labels[index : index + 1])
                parts = torch.autograd.grad(loss, list(module.parameters()))
                found.append(torch.cat([part.flatten() for part in parts]).double().numpy())
            return np.stack(found)

        phi, psi = gradients(train), gradients(probes)
        chance = torch.softmax(module.line(train.points), 1).gather(1, train.labels[:, None])[:, 0].detach().double().numpy()
        weights = chance / (1 - chance) if weigh else np.ones(len(train))
        roots = np.sqrt(np.repeat(snapshot.learning_rates, [CLASSES * WIDTH, CLASSES]))  # of weights, then of biases
        phi, psi = phi * roots, psi * roots
        ahead = sum(one.steps for one in snapshots[position:])  # at the same rates
        for group in range(3):
            mine, rest = phi[owner == group], phi[owner != group]
            push = snapshot.steps * len(mine) / len(phi) * (mine.mean(0) - rest.mean(0))
            curvature = (rest * weights[owner != group, None]).T @ rest / len(rest)
            total[group] += psi @ np.linalg.solve(np.eye(phi.shape[1]) + ahead * curvature, push)
    return total


@pytest.mark.parametrize(("curvature", "weigh", "bias_rate"), [("gauss-newton", True, 0.1), ("fisher", False, 0.4)])
def test_it_is_that_of_single_samples(tmp_path: Path, curvature: Any, weigh: bool, bias_rate: float) -> None:
    run = fitted(tmp_path, Planes(bias_rate=bias_rate))
    table = run.predicted_need(curvature, interval=NO_INTERVAL)
    assert tuple(table.columns) == NEED_COLUMNS
    want, probes = by_hand(run, weigh), np.array(run.probes.language)
    for line in table.to_dict("records"):
        mean = want[LANGUAGES.index(line["train_language"])][probes == line["probe_language"]].mean()
        assert line["nats"] == pytest.approx(mean, abs=0.02 * np.abs(want).max())  # features are projected
        assert line["is_own"] == (line["train_language"] == line["probe_language"])
        assert line["train_samples"] == 15


def test_it_says_what_refits_say(tmp_path: Path) -> None:
    """Fits without each language, from the same weights, on the same batches without its samples, as `Refits` makes them."""
    run = fitted(tmp_path, every_n_train_steps=1)
    train, probes = Points(45, 1), Points(18, 2)
    order = torch.Generator().manual_seed(5)
    batches = [batch for _ in range(3) for batch in torch.randperm(45, generator=order).split(15)]

    def losses(without: str | None) -> np.ndarray:
        module = Planes()
        optimizer = module.configure_optimizers()
        for batch in batches:
            kept = [int(one) for one in batch if train.language[int(one)] != without]
            optimizer.zero_grad()
            F.cross_entropy(module.line(train.points[kept]), train.labels[kept]).backward()
            optimizer.step()
        return F.cross_entropy(module.line(probes.points), probes.labels, reduction="none").detach().numpy()

    whole, language = losses(None), np.array(probes.language)
    measured = {(probe, name): (losses(name) - whole)[language == probe].mean() for name in LANGUAGES for probe in LANGUAGES}
    table = run.predicted_need(interval=NO_INTERVAL)
    predicted = {(one["probe_language"], one["train_language"]): one["nats"] for one in table.to_dict("records")}
    pairs = np.array([(predicted[key], measured[key]) for key in measured])
    assert np.corrcoef(pairs.T)[0, 1] > 0.95
    assert np.polyfit(*pairs.T, 1)[0] == pytest.approx(1, abs=0.3)  # nats are nats


@pytest.mark.parametrize("module", [Planes(smoothing=0.1), Planes()], ids=["smoothed", "several labels a sample"])
def test_without_labels_probabilities_only_the_fisher_will_do(tmp_path: Path, module: Planes) -> None:
    run = fitted(tmp_path, module, label_count=1 if module.smoothing else 2)
    with pytest.raises(TracInError, match=r"has no probabilities of labels: they are stored where .* Take curvature='fisher'"):
        run.predicted_need()
    assert np.isfinite(run.predicted_need("fisher")["nats"]).all()


def test_features_of_other_steps_are_refused(tmp_path: Path) -> None:
    run = fitted(tmp_path, Planes(adam=True))
    with pytest.raises(TracInError, match=r"no features in the metric of the fit's steps; run .*preconditioner='adam-fisher'"):
        run.predicted_need()
    whitened = fitted(tmp_path / "adam", Planes(adam=True), preconditioner="adam-fisher")
    assert np.isfinite(whitened.predicted_need()["nats"]).all()
    exact = fitted(tmp_path / "exact", projection_dim=None, preconditioner=None)
    with pytest.raises(TracInError, match=r"run the fit with `TracInCallback\(projection_dim=4096, preconditioner='fisher'\)`"):
        exact.predicted_need()


def test_a_summed_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"mean loss of the samples that are left, but the fit's loss is training_step \(sum\)"):
        fitted(tmp_path, Planes(total=True)).predicted_need()


def test_an_unknown_curvature(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match="curvature should be 'gauss-newton' or 'fisher', but is 'hessian'"):
        fitted(tmp_path).predicted_need("hessian")  # type: ignore[arg-type]


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fitted(tmp_path)
    capsys.readouterr()
    main(["need", str(run.path), "--curvature", "fisher", "--output", "csv"])
    shown = pd.read_csv(StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(shown, run.predicted_need("fisher"))


def test_intervals_are_over_items() -> None:
    """Two translations of one item are one draw: with a single item there is no interval."""
    rises = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    table = need_table(rises, ["de", "en"], ["de"] * 4, ["1", "1", "2", "2"], Interval(resamples=99))
    line = table[table["train_language"] == "de"].iloc[0]
    assert (line["nats"], line["low"], line["high"]) == (2.5, 1.5, 3.5)
    alone = need_table(rises, ["de", "en"], ["de"] * 4, ["1"] * 4)
    assert alone[["low", "high"]].isna().all(axis=None)
