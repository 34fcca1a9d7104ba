"""A small fit with two optimizer groups of different, changing rates, and every sample's gradients from a loop.

No optimizer trains the head's bias, which makes a third group of rate 0. An epoch sees two thirds of the train samples.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin.attribution.masks import write_mask
from tests.support.fits import trainer
from tests.support.oracles import gradient_loop

Floats = npt.NDArray[np.float64]

#: Parameter -> its optimizer group. The embeddings, layer 0 and the head have parameters of two groups; layer 1 is in one.
GROUPS = {
    "embed.weight": 0,
    "embed.bias": 1,
    "layers.0.weight": 0,
    "layers.0.bias": 1,
    "layers.1.weight": 1,
    "layers.1.bias": 1,
    "head.weight": 0,
    "head.bias": 2,
}
LAYERS = ("embeddings", "layer 0", "layer 1", "head")
TRAIN, ALSO_PROBES, PROBES = 15, 8, 12  # the first probes are train samples, too


def layer_of(name: str) -> str:
    first, second, *_ = name.split(".")
    return {"embed": "embeddings", "head": "head"}.get(first, f"layer {second}")


class Vectors(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples of three languages, each with inputs of its own."""

    def __init__(self, first: int, last: int) -> None:
        generator = torch.Generator().manual_seed(1)
        count = TRAIN + PROBES
        kind = torch.arange(count) % 3
        self.x = (torch.randn(count, 3, generator=generator) + kind[:, None])[first:last]
        self.y = torch.randint(3, (count,), generator=generator)[first:last]
        self.language = [("de", "en", "ru")[number] for number in kind[first:last]]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Probes(Vectors):
    """The first train samples again, and others."""

    def __init__(self) -> None:
        super().__init__(0, TRAIN + PROBES)
        kept = [*range(ALSO_PROBES), *range(TRAIN, TRAIN + PROBES - ALSO_PROBES)]
        self.x, self.y, self.language = self.x[kept], self.y[kept], [self.language[index] for index in kept]


@dataclass(frozen=True)
class Moment:
    """What the module notes at the end of an epoch."""

    state: dict[str, Tensor]
    weights: Floats  # of each group: mean rate over the epoch's steps, times visits of a train sample
    preconditioner: dict[str, Tensor]  # Adam's
    factored: dict[str, Tensor]  # the same from factored second moments


class TwoRates(pl.LightningModule):
    """Takes notes for the oracle during the fit."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.moments: list[Moment] = []
        self._rates: list[list[float]] = []
        self._seen = 0

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.embed(batch["x"])
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return nn.functional.cross_entropy(self.head(hidden), batch["y"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self._seen += len(batch["x"])
        return self.loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [{"params": [], "lr": 0.03}, {"params": [], "lr": 0.002}]
        for name, parameter in self.named_parameters():
            if GROUPS[name] < len(groups):
                groups[GROUPS[name]]["params"].append(parameter)
        optimizer = torch.optim.AdamW(groups)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda n: 0.5**n, lambda n: 1.0])]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_epoch_end(self) -> None:
        optimizer: Any = self.trainer.optimizers[0]
        scales = {name: torch.zeros(parameter.numel()) for name, parameter in self.named_parameters()}
        factored = dict(scales)
        for name, parameter in (
            (name, one) for name, one in self.named_parameters() if "exp_avg_sq" in optimizer.state.get(one, {})
        ):
            state = optimizer.state[parameter]
            second = (state["exp_avg_sq"] / (1 - 0.999 ** state["step"])).double().flatten()
            scales[name] = torch.where(second > 0, 1 / (second.sqrt() + 1e-8), 0.0)
            factored[name] = self.factored(second.view(parameter.shape)).flatten()
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        weights = np.append(np.mean(self._rates, axis=0), 0.0) * self._seen / TRAIN
        self.moments.append(Moment(state, weights, scales, factored))
        self._rates, self._seen = [], 0

    @staticmethod
    def factored(second: Tensor) -> Tensor:
        """P from the factored second moments of one parameter, element by element."""
        mean, found = float(second.mean()), torch.zeros_like(second)
        for index in itertools.product(*map(range, second.shape)):
            if second.dim() == 1:
                bounded = float(second[index]) + 0.001 * mean
                is_known = bool(second[index] > 0)
            else:
                row, column = float(second[index[0]].mean()), float(second[:, index[1]].mean())
                bounded = (row + 0.001 * mean) * (column + 0.001 * mean) / (1.001 * mean) if mean else 0.0
                is_known = row > 0 and column > 0
            found[index] = bounded**-0.5 if is_known else 0.0
        return found


class PlainSteps(TwoRates):
    """The same with steps that are rates times gradients."""

    def configure_optimizers(self) -> Any:
        optimizers, schedules = super().configure_optimizers()
        groups = [{"params": group["params"], "lr": group["initial_lr"]} for group in optimizers[0].param_groups]
        optimizer = torch.optim.SGD(groups)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, schedules[0].lr_lambdas)]


def fit(folder: Path, *callbacks: pl.Callback, of: type[TwoRates] = TwoRates) -> TwoRates:
    """Two epochs, so two snapshots."""
    pl.seed_everything(7)
    module = of()
    train = DataLoader(Vectors(0, TRAIN), batch_size=5, shuffle=True)
    trainer(folder, list(callbacks), max_epochs=2, limit_train_batches=2).fit(module, train, DataLoader(Probes(), batch_size=5))
    return module


def gradients_of(moment: Moment) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Every train sample's and every probe's gradient, parameter by parameter, in double precision."""
    module = TwoRates().double()
    module.load_state_dict(moment.state)

    def loss(sample: dict[str, Tensor]) -> Tensor:
        return module.loss({"x": sample["x"][None].double(), "y": sample["y"][None]})

    sides = [gradient_loop(module, loss, list(map(data.__getitem__, range(len(data)))), list(GROUPS)) for data in _data()]
    return tuple({name: one.numpy() for name, one in side.items()} for side in sides)  # type: ignore[return-value]


def _data() -> tuple[Vectors, Vectors]:
    return Vectors(0, TRAIN), Probes()


def some_elements() -> dict[str, Tensor]:
    """A mask: some of the embeddings, all of layer 0, nothing of layer 1, some of the head."""
    shapes = {name: parameter.shape for name, parameter in TwoRates().named_parameters()}
    return {
        "embed.weight": (torch.arange(12).view(shapes["embed.weight"]) % 2),
        "embed.bias": torch.tensor([1, 0, 0, 1]),
        "layers.0.weight": torch.ones(shapes["layers.0.weight"], dtype=torch.int64),
        "layers.0.bias": torch.ones(shapes["layers.0.bias"], dtype=torch.int64),
        "head.weight": (torch.arange(12).view(shapes["head.weight"]) % 3).clamp(max=1),
        "head.bias": torch.ones(3, dtype=torch.int64),
    }


def mask_file(folder: Path) -> Path:
    write_mask(folder / "mask.safetensors", some_elements())
    return folder / "mask.safetensors"
