"""Which fits are scored in the metric of Adam without being told to, and what their records say."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.attribution.adam import chosen_preconditioner
from lightning_tracin.config import Options
from lightning_tracin.gradients.factored_scale import factored
from tests.support import resumed
from tests.support.fits import Classifier, loaders, trainer

WEIGHT = nn.Parameter(torch.zeros(2))
MAKE: dict[str, Callable[[], list[Optimizer]]] = {
    "AdamW": lambda: [AdamW([WEIGHT])],
    "Adam": lambda: [Adam([WEIGHT])],
    "NAdam": lambda: [NAdam([WEIGHT])],
    "RAdam": lambda: [RAdam([WEIGHT])],
    "two": lambda: [AdamW([WEIGHT]), Adam([WEIGHT])],
    "SGD": lambda: [SGD([WEIGHT], lr=0.1)],
    "Adagrad": lambda: [Adagrad([WEIGHT])],
    "Adamax": lambda: [Adamax([WEIGHT])],
    "AdamW and SGD": lambda: [AdamW([WEIGHT]), SGD([WEIGHT], lr=0.1)],
    "none": lambda: [],
}
OF_ADAM = {"AdamW", "Adam", "NAdam", "RAdam", "two"}


@pytest.mark.parametrize("name", MAKE)
def test_exact_influence_takes_the_metric_of_adam_if_every_optimizer_is_a_variant(name: str) -> None:
    chosen = chosen_preconditioner(Options(), MAKE[name]())
    assert chosen.preconditioner == ("adam-factored" if name in OF_ADAM else None)
    assert chosen.but(preconditioner="auto") == Options()  # nothing else changes


@pytest.mark.parametrize("given", [{"language_means": True}, {"projection_dim": 64}, {"preconditioner": None}])
def test_other_methods_and_plain_gradients_stay_as_they_are(given: dict[str, Any]) -> None:
    assert chosen_preconditioner(Options(**given), MAKE["AdamW"]()).preconditioner is None


def test_in_bfloat16_the_default_is_plain_gradients(tmp_path: Path) -> None:
    """Rounding, scaled up by Adam, was most of the scores."""
    every: dict[str, dict[str, Any]] = {"coarse": {"dtype": "bfloat16"}, "plain": {"preconditioner": None}, "default": {}}
    callbacks = [TracInCallback(tmp_path / name, top_k=5, **given) for name, given in every.items()]
    with pytest.warns(UserWarning, match="plain gradients, because rounding in dtype='bfloat16'"):
        trainer(tmp_path, callbacks, max_epochs=1).fit(Classifier(), *loaders())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TracIn: scores are those of plain")  # where the default is never Adam's metric
        means = TracInCallback(tmp_path / "means", dtype="bfloat16", language_means=True, top_k=5)
        trainer(tmp_path, [means], max_epochs=1).fit(Classifier(), *loaders())
    coarse, exact, default = (TracInRun.open(tmp_path / name).influence("cosine").to_numpy() for name in every)
    assert np.abs(coarse - exact).max() < 0.05
    assert np.abs(default - exact).max() > 0.1


@pytest.mark.parametrize("given", [{}, {"projection_dim": 64}], ids=["exact", "projected"])
def test_the_metric_of_adam_in_bfloat16_is_refused(given: dict[str, Any]) -> None:
    for name in ("adam", "adam-factored", "adam-fisher")[: 3 if given else 2]:
        with pytest.raises(TracInError, match="smaller than rounding in dtype='bfloat16'; take dtype='float32'"):
            chosen_preconditioner(Options(preconditioner=name, dtype="bfloat16", **given), MAKE["AdamW"]())


def test_a_run_that_was_made_so_can_be_read_and_says_it(tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1).fit(Classifier(), *loaders())
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["options"]["dtype"] = "bfloat16"
    del record["checksum"]
    path.write_text(json.dumps(record))
    (said,) = TracInRun.open(tmp_path / "run").record.cautions
    assert said.startswith("Its scores are mostly rounding")


@pytest.mark.parametrize("given", [{"preconditioner": "adam"}, {"preconditioner": "fisher", "projection_dim": 64}])
def test_what_is_asked_for_is_not_changed(given: dict[str, Any]) -> None:
    for name in MAKE:
        assert chosen_preconditioner(Options(**given), MAKE[name]()).preconditioner == given["preconditioner"]


class With(Classifier):
    """Trained by another optimizer, or by several, by hand."""

    def __init__(self, *makers: Callable[[Any], Optimizer]) -> None:
        super().__init__()
        self.makers, self.automatic_optimization = makers, False

    def configure_optimizers(self) -> Any:
        parts = [self.model.roberta, self.model.classifier] if len(self.makers) == 2 else [self.model]
        return [make(part.parameters()) for make, part in zip(self.makers, parts, strict=True)]

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            self.model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"], reduction="none"
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.manual_backward(self.per_sample_loss(batch).mean())
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()
            optimizer.zero_grad()


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=1e-3)


@pytest.mark.parametrize(
    ("module", "given", "recorded"),
    [
        (Classifier, {}, "adam-factored"),
        (Classifier, {"preconditioner": None}, None),
        (Classifier, {"language_means": True}, None),
        (Classifier, {"projection_dim": 64}, None),
        (lambda: With(sgd), {}, None),
        (lambda: With(AdamW, Adam), {}, "adam-factored"),
        (lambda: With(AdamW, sgd), {}, None),
    ],
    ids=["AdamW", "plain", "means", "projected", "SGD", "two of Adam", "AdamW and SGD"],
)
def test_the_record_says_what_was_chosen(module: Any, given: dict[str, Any], recorded: str | None, tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, **given)], max_epochs=1).fit(module(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert json.loads((run.path / "run.json").read_text())["options"]["preconditioner"] == recorded
    assert run.influence().attrs["preconditioner"] == (recorded or "none")
    assert bool(list(run.snapshots[0].path.glob("*adam*"))) == (recorded == "adam-factored")


def test_the_default_scores_are_those_that_factored_adam_is_asked_for(tmp_path: Path) -> None:
    for name, given in (("auto", {}), ("adam", {"preconditioner": "adam-factored"}), ("plain", {"preconditioner": None})):
        resumed.fit(tmp_path / name, 1, top_k=5, when="fit_end", **given)
    auto, adam, plain = (TracInRun.open(tmp_path / name / "run").influence().to_numpy() for name in ("auto", "adam", "plain"))
    np.testing.assert_array_equal(auto, adam)
    assert np.abs(auto - plain).max() > 0.01


def test_factored_scales_are_outer_products_of_what_rows_and_columns_had(tmp_path: Path) -> None:
    module = Classifier()
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, when="never")], max_epochs=2).fit(module, *loaders())
    (optimizer,) = module.trainer.optimizers
    stored = TracInRun.open(tmp_path / "run").snapshots[-1].scales()
    for name, parameter in module.named_parameters():
        state = optimizer.state[parameter]
        second = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).double()
        matrix = second.flatten(1) if second.dim() > 1 else second[:, None]
        expected = torch.zeros_like(matrix)
        for row, values in enumerate(matrix):
            for column in range(matrix.shape[1]):
                added = 0.001 * matrix.mean()
                by_row, by_column = values.mean(), matrix[:, column].mean()
                whole = (by_row + added) * (by_column + added) / (1.001 * matrix.mean())
                whole = values[0] + added if second.dim() == 1 else whole
                expected[row, column] = whole**-0.25 if by_row > 0 and by_column > 0 else 0.0
        torch.testing.assert_close(stored[name].double(), expected.view_as(second), rtol=1e-5, atol=0)
        assert parameter.dim() < 2 or factored(stored[name]) is not None


def test_a_resumed_fit_goes_on_with_what_its_run_was_made_with(tmp_path: Path) -> None:
    resumed.fit(tmp_path, 2)
    resumed.fit(tmp_path, 3, resumed.at(tmp_path, 10), when="fit_end")
    run = TracInRun.open(tmp_path / "run")
    assert run.record.options.preconditioner == "adam-factored"
    assert len(run.snapshots) == 3
    assert all(list(one.path.glob("*adam*")) for one in run.snapshots)
    resumed.fit(tmp_path / "whole", 3, when="fit_end")
    whole = TracInRun.open(tmp_path / "whole" / "run")
    np.testing.assert_allclose(run.influence(snapshots=[0, 1]), whole.influence(snapshots=[0, 1]), rtol=1e-5, atol=1e-6)


def test_a_run_of_plain_gradients_is_not_resumed_in_the_metric_of_adam(tmp_path: Path) -> None:
    resumed.fit(tmp_path, 2, preconditioner=None)
    with pytest.raises(TracInError, match=r"holds a run with preconditioner None, but this fit has adam-factored"):
        resumed.fit(tmp_path, 3, resumed.at(tmp_path, 10))
    resumed.fit(tmp_path, 3, resumed.at(tmp_path, 10), preconditioner=None)
    assert TracInRun.open(tmp_path / "run").record.options.preconditioner is None
