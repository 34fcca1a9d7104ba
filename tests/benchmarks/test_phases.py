"""Seconds by phase of a plain and an exact pass of a tiny model."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import ours
from benchmarks.measure_limits import linear_multiplications
from benchmarks.phases import seconds_by_phase
from benchmarks.plain import plain_pass
from benchmarks.products_alone import products_alone
from benchmarks.workloads import Workload, xlm_r


@pytest.fixture
def tiny() -> Workload:
    return xlm_r("tiny", 6, 3, layers=1, width=16, heads=2, inner=32, vocabulary=50)


def test_phases_add_up_to_the_whole(tiny: Workload) -> None:
    start = time.perf_counter()
    phases = seconds_by_phase(lambda: ours.exact(tiny))
    whole = time.perf_counter() - start
    assert all(phases[name] > 0 for name in ("forward", "backward", "rules", "products", "norms of probes"))
    assert sum(phases.values()) <= whole


def test_a_plain_pass_has_a_backward_and_no_products(tiny: Workload) -> None:
    job = ours.job_of(tiny)
    with torch.enable_grad():
        phases = seconds_by_phase(lambda: plain_pass(tiny.model, job))
    assert phases["backward"] > 0
    assert phases["rules"] == phases["products"] == phases["forward"] == 0


def test_the_formula_leaves_only_attention_to_the_counter(tiny: Workload) -> None:
    job = ours.job_of(tiny)
    formula = linear_multiplications(tiny, job)
    with torch.enable_grad():
        counted = products_alone(lambda: plain_pass(tiny.model, job)).multiplications
    longest = max(job.train.sizes)
    attention = 7 * len(job.train) * longest**2 * 16  # two products forward, five backward
    assert formula <= counted <= formula + attention
