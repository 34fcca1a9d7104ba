"""Settings for all tests: tiny models are fastest on one thread, and W&B stays on this machine."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _wandb_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
