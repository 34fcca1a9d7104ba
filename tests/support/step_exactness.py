"""The path that a user's module takes, from its `training_step` to scores, against the loop of `autograd.grad`.

A case of the zoo is an ordinary module and ragged samples. Its loss is found and verified, its gradients are planned, checked
and captured batch by batch, as in a fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lightning_tracin.attribution.batching import Job, batches_of, run_batch
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.prepare import verify
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.gradients import Capture, Coverage, HeldBlock, ProbeBank
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.oracles import gradient_loop, ingredients_loop

Collate = Callable[[list[Any]], Any]


def of_transformers(name: str) -> Any:
    """A class of transformers; the test is skipped where the installed version is older than the model."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


class Step(nn.Module):
    """What most people write as a LightningModule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss


@dataclass(frozen=True)
class Case:
    """A module with a `training_step`, its samples, and what is known of how it is computed.

    Attributes:
        module: in evaluation mode.
        samples: of both train samples and probes.
        collate: makes a batch of them.
        most_alone: the largest share of elements whose gradients may come from single samples.
        again: endings of the names of modules that may be run again.
    """

    module: nn.Module
    samples: Sequence[Any]
    collate: Collate
    most_alone: float = 0.0
    again: tuple[str, ...] = ()
    batch_size: int = 4
    probes: int = 4
    trainable: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(name for name, parameter in self.module.named_parameters() if parameter.requires_grad)
        object.__setattr__(self, "trainable", names)

    def sets(self) -> tuple[SampleSet, SampleSet]:
        """Train samples and probes."""
        return sample_set(self.samples[: -self.probes], self.collate), sample_set(self.samples[-self.probes :], self.collate)


def sample_set(samples: Sequence[Any], collate: Collate) -> SampleSet:
    """Samples as a pass sees them."""
    count = len(samples)
    table = SampleTable(("xx",) * count, (None,) * count, ("",) * count, (None,) * count)
    return SampleSet(table, (list(samples),), (collate,), tuple((0, index) for index in range(count)))


def assert_step_exact(case: Case) -> Coverage:
    """Dots and norms are those of the loop: within 1e-5 of the norms' product."""
    train, probes = case.sets()
    got, coverage = step_ingredients(case, train, probes)
    loops = [
        gradient_loop(case.module, partial(loss_of_one, case), samples, case.trainable)
        for samples in (train.datasets[0], probes.datasets[0])
    ]
    want = ingredients_loop(*loops, dict.fromkeys(case.trainable, 0), 1)
    scale = want[1][:, :, None] * want[2][:, None, :]
    off = float(((got[0].double() - want[0]).abs() / scale).max())
    assert off <= 1e-5, f"off by {off:.2g} of the norms' product"
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-5, atol=1e-7)
    assert sum(counted.elements for counted in coverage.by_rule.values()) == coverage.total
    assert share_alone(coverage) <= case.most_alone, coverage.by_rule
    assert all(target.endswith(case.again) for target in coverage.decisions.replayed.values()), coverage.decisions.replayed
    return coverage


def loss_of_one(case: Case, sample: Any) -> Tensor:
    """The step's loss for a batch of one sample."""
    result = case.module.training_step(case.collate([sample]), 0)
    return result["loss"] if isinstance(result, dict) else result


def step_ingredients(case: Case, train: SampleSet, probes: SampleSet) -> tuple[tuple[Tensor, Tensor, Tensor], Coverage]:
    """What a pass computes: dot, train norms, probe norms."""
    loss = checked_loss(case.module, train, probes, lambda batch: batch)
    verified = verify(case.module, frozenset(case.trainable), loss, train, probes, lambda batch: batch, "before the fit")
    coverage = verified.coverage
    job = Job(train, probes, loss, lambda batch: batch, case.batch_size, memory_budget=10**6)
    dtype = next(case.module.parameters()).dtype
    bank = ProbeBank(len(probes), dict.fromkeys(case.trainable, 0), 1)
    dot = torch.zeros(1, len(train), len(probes), dtype=dtype)
    squared = torch.zeros(1, len(train), dtype=dtype)
    place = {}
    with Capture(case.module, coverage) as capture:
        start = 0
        for batch in batches_of(probes, case.batch_size):
            place.update({index: start + row for row, index in enumerate(batch)})
            run_batch(capture, job, probes, batch, lambda name, forms, at=start: bank.collect(name, forms, at), "probe", "s")
            start += len(batch)
        bank.seal()
        columns = [place[index] for index in range(len(probes))]
        for batch in batches_of(train, case.batch_size):
            held = HeldBlock(10**6)
            run_batch(capture, job, train, batch, held.add, "train sample", "s")
            held.end_batch(len(batch))
            some_dot, some_squared = torch.zeros(1, len(batch), len(probes), dtype=dtype), torch.zeros(1, len(batch), dtype=dtype)
            held.contract(bank, some_dot, some_squared)
            dot[:, batch], squared[:, batch] = some_dot[:, :, columns], some_squared
    return (dot, squared.sqrt(), bank.squared_norms.sqrt()[:, columns]), coverage


def share_alone(coverage: Coverage) -> float:
    """The share of elements whose gradients come from single samples, one after another."""
    names = coverage.decisions.one_by_one
    return sum(count for name, count in coverage.elements.items() if name in names) / coverage.total
