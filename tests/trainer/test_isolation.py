"""A copy of a module leaves the module alone, whatever they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.trainer.isolation import discard, isolated_copy
from tests.support import fits


class Shared(torch.nn.Linear):
    """A frozen part that all copies share."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


class WithTeacher(fits.Classifier):
    """Has such a part, and a buffer that shares its memory with a trained weight."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = Shared(2, 2).requires_grad_(False)
        self.register_buffer("start", next(self.parameters()).detach())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0 * self.teacher(torch.ones(1, 2)).sum()


def test_what_a_copy_shares_with_the_module_is_kept(tmp_path: Path) -> None:
    module = WithTeacher()
    before = module.teacher.weight.clone()
    copy = isolated_copy(module, torch.float32)
    discard(copy, module)
    assert torch.equal(module.teacher.weight, before)
    assert next(copy.parameters()).numel() == 0


def test_a_fit_with_shared_parts_and_memory(tmp_path: Path) -> None:
    module = WithTeacher()
    fits.trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=2).fit(module, *fits.loaders())
    run = TracInRun.open(tmp_path / "run")
    assert run.influence().shape == (30, 12)
    stored = run.snapshots[-1].state_dict()
    torch.testing.assert_close(stored["start"], module.start)


def test_a_buffer_with_a_graph_is_not_shared() -> None:
    module = fits.Classifier()
    module.register_buffer("doubled", next(module.parameters()) * 2)
    before = module.doubled.detach().clone()
    load_weights(isolated_copy(module, torch.float32), {"doubled": torch.full_like(before, 7.0)})
    assert torch.equal(module.doubled.detach(), before)
