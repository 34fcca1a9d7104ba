"""Attribution without a Trainer writes what the fit's own would have written, byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute, import_checkpoints
from lightning_tracin.attribution.masks import write_mask
from lightning_tracin.storage.files import write_record
from lightning_tracin.storage.lock import RunLock
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded


def fitted(folder: Path, when: str, module: pl.LightningModule | None = None, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(folder, top_k=5, when=when, **settings)  # type: ignore[arg-type]
    trainer(folder, [callback], max_epochs=2).fit(Classifier() if module is None else module, *loaders())
    return TracInRun.open(folder)


def files(run: TracInRun) -> dict[str, bytes]:
    """Everything that was computed, by its place in the run directory; every run has another identity."""
    identity = run.record.run.encode()
    folders = [run.path / name for name in ("ingredients", "features", "results")]
    paths = [path for folder in folders for path in folder.rglob("*.*")]
    return {str(path.relative_to(run.path)): path.read_bytes().replace(identity, b"identity") for path in paths}


def assert_same_files(ours: TracInRun, theirs: TracInRun, results: bool = True) -> None:
    found, expected = files(ours), files(theirs)
    assert found.keys() == expected.keys()
    assert ("results/report.html" in found) == results
    assert [name for name, content in found.items() if content != expected[name]] == []


def a_mask(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(tensor.shape, generator=generator) < 0.3 for name, tensor in Classifier().named_parameters()}
    write_mask(folder / "mask.safetensors", mask)
    return folder / "mask.safetensors"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.results),
        pytest.param({"language_means": True}, marks=pytest.mark.results),
        {"projection_dim": 200},
        {"projection_dim": 200, "preconditioner": "fisher"},
        {"projection_dim": 200, "preconditioner": "adam-fisher"},
        {"preconditioner": "adam", "dtype": "float64"},
        {"method": "ekfac"},
        {"similarity": "dot", "weighting": "learning_rate", "per_layer": False, "max_probes_per_language": 2},
    ],
    ids=lambda settings: "-".join(settings) or "exact",
)
def test_never_and_later_is_the_same_as_at_the_end_of_the_fit(
    tmp_path: Path, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    at_once = fitted(tmp_path / "at_once", "fit_end", **settings)
    later = fitted(tmp_path / "later", "never", **settings)
    assert files(later) == {}
    torch.manual_seed(99)
    done = attribute(Classifier(), later.path, *loaders(), progress=False)
    assert_same_files(done, at_once, results=request.node.get_closest_marker("results") is not None)


def test_a_mask_is_given_again(tmp_path: Path) -> None:
    mask = a_mask(tmp_path)
    at_once = fitted(tmp_path / "at_once", "fit_end", mask=mask)
    later = fitted(tmp_path / "later", "never", mask=mask)
    with pytest.raises(TracInError, match="has a mask, but a run keeps only its digest; give the file as `mask=`"):
        attribute(Classifier(), later, *loaders())
    other = tmp_path / "other.safetensors"
    write_mask(other, {name: torch.ones(tensor.shape) for name, tensor in Classifier().named_parameters()})
    with pytest.raises(TracInError, match=r"mask .*other\.safetensors is not the one of the run .* its digest is"):
        attribute(Classifier(), later, *loaders(), mask=other)
    assert_same_files(attribute(Classifier(), later, *loaders(), mask=mask, progress=False), at_once, results=False)


@pytest.mark.results
def test_an_interrupted_attribution_goes_on(tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", "fit_end")
    whole = TracInRun.open(shutil.copytree(run.path, tmp_path / "whole"))
    shutil.rmtree(run.path / "results")
    (kept,) = (run.path / "ingredients" / run.snapshots[0].name).iterdir()
    written = kept.stat().st_mtime_ns
    for path in (run.path / "ingredients" / run.snapshots[1].name).iterdir():
        path.unlink()
    done = attribute(Classifier(), run, *loaders(), progress=False)
    assert_same_files(done, whole)
    assert kept.stat().st_mtime_ns == written


def test_the_module_that_was_fitted_may_be_given(tmp_path: Path) -> None:
    at_once = fitted(tmp_path / "at_once", "fit_end", Classifier())
    module = Classifier()
    later = fitted(tmp_path / "later", "never", module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert_same_files(attribute(module, later, *loaders(), progress=False), at_once, results=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_languages_that_were_given_outright_are_asked_for_again(tmp_path: Path) -> None:
    languages = [("fr", "es")[i % 2] for i in range(30)]
    at_once = fitted(tmp_path / "at_once", "fit_end", languages=languages)
    later = fitted(tmp_path / "later", "never", languages=languages)
    with pytest.raises(TracInError, match=r"was given its `languages` as a list; give them again: `languages=\[\.\.\.\]`"):
        attribute(Classifier(), later, *loaders())
    assert_same_files(attribute(Classifier(), later, *loaders(), languages=languages, progress=False), at_once, results=False)


class Other(Classifier):
    """A loss of its own."""

    def per_sample_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


class Wide(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.model.classifier.out_proj = torch.nn.Linear(16, 4)


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    return fitted(tmp_path_factory.mktemp("never") / "run", "never")


def relabelled() -> DataLoader[Any]:
    data = Samples(30, 1)
    data.language[4] = "fr"
    return DataLoader(data, batch_size=7, collate_fn=padded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_loader": loaders(train=29)[0]}, r"is a run on 30 train samples, but there are 29\. Give the data of the fit"),
        ({"probes": loaders(probes=9)[1]}, r"is a run on 12 probes, but there are 9\. Give the data of the fit"),
        ({"train_loader": relabelled()}, r"Train sample 4 has the language 'fr', but 'en' in the run"),
        ({"module": Other()}, r"loss of Other is per_sample_loss, but the run's is training_step \(mean\)"),
        (
            {"module": Wide()},
            r"out_proj\.bias' has shape \[3\], but the model has one of shape \[4\]",
        ),
        ({"top_k": 31}, r"top_k=31 is larger than the train set \(30 samples\)"),
        ({"mask": "mask.safetensors"}, r"has no mask, but mask='mask\.safetensors' was given; leave it out"),
        ({"similarity": "euclid"}, r"similarity should be one of 'cosine', 'dot', 'relatif'"),
    ],
    ids=["train", "probes", "language", "loss", "shape", "top_k", "mask", "similarity"],
)
def test_what_differs_from_the_fit_is_named(never: TracInRun, changes: dict[str, Any], message: str) -> None:
    given = {"module": Classifier(), "train_loader": loaders()[0], "probes": loaders()[1], **changes}
    with pytest.raises(TracInError, match=message):
        attribute(given.pop("module"), never.path, **given)
    assert not (never.path / "results").exists()


def test_other_order_of_the_same_samples_is_another_data_set(never: TracInRun) -> None:
    reversed_order = Subset(Samples(30, 1), list(range(29, -1, -1)))
    with pytest.raises(TracInError, match=r"Train sample 0 has the l\w+"):
        attribute(Classifier(), never, DataLoader(reversed_order, batch_size=7, collate_fn=padded), loaders()[1])


def test_no_run_and_no_snapshots(tmp_path: Path, never: TracInRun) -> None:
    with pytest.raises(TracInError, match=r"run\.json is missing; is .* a run directory"):
        attribute(Classifier(), tmp_path, *loaders())
    empty = shutil.copytree(never.path, tmp_path / "empty")
    shutil.rmtree(empty / "snapshots")
    with pytest.raises(TracInError, match="holds 0 snapshots, but the fit ended with 2"):
        attribute(Classifier(), empty, *loaders())
    write_record(empty / "run.json", never.record.model_copy(update={"snapshots": None}))  # killed before the first
    with pytest.raises(TracInError, match="has no snapshots, so there is nothing to attribute"):
        attribute(Classifier(), empty, *loaders())


def test_one_process_at_a_time(tmp_path: Path, never: TracInRun) -> None:
    run = TracInRun.open(shutil.copytree(never.path, tmp_path / "run"))
    before = files(run)
    with RunLock(run.path):
        with pytest.raises(TracInError, match="is in use: process"):
            attribute(Classifier(), run, *loaders())
        with pytest.raises(TracInError, match="is in use: process"):
            import_checkpoints(run.path, tmp_path, Classifier(), *loaders())
        assert files(run) == before
    with pytest.raises(TracInError, match=r"run\.json is missing"):
        attribute(Classifier(), tmp_path / "nowhere", *loaders())
    assert not (tmp_path / "nowhere").exists()


def test_discarded_weights_are_named(tmp_path: Path, never: TracInRun) -> None:
    run = TracInRun.open(shutil.copytree(never.path, tmp_path / "run"))
    run.snapshots[0].discard_weights()
    with pytest.raises(TracInError, match=r"weights of snapshot 0000-step5 were not kept"):
        attribute(Classifier(), run, *loaders(), progress=False)


class HeadOnly(Classifier):
    """All but the head is frozen, with values that a seed tells apart."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.model.roberta.embeddings.word_embeddings.weight.data += seed
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("classifier" in name)


