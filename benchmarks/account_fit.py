"""The fits of the benchmarks in which contributions are accounted for, and the same fits without an account."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.timing import seconds
from benchmarks.workloads import Sentences, Workload, xlm_r
from lightning_tracin import ContributionCallback, TracInRun
from lightning_tracin.attribution.account_memory import account_memory
from lightning_tracin.trainer.accounting import Accounting

#: Samples of a batch, and train languages, which take turns.
BATCH_SIZE, LANGUAGES = 32, ("de", "en", "es", "fr", "ru")


class Module(pl.LightningModule):
    """A workload's model in an ordinary LightningModule."""

    def __init__(self, workload: Workload, rate: float = 2e-5) -> None:
        super().__init__()
        self.model, self.loss, self.rate = copy.deepcopy(workload.model), workload.loss, rate

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss."""
        return self.loss(self.model, batch) / len(batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


class Order:
    """Batches of positions in a random order, which is the same in every fit.

    Args:
        count: of the samples.
        size: of a batch.
    """

    def __init__(self, count: int, size: int = BATCH_SIZE) -> None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        self._batches = [order[at : at + size] for at in range(0, count, size)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


@dataclass
class Account:
    """What is known of an account after its fit: seconds of its parts, and bytes."""

    starting: float = 0.0  # before the first batch
    looking: float = 0.0  # at the probes where windows end
    ending: float = 0.0  # after the last window: tables, figures, page
    windows: int = 0
    vectors: int = 0  # bytes of its vectors but the rows of embeddings, and of the weights where the window began
    rows: int = 0  # bytes of the rows of embeddings
    announced: int = 0  # bytes of all but the rows
    announced_rows: int = 0  # bytes of the rows, at most
    table: pd.DataFrame = field(default_factory=pd.DataFrame)  # contributions in the whole fit


def languages(count: int) -> list[str]:
    """A language for each sample."""
    return [LANGUAGES[index % len(LANGUAGES)] for index in range(count)]


def fit(
    workload: Workload, epochs: int, callbacks: Sequence[pl.Callback] = (), rate: float = 2e-5
) -> tuple[float, pl.LightningModule]:
    """Seconds of one fit, and the module after it."""
    train = DataLoader(workload.train, batch_sampler=Order(len(workload.train)))
    probes = DataLoader(workload.probes, batch_size=BATCH_SIZE)
    module = Module(workload, rate)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            default_root_dir=folder,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        return seconds(lambda: trainer.fit(module, train, probes)), module


def accounted_fit(
    workload: Workload, epochs: int, rate: float = 2e-5, of_probes: Sequence[str] | None = None, **options: Any
) -> tuple[float, Account]:
    """Seconds of one fit with an account, and what is known of the account.

    Args:
        workload: the model and its samples.
        epochs: of the fit.
        rate: the learning rate.
        of_probes: each probe's language; default: they take turns.
        options: of the callback.
    """
    known = Account()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as clocks:
        callback = ContributionCallback(
            Path(folder) / "run",
            languages=languages(len(workload.train)),
            languages_of_probes=languages(len(workload.probes)) if of_probes is None else of_probes,
            **options,
        )
        for owner, name, clocked in (
            (ContributionCallback, "on_train_start", _starting),
            (Accounting, "_end_window", _looking),
            (Accounting, "finish", _finishing),
        ):
            clocks.enter_context(patch.object(owner, name, clocked(getattr(owner, name), known)))
        took, _ = fit(workload, epochs, [callback], rate)
        table = TracInRun.open(Path(folder) / "run").contributions(cumulative=True)
        known.table = table[table["window"] == table["window"].max()]
    return took, known


def _starting(function: Callable[..., None], known: Account) -> Callable[..., None]:
    def call(*given: Any) -> None:
        known.starting += seconds(lambda: function(*given))

    return call


def _looking(function: Callable[..., None], known: Account) -> Callable[..., None]:
    def call(*given: Any, **named: Any) -> None:
        known.looking += seconds(lambda: function(*given, **named))
        known.windows += 1

    return call


def _finishing(function: Callable[[Accounting], None], known: Account) -> Callable[[Accounting], None]:
    def call(accounting: Accounting) -> None:
        before, start = known.looking, time.perf_counter()
        function(accounting)
        known.ending += time.perf_counter() - start - (known.looking - before)
        account, count = accounting.account, len(accounting.names.known)
        memory = account_memory(account.split, account.optimizers)
        weights = sum(one.nbytes for one in account.split.parameters.values())
        known.vectors, known.rows = account.most_bytes - account.most_of_rows + weights, account.most_of_rows
        known.announced, known.announced_rows = memory.known(count), memory.of_rows(count)

    return call


def planted(train: int = 480, probes: int = 60) -> Workload:
    """A fit that learns: a small encoder without dropout, and texts most of whose tokens tell their class."""
    workload = xlm_r("planted fit", train, probes, layers=2, width=64, heads=2, inner=256, vocabulary=2_000)
    for module in workload.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    generator = torch.Generator().manual_seed(1)

    def telling(samples: Sentences) -> Sentences:
        told = []
        for tokens, label in zip(samples.tokens, samples.labels, strict=True):
            inner = tokens[1:-1]
            chosen = torch.rand(len(inner), generator=generator) < 0.5
            told.append(torch.cat([tokens[:1], torch.where(chosen, 6 + inner // 3 * 3 % 1980 + label, inner), tokens[-1:]]))
        return Sentences(told, samples.labels, samples.pad)

    return replace(workload, train=telling(workload.train), probes=telling(workload.probes))


@dataclass(frozen=True)
class Sums:
    """What a way to account for a fit says of it, in nats of the mean loss of all probes."""

    by_language: dict[str, float]
    fall: float  # as measured
    seconds: float  # of the fit

    def described(self) -> str:
        """In words."""
        parts = ", ".join(f"{name} {value:.3f}" for name, value in sorted(self.by_language.items()))
        total = sum(self.by_language.values())
        return f"{parts}: {total:.3f} of a measured fall of {self.fall:.3f} ({total / self.fall:.0%})"


def mean_loss(model: nn.Module, workload: Workload) -> Tensor:
    """The mean loss of all probes."""
    batch = next(iter(DataLoader(workload.probes, batch_size=len(workload.probes))))
    loss: Tensor = workload.loss(model, batch) / len(workload.probes)
    return loss


def measured_fall(model: nn.Module, workload: Workload) -> float:
    """By how much the mean loss of all probes fell from the workload's model to another."""
    with torch.no_grad():
        return float(mean_loss(workload.model, workload) - mean_loss(model, workload))
