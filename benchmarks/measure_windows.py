"""How much of a loss's fall rules for the mean gradient along a window leave unexplained, by the length of the window."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.registry import Context, measurement
from benchmarks.report import Report, Result
from lightning_tracin.attribution.window_length import gauss_legendre
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.models.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule

#: Steps of the fit, and of the windows.
_STEPS, _WINDOWS = 128, (4, 8, 16, 32)

#: Rules: where on the way the gradient is computed (0: the window's beginning), and what each place counts.
_RULES: dict[str, Sequence[tuple[float, float]]] = {
    "both ends": ((0.0, 0.5), (1.0, 0.5)),
    "the middle": gauss_legendre(1),
    "Gauss-Legendre 2": gauss_legendre(2),
    "Gauss-Legendre 3": gauss_legendre(3),
}

Weights = list[Tensor]


@measurement("window_rules")
def window_rules(context: Context) -> Report:
    """What is unexplained of the fall of the mean loss of 64 probes, as a part of the sum of the windows' changes.

    The fit is the demo's, without its pretraining: a small encoder from scratch on names of the CLDR, AdamW with warm-up.
    """
    weights, loss = _path(max(_WINDOWS[-1], int(_STEPS * min(1.0, context.scale))))
    notes, results = [], []
    for window in _WINDOWS:
        ends = list(range(0, len(weights), window))
        falls = [_value(loss, weights[one]) - _value(loss, weights[other]) for one, other in pairwise(ends)]
        found = {}
        for name, rule in _RULES.items():
            seen = [
                -sum(count * _along(loss, weights[one], weights[other], place) for place, count in rule)
                for one, other in pairwise(ends)
            ]
            left = sum(abs(fall - part) for fall, part in zip(falls, seen, strict=True))
            found[name] = left / sum(map(abs, falls))
        notes.append(f"windows of {window} steps: " + ", ".join(f"{name} {left:.1%}" for name, left in found.items()))
        if window == 8:
            left = found["Gauss-Legendre 3"]
            results = [Result("window_rules", left, left, left, 1, "ratio")]
    return Report(tuple(results), notes=("window_rules: unexplained part of the changes of loss; " + "; ".join(notes),))


def _path(steps: int) -> tuple[list[Weights], Callable[[Weights, bool], Any]]:
    """The weights after every step of a fit, and the loss of some probes at given weights, with its gradient if wanted."""
    settings = FitSettings()
    pl.seed_everything(settings.seed, verbose=False)
    split, _ = load_split(settings)
    tokenizer, model = tokenizer_and_model(settings, split)
    data = TextDataModule(split, tokenizer, batch_size=settings.batch_size, max_length=settings.max_length)
    module = Classifier(model, learning_rate=settings.learning_rate, warmup=settings.warmup, weight_decay=settings.weight_decay)
    found: list[Weights] = []

    class Keep(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            found.append([one.detach().clone() for one in module.parameters()])

        def on_train_batch_end(self, *_: Any) -> None:
            found.append([one.detach().clone() for one in module.parameters()])

    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[Keep()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            limit_val_batches=0,
        )
        trainer.fit(module, datamodule=data)
    probes = next(iter(data.val_dataloader()))
    module.eval()
    parameters = list(module.parameters())

    def loss(weights: Weights, wants_gradient: bool) -> Any:
        with torch.no_grad():
            for one, value in zip(parameters, weights, strict=True):
                one.copy_(value)
        value = module.model(**{name: one for name, one in probes.items() if name != "language"}).loss
        return torch.autograd.grad(value, parameters, allow_unused=True) if wants_gradient else float(value)

    return found, loss


def _value(loss: Callable[[Weights, bool], Any], weights: Weights) -> float:
    return float(loss(weights, False))


def _along(loss: Callable[[Weights, bool], Any], begin: Weights, end: Weights, place: float) -> float:
    """The slope of the loss along a window, at a place on the straight way through it."""
    gradient = loss([torch.lerp(one, other, place) for one, other in zip(begin, end, strict=True)], True)
    pairs = zip(gradient, begin, end, strict=True)
    return sum(float((slope * (other - one)).sum()) for slope, one, other in pairs if slope is not None)
