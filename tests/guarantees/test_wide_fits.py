"""Real fits of wide layers: every way of computing equals the loop, with one process and with two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.attribution.masks import write_mask
from lightning_tracin.config import SCALED
from lightning_tracin.storage.snapshots import load_weights
from tests.gradients.test_wide_layers import Encoder, loss_of, samples_of
from tests.support.fits import trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop

LENGTHS = [1, 2, 3, 5, 9, 14, 21, 22, 23, 40, 100, 190]


class Sentences(Dataset[dict[str, Any]]):
    """Samples of every length in two languages."""

    def __init__(self, seed: int) -> None:
        self.samples = samples_of(LENGTHS, seed)
        self.language = ["en", "sw"] * (len(LENGTHS) // 2)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


class Wide(pl.LightningModule):
    """The encoder as a module of Lightning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = Encoder(width)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return loss_of(self.model)(batch) / len(batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loader(seed: int) -> DataLoader[Any]:
    return DataLoader(Sentences(seed), batch_size=4, collate_fn=padded)


def fit(folder: Path, width: int, ranks: int = 1, **settings: Any) -> None:
    pl.seed_everything(7)
    callback = TracInCallback(folder / "run", **{"top_k": 5, "batch_size": 4, "preconditioner": None, **settings})
    several = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    trainer(folder, [callback], max_epochs=1, **several).fit(Wide(width), loader(1), loader(2))


def half_of(width: int, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(one.shape, generator=generator) < 0.5 for name, one in Wide(width).named_parameters()}
    write_mask(folder / "mask.safetensors", mask)
    return folder / "mask.safetensors"


def loop(run: TracInRun, width: int, mask: Path | None = None) -> tuple[Tensor, Tensor]:
    """Whole gradients of train samples and probes at the snapshot, with the scale that the run was made with."""
    module = Wide(width).eval()
    snapshot = run.snapshots[0]
    load_weights(module, snapshot.state_dict())
    names = list(dict(module.named_parameters()))
    scales: dict[str, Tensor] = {}
    if run.record.options.preconditioner in SCALED:
        scales = snapshot.scales()
    if mask is not None:
        from safetensors.torch import load_file

        scales = load_file(mask)
    loss = loss_of(module.model)
    sides = [gradient_loop(module, lambda one: loss(padded([one])), Sentences(seed).samples, names) for seed in (1, 2)]
    z, q = (torch.cat([side[name] * (scales[name].double().flatten() if scales else 1) for name in names], 1) for side in sides)
    return z, q


WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "adam": {"preconditioner": "adam"},
    "mask": {},
    "means": {"language_means": True},
    "projected": {"projection_dim": 4096},
}


def assert_equals_the_loop(run: TracInRun, z: Tensor, q: Tensor) -> None:
    norms = (z.norm(dim=1)[:, None] * q.norm(dim=1)).numpy()
    products, cosine = (z @ q.T).numpy(), (z @ q.T).numpy() / norms
    if run.record.options.method_name == "means":
        for similarity, whole, size in (("dot", products, norms), ("cosine", cosine, np.ones_like(norms))):
            got = run.influence(similarity).to_numpy()
            want, scale = (np.stack([one[:, i::2].mean(1) for i in range(2)], 1) for one in (whole, size))
            assert (np.abs(got - want) / scale).max() <= 1e-5
    elif run.record.options.method_name == "projected":
        assert np.abs(run.influence("cosine").to_numpy() - cosine).max() <= 0.1
    else:
        assert (np.abs(run.influence("dot").to_numpy() - products) / norms).max() <= 1e-5
        assert np.abs(run.influence("cosine").to_numpy() - cosine).max() <= 2e-5


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("width", [16, 128, 256, 768, 1024])
def test_every_way(tmp_path: Path, width: int, way: str) -> None:
    mask = half_of(width, tmp_path) if way == "mask" else None
    fit(tmp_path, width, **WAYS[way], **({} if mask is None else {"mask": mask}))
    run = TracInRun.open(tmp_path / "run")
    assert_equals_the_loop(run, *loop(run, width, mask))


@pytest.mark.parametrize("budget", [1, 3_000_000])
def test_probes_in_chunks_of_other_lengths(tmp_path: Path, budget: int) -> None:
    """Each chunk has a bank of its own, whose parameters may be held in another way than the last one's."""
    fit(tmp_path, 256, memory_budget=budget)
    run = TracInRun.open(tmp_path / "run")
    chunks = len(list((run.path / "ingredients" / run.snapshots[0].name).iterdir()))
    assert chunks == len(LENGTHS) if budget == 1 else 1 < chunks < len(LENGTHS)
    assert_equals_the_loop(run, *loop(run, 256))


@pytest.mark.long
def test_every_way_with_two_processes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.guarantees.test_wide_fits", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for way in WAYS:
        run = TracInRun.open(tmp_path / way / "run")
        assert_equals_the_loop(run, *loop(run, 768, tmp_path / "mask.safetensors" if way == "mask" else None))


if __name__ == "__main__":
    root = Path(sys.argv[1])
    mask = half_of(768, root)
    for way in WAYS:
        fit(root / way, 768, ranks=2, **({"mask": mask} if way == "mask" else WAYS[way]))
