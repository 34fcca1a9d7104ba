"""The demo's attribution pass against a plain forward and backward over the same train samples, in one run.

Both are timed in turn, on the demo's data and model at its first weights, until the time is up; medians and their ratio are
printed. `python benchmarks/attribution_pass.py --seconds 60`
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from finetune import tokenizer_and_model
from options import Options
from sources import load_split
from text_data import TextDataModule

from lightning_tracin.attribution import Job, attribute_snapshot, free_share
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.ingredients import IngredientStore
from lightning_tracin.losses import SummedLoss, loss_named
from lightning_tracin.samples import SampleSet, from_loader
from lightning_tracin.tables import Columns


def timed(work: Callable[[], None]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_pass(model: torch.nn.Module, loss: SummedLoss, samples: SampleSet, batch_size: int) -> None:
    """What a fit does with the samples, optimizer aside: batches of similar length, all parameters' gradients."""
    order = sorted(range(len(samples)), key=lambda index: samples.sizes[index])
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        model.zero_grad(set_to_none=True)
        loss(samples.batch(batch), len(batch)).backward()  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="time for the repetitions")
    parser.add_argument("--batch_size", type=int, default=32)
    settings = parser.parse_args()

    options = Options()
    torch.manual_seed(options.seed)
    split, _ = load_split(options)
    tokenizer, network = tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    train, probes = (samples_of(loader) for loader in (data.train_dataloader(), data.val_dataloader()))

    module = Step(network).eval()
    loss = loss_named(module, "training_step (mean)")
    groups = dict.fromkeys((name for name, _ in module.named_parameters()), 0)
    budget = free_share(torch.device("cpu"))
    job = Job(train, probes, loss, prepare=lambda batch: batch, batch_size=settings.batch_size, memory_budget=budget)

    def attribution() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = IngredientStore(Path(folder) / "0000-step0", len(train), len(probes))
            attribute_snapshot(module, plan_coverage(module, frozenset(groups)), groups, 1, job, store, "0000-step0")

    def plain() -> None:
        plain_pass(module, loss, train, settings.batch_size)

    timed(plain)  # warm-up
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < 3 or time.perf_counter() - start < settings.seconds:
        pairs.append((timed(attribution), timed(plain)))
    ratios = [one / other for one, other in pairs]
    print(f"{len(train)} train samples x {len(probes)} probes, {sum(p.numel() for p in module.parameters()):,} parameters")
    print(f"attribution of one snapshot, probes included: {statistics.median(one for one, _ in pairs):.2f} s")
    print(f"plain forward and backward of the train samples: {statistics.median(other for _, other in pairs):.2f} s")
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs")


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
    return from_loader(loader, Columns(item="item"), "samples")


if __name__ == "__main__":
    main()
