"""Everything that computes does so on another device as on the CPU: no tensor is made or left on the wrong one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback, TracInCallback, TracInRun, attribute
from lightning_tracin.attribution.losses import Probed, find_loss
from lightning_tracin.attribution.masks import write_mask
from tests.guarantees.test_joined_rows import Rows, probed
from tests.support.accelerators import ACCELERATOR, Accelerated
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded
from tests.support.token_fits import Module, tagger
from tests.support.token_fits import fitted as tagged
from tests.support.token_fits import loaders as tagged_loaders


class StandIn(Accelerator):
    """The stand-in device, as a Trainer's accelerator."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""

    def teardown(self) -> None:
        """Nothing to take down."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [ACCELERATOR]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "stand-in"


def elsewhere() -> dict[str, Any]:
    """Settings of a Trainer whose fit is on the stand-in device."""
    return {"accelerator": "auto", "strategy": SingleDeviceStrategy(device=ACCELERATOR, accelerator=StandIn())}


def small() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return loaders(train=14, probes=6)


def fitted(folder: Path, callback: Any, **settings: Any) -> pl.LightningModule:
    pl.seed_everything(7)
    module = Classifier()
    trainer(folder, [callback], max_epochs=2, **settings).fit(module, *small())
    return module


def require_close(found: Any, wanted: Any, most: float = 1e-5) -> None:
    """Numbers differ by at most this share of the largest."""
    wanted = np.asarray(wanted, dtype=np.float64)
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), wanted, rtol=0, atol=most * np.abs(wanted).max())


WAYS: dict[str, dict[str, Any]] = {
    "exact": {"preconditioner": None},
    "means": {"language_means": True},
    "projected": {"projection_dim": 1500, "preconditioner": None},
    "fisher": {"projection_dim": 300, "preconditioner": "fisher"},
    "adam": {"preconditioner": "adam"},
    "factored Adam": {"preconditioner": "adam-factored"},
    "projected Adam": {"preconditioner": "adam", "projection_dim": 1500},
    "Adam and Fisher": {"preconditioner": "adam-fisher", "projection_dim": 300},
    "EK-FAC": {"method": "ekfac"},
}


#: The others share most of their code with these.
QUICK = {"exact", "means", "Adam and Fisher"}


@pytest.mark.parametrize("way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.long) for way in WAYS])
def test_every_method_computes_elsewhere_what_it_does_on_the_cpu(way: str, tmp_path: Path) -> None:
    """The samples' checks, the pass, its spot checks, and the results; in float64, so that no near tie is decided by rounding."""
    module = fitted(tmp_path, TracInCallback(tmp_path / "here", top_k=5, when="never", dtype="float64", **WAYS[way]))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here = attribute(module, tmp_path / "here", *small(), progress=False)
    with Accelerated() as noted:
        there = attribute(module.to(ACCELERATOR), tmp_path / "there", *small(), progress=False)
    assert noted.uploads  # it was there
    similarity: Any = "dot" if "EK" not in way else "cosine"
    require_close(there.influence(similarity).values, here.influence(similarity).values)


def masked(folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(one.shape, generator=generator) < 0.3 for name, one in Classifier().named_parameters()}
    write_mask(folder / "mask.safetensors", drawn)
    return {"mask": folder / "mask.safetensors"}


def test_a_fit_elsewhere_has_the_influence_of_one_on_the_cpu(tmp_path: Path) -> None:
    """Live, with a mask, and with sentence representations for the baselines."""
    runs = []
    for name in ("here", "there"):
        callback = TracInCallback(tmp_path / name, top_k=5, when="snapshot", **masked(tmp_path))
        with Accelerated() as noted:
            fitted(tmp_path, callback, **elsewhere() if name == "there" else {})
        assert bool(noted.uploads) == (name == "there")
        runs.append(TracInRun.open(tmp_path / name))
    require_close(runs[1].influence("dot").values, runs[0].influence("dot").values)


def test_a_fit_elsewhere_has_the_contributions_of_one_on_the_cpu(tmp_path: Path) -> None:
    tables = []
    for name in ("here", "there"):
        callback = ContributionCallback(tmp_path / name)
        with Accelerated():
            fitted(tmp_path, callback, **elsewhere() if name == "there" else {})
        tables.append(TracInRun.open(tmp_path / name).contributions())
    require_close(tables[1]["nats"], tables[0]["nats"])


def scored(run: TracInRun, module: pl.LightningModule) -> Any:
    dataset = Samples(5, 3)
    return run.score(module, DataLoader(dataset, batch_size=3, collate_fn=padded), small()[1], progress=False).values


def test_candidates_are_scored_elsewhere_as_on_the_cpu(tmp_path: Path) -> None:
    module = fitted(tmp_path, TracInCallback(tmp_path / "run", top_k=5, dtype="float64"))
    run = TracInRun.open(tmp_path / "run")
    here = scored(run, module)
    with Accelerated() as noted:
        there = scored(run, module.to(ACCELERATOR))
    assert noted.uploads
    require_close(there, here)


def test_tokens_are_scored_elsewhere_as_on_the_cpu(tmp_path: Path) -> None:
    module = Module(tagger())
    run = tagged(module, 3, tmp_path, dtype="float64")
    asked: dict[str, Any] = {"probes": [3, 0], "similarity": "dot", "progress": False}
    here = run.per_token(module, *tagged_loaders(3), **asked).values
    with Accelerated() as noted:
        there = run.per_token(module.to(ACCELERATOR), *tagged_loaders(3), **asked).values
    assert noted.uploads
    require_close(there, here)


def there(batches: Sequence[Probed]) -> list[Probed]:
    moved = []
    for one in batches:
        moved.append(replace(one, batch=one.batch.to(ACCELERATOR), alone=[row.to(ACCELERATOR) for row in one.alone]))
    return moved


def test_samples_packed_in_one_row_are_seen_elsewhere_as_on_the_cpu() -> None:
    batches = [probed(3, 7, 4), probed(3, 7, 4, ignored=1)]
    here = find_loss(Rows().eval(), lambda: batches)
    with Accelerated() as noted:
        found = find_loss(Rows().eval().to(ACCELERATOR), lambda: there(batches))
    assert noted.uploads
    assert here.is_of_one
    assert (found.name, found.is_of_one) == (here.name, here.is_of_one)
