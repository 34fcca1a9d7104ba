"""How often the exact pass runs the model, and that its products are those of single samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import ours
from benchmarks.workloads import Sentences, Workload, xlm_r
from tests.support.oracles import gradient_loop


@pytest.fixture(scope="module")
def tiny() -> Workload:
    return xlm_r("tiny", 8, 6, layers=1, width=16, heads=2, inner=32, vocabulary=50)


def in_a_loop(workload: Workload) -> Tensor:
    names = sorted(name for name, _ in workload.model.named_parameters())

    def gradients(samples: Sentences) -> Tensor:
        alone = [next(iter(DataLoader(samples, sampler=[i]))) for i in range(len(samples))]
        found = gradient_loop(workload.model, lambda one: workload.loss(workload.model, one), alone, names)
        return torch.cat([found[name] for name in names], 1)

    return gradients(workload.train) @ gradients(workload.probes).T


# The check of two samples; two batches of train samples for each chunk; two batches of probes, of which the longest is run first
# to measure memory. With a budget for one probe at a time that batch is split, so it is run again in pieces.
@pytest.mark.parametrize(("budget", "calls"), [(1 << 30, 1 + 2 + 2), (1, 1 + 1 + 6 * 2 + 6)])
def test_no_batch_of_probes_is_run_twice_if_it_fits(tiny: Workload, budget: int, calls: int) -> None:
    seen: list[int] = []
    hook = tiny.model.register_forward_hook(lambda _module, _args, output: seen.append(len(output.logits)))
    try:
        dot = ours.exact(tiny, batch_size=4, memory_budget=budget)
    finally:
        hook.remove()
    assert len(seen) == calls
    torch.testing.assert_close(dot.double(), in_a_loop(tiny), rtol=1e-5, atol=1e-6)