def test_frozen_parameters_must_be_those_of_the_fit(tmp_path: Path) -> None:
    at_once = fitted(tmp_path / "at_once", "fit_end", HeadOnly())
    later = fitted(tmp_path / "later", "never", HeadOnly())
    with pytest.raises(TracInError, match=r"did not train \(such as 'model\.roberta\.\S+'\) are not those of the fit"):
        attribute(HeadOnly(seed=1), later, *loaders())
    assert_same_files(attribute(HeadOnly(), later, *loaders(), progress=False), at_once, results=False)


_RANKS = """
from pathlib import Path

import lightning_tracin.attribution.batching as engine
from lightning_fabric import Fabric
from lightning_tracin import attribute
from lightning_tracin.storage.ingredients import IngredientStore
from tests.support.fits import Classifier, loaders

engine.SHARD_SAMPLES = 8
fabric = Fabric(accelerator="cpu", devices=2)
fabric.launch()
write = IngredientStore.write


def noted(store, shard, block):
    write(store, shard, block)
    with Path(f"rank{fabric.global_rank}").open("a") as file:
        print(shard, file=file)


IngredientStore.write = noted
run = attribute(Classifier(), "exact", *loaders(), fabric=fabric)
assert (run.path / "results" / "report.html").exists()
attribute(Classifier(), "projected", *loaders(), fabric=fabric)
attribute(Classifier(), "ekfac", *loaders(), fabric=fabric)
"""


@pytest.mark.long
@pytest.mark.results
def test_ranks_of_a_fabric_share_the_work(tmp_path: Path) -> None:
    ways = {"exact": {}, "projected": {"projection_dim": 200}, "ekfac": {"method": "ekfac", "dtype": "float64"}}
    alone = {name: fitted(tmp_path / "alone" / name, "fit_end", **settings, batch_size=4) for name, settings in ways.items()}
    for name, run in alone.items():
        folder = shutil.copytree(run.path, tmp_path / name)
        for computed in ("ingredients", "features", "factors", "results"):
            shutil.rmtree(folder / computed, ignore_errors=True)
    (tmp_path / "script.py").write_text(_RANKS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    shards = [set((tmp_path / f"rank{rank}").read_text().split()) for rank in (0, 1)]  # of two methods that name them alike
    assert [len(mine) for mine in shards] == [2, 2]
    assert not shards[0] & shards[1]
    for name, run in alone.items():
        shared = TracInRun.open(tmp_path / name)
        np.testing.assert_allclose(shared.influence(), run.influence(), rtol=1e-6, atol=1e-6)
        pd.testing.assert_frame_equal(shared.reliance(5), run.reliance(5))
