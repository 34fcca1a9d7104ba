"""Fits whose probes are scored token by token, and the loop of `autograd.grad` that says what the scores are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInRun
from tests.support import fits
from tests.support.models import PAD
from tests.support.zoo import CAUSAL, SMALL, unsettled

LATER = {"when": "never"}  # snapshots are all that per-token scores need

Step = Callable[[torch.nn.Module, dict[str, Tensor]], Tensor]


class Module(pl.LightningModule):
    """A plain module with the loss of a model of transformers, or one written by hand."""

    def __init__(self, model: torch.nn.Module, step: Step | None = None, rate: float = 0.05) -> None:
        super().__init__()
        self.model, self.step, self.rate = model, step, rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss if self.step is None else self.step(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Tokens(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples of different lengths with a label for each token; some labels are ignored."""

    def __init__(self, count: int, seed: int, classes: int | None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(count):
            length = int(torch.randint(4, 8, (1,), generator=generator))
            ids = torch.randint(4, 60, (length,), generator=generator)
            labels = ids.clone() if classes is None else torch.randint(0, classes, (length,), generator=generator)
            labels[int(torch.randint(0, length, (1,), generator=generator))] = -100
            self.rows.append({"input_ids": ids, "labels": labels})
        self.language = [("de", "en")[index % 2] for index in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def padded(name: str, value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    ids = padded("input_ids", PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": padded("labels", -100)}


def loaders(classes: int | None) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, probes = Tokens(9, 1, classes), Tokens(5, 2, classes)
    return DataLoader(train, batch_size=4, collate_fn=collate), DataLoader(probes, batch_size=4, collate_fn=collate)


def tagger() -> torch.nn.Module:
    torch.manual_seed(0)
    return unsettled(hf.XLMRobertaForTokenClassification(hf.XLMRobertaConfig(**SMALL)))


def writer() -> torch.nn.Module:
    torch.manual_seed(0)
    return unsettled(hf.Qwen3ForCausalLM(hf.Qwen3Config(**CAUSAL, tie_word_embeddings=True)))


def fitted(module: Module, classes: int | None, path: Path, **options: Any) -> TracInRun:
    torch.manual_seed(0)
    callback = TracInCallback(path, **{"top_k": 3, "dtype": "float64", "preconditioner": None, **options})
    fits.trainer(path, [callback], max_epochs=2).fit(module, *loaders(classes))
    return TracInRun.open(path)


def gradient(module: Module, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    pairs = zip(module.parameters(), found, strict=True)
    return torch.cat([(torch.zeros_like(one) if each is None else each).flatten() for one, each in pairs])


def of_positions(module: Module, row: dict[str, Tensor], is_causal: bool) -> dict[int, Tensor]:
    """The gradient of what each position adds to the mean over a sample's tokens, by the position of the token in the sample."""
    batch = collate([row])
    logits, labels = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0], row["labels"]
    shift = 1 if is_causal else 0
    live = [place for place in range(shift, len(labels)) if labels[place] != -100]
    losses = {place: F.cross_entropy(logits[place - shift], labels[place]) / len(live) for place in live}
    return {place: gradient(module, loss) for place, loss in losses.items()}


def loop(module: Module, run: TracInRun, is_causal: bool, probe: int) -> dict[int, np.ndarray]:
    """The scores of all train samples on each token of one probe, summed over snapshots."""
    classes = None if is_causal else 3
    train, probes = (loader.dataset for loader in loaders(classes))
    module.double().eval()
    total: dict[int, np.ndarray] = {}
    for snapshot in run.snapshots:
        module.load_state_dict(snapshot.state_dict(), strict=False)
        each = of_positions(module, probes[probe], is_causal)
        for index in range(len(train)):
            whole = torch.stack(list(of_positions(module, train[index], is_causal).values())).sum(0)
            for place, token in each.items():
                total.setdefault(place, np.zeros(len(train)))[index] += float(whole @ token)
    return total
