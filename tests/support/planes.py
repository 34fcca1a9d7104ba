"""A small fit whose need is known by hand: logistic regression on points of three languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import trainer

LANGUAGES, CLASSES, WIDTH = ("de", "en", "ru"), 2, 5


class Points(torch.utils.data.Dataset[dict[str, Any]]):
    """Points whose label is one side of a plane; each language leans in another direction."""

    def __init__(self, count: int, seed: int, label_count: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.language = [LANGUAGES[index % 3] for index in range(count)]
        self.item = [str(index // 3) for index in range(count)]
        lean = torch.eye(3, WIDTH) * 1.5
        owner = torch.tensor([LANGUAGES.index(name) for name in self.language])
        self.points = torch.randn(count, WIDTH, generator=generator) + lean[owner]
        self.labels = (self.points @ torch.tensor([1.0, -1.0, 0.5, 1.0, 0.0]) > 0).long()
        if label_count > 1:
            self.labels = self.labels[:, None].repeat(1, label_count)

    def __len__(self) -> int:
        return len(self.language)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"points": self.points[index], "labels": self.labels[index], "language": self.language[index]}


class Planes(pl.LightningModule):
    """Logistic regression by plain SGD."""

    def __init__(self, smoothing: float = 0.0, adam: bool = False, total: bool = False, bias_rate: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.smoothing, self.adam, self.total = torch.nn.Linear(WIDTH, CLASSES), smoothing, adam, total
        self.bias_rate = bias_rate

    def losses(self, batch: dict[str, Any]) -> torch.Tensor:
        return F.cross_entropy(self.line(batch["points"]), batch["labels"], reduction="none")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        del batch_idx
        logits, labels = self.line(batch["points"]), batch["labels"]
        if labels.ndim > 1:  # several labels a sample
            logits, labels = logits[:, :, None].expand(-1, -1, labels.shape[1]), labels
        reduction = "sum" if self.total else "mean"
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=self.smoothing)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return (torch.optim.AdamW if self.adam else torch.optim.SGD)(
            [{"params": [self.line.weight]}, {"params": [self.line.bias], "lr": self.bias_rate}], lr=0.1
        )


def fitted(folder: Path, module: Planes | None = None, label_count: int = 1, **settings: Any) -> TracInRun:
    chosen = {"projection_dim": 64, "preconditioner": "fisher", "keep_snapshots": True, **settings}
    train = DataLoader(Points(45, 1, label_count), batch_size=15, shuffle=True)
    probes = DataLoader(Points(18, 2, label_count), batch_size=6)
    callback = TracInCallback(
        folder / "run", probes=probes, top_k=5, max_probes_per_language=None, item_column="item", report=False, **chosen
    )
    pl.seed_everything(0)
    trainer(folder, [callback], max_epochs=3).fit(module or Planes(), train)
    return TracInRun.open(folder / "run")
