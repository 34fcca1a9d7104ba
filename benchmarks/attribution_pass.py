"""The demo's attribution pass against a plain forward and backward over the same train samples, in one run.

Both are timed in turn until the time is up, on the demo's data and on its model with the initial weights. Medians and their
ratio are printed. `python -m benchmarks.attribution_pass --seconds 60`
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks import ours
from benchmarks.plain import plain_pass
from benchmarks.scopes import everything
from benchmarks.timing import interleaved, spread
from lightning_tracin.attribution.batching import Job, free_share
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.samples import SampleSet, from_loader
from lightning_tracin.config import SampleColumns
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.models.classifier import tokenizer_and_model
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule

#: More pairs than fit into any time limit.
_NO_END = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="time for the repetitions")
    parser.add_argument("--batch_size", type=int, default=32)
    settings = parser.parse_args()

    options = FitSettings()
    torch.manual_seed(options.seed)
    split, _ = load_split(options)
    tokenizer, network = tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    train, probes = (samples_of(loader) for loader in (data.train_dataloader(), data.val_dataloader()))

    module = Step(network).eval()
    loss = loss_named(module, "training_step (mean)")
    budget = free_share(torch.device("cpu"))
    job = Job(train, probes, loss, prepare=lambda batch: batch, batch_size=settings.batch_size, memory_budget=budget)

    def attribution() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours.attributed(module, job, everything, Path(folder) / "0000-step0")

    plain_pass(module, job)  # warm-up
    pairs = interleaved(attribution, lambda: plain_pass(module, job), _NO_END, settings.seconds)
    ratio = pairs.ours_over_theirs
    print(f"{len(train)} train samples x {len(probes)} probes, {sum(p.numel() for p in module.parameters()):,} parameters")
    print(f"attribution of one snapshot, probes included: {spread(pairs.ours).value:.2f} s")
    print(f"plain forward and backward of the train samples: {spread(pairs.theirs).value:.2f} s")
    print(f"ratio: median {ratio.value:.2f}, {ratio.low:.2f} to {ratio.high:.2f} in {ratio.runs} pairs")


class Step(torch.nn.Module):
    """The demo's model with its training step."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any) -> torch.Tensor:
        """The loss that a fit minimizes."""
        loss = self.network(**batch).loss
        assert isinstance(loss, torch.Tensor)
        return loss


def samples_of(loader: DataLoader[Any]) -> SampleSet:
    """The samples behind one of the demo's loaders."""
    return from_loader(loader, SampleColumns(item_column="item"), "samples")


if __name__ == "__main__":
    main()
