"""Whatever happens to a file of a run directory, it is named, or makes no difference; nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.storage.files import read_tensors, write_tensors
from tests.support.fits import Classifier, loaders, trainer

pytestmark = pytest.mark.results

#: What goes wrong with a file: its content, and the content of the file of that name in another run of the same settings.
DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "deleted": lambda content, other: None,
    "emptied": lambda content, other: b"",
    "truncated": lambda content, other: content[: len(content) // 2],
    "cut by a byte": lambda content, other: content[:-1],
    "longer": lambda content, other: content + b"\0",
    "of another run": lambda content, other: other,
}

#: Flipped bits of each file.
FLIPS = 12


class Unfreeze(pl.Callback):
    """Trains the embeddings from the second epoch on."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.model.roberta.embeddings.requires_grad_(trainer.current_epoch > 0)


def fit(folder: Path, seed: int = 5, checkpoint: Path | None = None, epochs: int = 2, **options: Any) -> TracInRun:
    pl.seed_everything(seed)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    watcher = TracInCallback(folder / "run", **{"top_k": 5, "max_probes_per_language": 1, "per_layer": False, **options})
    module = Classifier(rates=(1e-2 / seed, 1e-2))
    module.model.roberta.embeddings.requires_grad_(False)
    fitting = trainer(folder, [Unfreeze(), watcher, saver], enable_checkpointing=True, max_epochs=epochs)
    fitting.fit(module, *loaders(train=12), ckpt_path=checkpoint)
    return TracInRun.open(folder / "run")


def values(path: Path) -> dict[str, Any]:
    """Everything that a run says."""
    run = TracInRun.open(path)
    settings = run.record.options
    said: dict[str, Any] = {
        "record": run.record,
        "snapshots": [snapshot.record for snapshot in run.snapshots],
        "tables": (run.train, run.probes),
        "influence": run.influence("dot", "learning_rate").to_numpy().tobytes(),
        "representations": [one.tobytes() for one in run.representations()],
    }
    if run.method.whitens:
        said["labels"] = [run.directory.features(snapshot).label_losses() for snapshot in run.snapshots]
        said["labels"] = [None if one is None else one.tolist() for one in said["labels"]]
    for snapshot in run.snapshots:
        tensors = {**snapshot.state_dict(), **({"scales": snapshot.scales()} if settings.preconditioner == "adam" else {})}
        said[snapshot.name] = {name: np.asarray(tensor).tobytes() for name, tensor in tensors.items() if name != "scales"}
    return said


KINDS = {"exact": {"preconditioner": "adam"}, "projected": {"projection_dim": 100}}


@pytest.fixture(scope="module", params=KINDS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the same settings and data, from different first weights and rates."""
    folder = tmp_path_factory.mktemp(request.param)
    fit(folder / "one", 5, **KINDS[request.param])
    fit(folder / "other", 6, **KINDS[request.param])
    return folder / "one", folder / "other"


def stored(path: Path) -> list[Path]:
    """The files that a run is read from: tables, figures and the page in `results` are only written."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith("lock")]
    return [file for file in files if "results" not in file.parts or file.suffix == ".safetensors"]


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def flipped(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << generator.randrange(8))]) + content[at + 1 :]


def test_every_damage_is_named_or_makes_no_difference(runs: tuple[Path, Path]) -> None:
    path, other = (folder / "run" for folder in runs)
    whole, generator, silent = values(path), random.Random(0), []
    before = contents(path)
    assert len(stored(path)) >= 8
    for file in stored(path):
        content = file.read_bytes()
        foreign = (other / file.relative_to(path)).read_bytes()
        for name, damage in {
            **DAMAGES,
            **{f"flip {number}": lambda content, _: flipped(content, generator) for number in range(FLIPS)},
        }.items():
            damaged = damage(content, foreign)
            if damaged == content:  # the tables of samples are those of the other run
                continue
            file.unlink() if damaged is None else file.write_bytes(damaged)
            here, refusal = contents(path), ""
            try:
                assert values(path) == whole, (file, name)
                silent.append((file.name, name))
            except TracInError as error:
                refusal = str(error)
            unchanged = contents(path) == here
            file.write_bytes(content)
            assert unchanged, (file, name)
            if refusal:
                assert str(file) in refusal or (name == "deleted" and str(file.parent) in refusal), (file, name, refusal)
                assert any(word in refusal for word in ("restore", "Restore", "delete", "again")), (name, refusal)
    assert contents(path) == before
    unseen = [(file, name) for file, name in silent if not name.startswith("flip")]
    assert set(unseen) <= {("train.jsonl", "cut by a byte"), ("probes.jsonl", "cut by a byte")}  # the last end of line
    assert values(path) == whole


def test_what_is_intact_stays_usable(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0] / "run", tmp_path / "run")
    run = TracInRun.open(runs[0] / "run")
    last = run.snapshots[1].name
    for file in stored(tmp_path / "run"):
        if last in file.parts and file.suffix == ".safetensors":
            file.write_bytes(b"")
    damaged = TracInRun.open(tmp_path / "run")
    np.testing.assert_array_equal(damaged.scores(0), run.scores(0))
    assert damaged.snapshots[0].state_dict().keys() == run.snapshots[0].state_dict().keys()
    assert damaged.train == run.train


def test_shard_of_another_snapshot_is_noticed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0] / "run", tmp_path / "run")
    run = TracInRun.open(tmp_path / "run")
    kind = "features" if run.record.options.method_name == "projected" else "ingredients"
    first, second = (tmp_path / "run" / kind / snapshot.name for snapshot in run.snapshots)
    shard = next(file.name for file in sorted(second.iterdir()) if file.name != "sketch.safetensors")
    shutil.copy(second / shard, first / shard)
    with pytest.raises(
        TracInError, match=rf"{re.escape(shard)} belongs to another run or snapshot .*delete it to have it computed again"
    ):
        run.scores(0)


def resumed(folder: Path, options: dict[str, Any]) -> None:
    fit(folder, 5, folder / "checkpoints" / "epoch=1.ckpt", epochs=3, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run.json", r"run\.json is missing, but .*snapshots is there, .*Restore the file, delete the folder, or choose another"),
        ("snapshots/*1-*/snapshot.json", r"snapshots holds 1 snapshots, but the fit ended with 2.*Restore it from a copy"),
        (
            "snapshots/*0-*/snapshot.json",
            r"position 0 of the ledger but its record says index 1, .*0000-step2/snapshot\.json is missing",
        ),
        ("snapshots/*0-*/weights.safetensors", r"weights of snapshot 0000-step2 were not kept: .*weights\.safetensors is not"),
        ("snapshots/unfrozen-step2.safetensors", r"unfrozen-step2\.safetensors is missing; restore it from a copy"),
    ],
)
def test_resuming_over_a_deleted_file_is_refused_and_overwrites_nothing(
    runs: tuple[Path, Path], tmp_path: Path, name: str, message: str
) -> None:
    options = KINDS[runs[0].parent.name.rstrip("0123456789")]
    shutil.copytree(runs[0], tmp_path / "one")
    (file,) = (tmp_path / "one" / "run").glob(name)
    file.unlink()
    before = contents(tmp_path / "one" / "run")
    with pytest.raises(TracInError, match=message):
        resumed(tmp_path / "one", options)
    after = contents(tmp_path / "one" / "run")
    kept = [file for file in before if not file.name.startswith("lock") and file.name != "run.json"]
    assert {file: after.get(file) for file in kept} == {file: before[file] for file in kept}


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones((), dtype=torch.bfloat16), "c": torch.zeros(0)}
    (tmp_path / "old.safetensors").write_bytes(safetensors.torch.save(tensors))
    write_tensors(tmp_path / "new.safetensors", tensors, "run/snapshots")
    for read in (
        read_tensors(tmp_path / "old.safetensors", owner="run/snapshots"),
        read_tensors(tmp_path / "new.safetensors", owner="run/snapshots"),
        safetensors.torch.load_file(tmp_path / "new.safetensors"),
    ):
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_files_with_checksums_of_older_versions_are_read_and_compared(tmp_path: Path) -> None:
    tensor, path = torch.arange(6.0).reshape(2, 3), tmp_path / "old.safetensors"
    hashed = hashlib.sha256(b"a\0torch.float32\0[2, 3]\0" + tensor.numpy().tobytes()).hexdigest()

    def write(about: dict[str, str]) -> None:
        path.write_bytes(safetensors.torch.save({"a": tensor}, {"lightning_tracin": json.dumps(about)}))

    write({"sha256": hashed, "belongs_to": "run/old.safetensors"})
    assert torch.equal(read_tensors(path, owner="run")["a"], tensor)
    with pytest.raises(
        TracInError, match=r"old\.safetensors belongs to another run or snapshot \(run/old\.safetensors, not other"
    ):
        read_tensors(path, owner="other")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(TracInError, match=r"old\.safetensors is damaged \(its checksum does not fit\)"):
        read_tensors(path, owner="run")
    write({"crc": hashed, "belongs_to": "run/old.safetensors"})
    with pytest.raises(TracInError, match=r"old\.safetensors is damaged \(its checksum is none of xxh3_128, sha256\)"):
        read_tensors(path, owner="run")


@contextmanager
def size_limit(limit: int) -> Iterator[None]:
    """No file may grow beyond this: as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_that_takes_no_more_is_named_and_damages_nothing(tmp_path: Path) -> None:
    whole = values(fit(tmp_path / "whole", epochs=3).path)
    fit(tmp_path / "cut")
    before = contents(tmp_path / "cut" / "run")
    with (
        pytest.raises(
            TracInError, match=r"0002-step6/weights\.safetensors cannot be written \(File too large\); raise the limit"
        ),
        size_limit(30_000),
    ):
        resumed(tmp_path / "cut", {})
    after = contents(tmp_path / "cut" / "run")
    same = [file for file in before if file.name not in ("run.json", "lock")]
    assert {file: after[file] for file in same} == {file: before[file] for file in same}
    assert not list((tmp_path / "cut").rglob("*.partial"))
    assert len(TracInRun.open(tmp_path / "cut" / "run").snapshots) == 2
    resumed(tmp_path / "cut", {})
    assert values(tmp_path / "cut" / "run").keys() == whole.keys()


@pytest.fixture
def powerless() -> Iterator[Path]:
    """A folder that this process may read but not write, also where the tests are run by root."""
    folder = Path(tempfile.mkdtemp(prefix="tracin-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below this folder can be written."""
    root = os.geteuid() == 0
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_read_only_directory_is_named_and_can_be_read(powerless: Path) -> None:
    run = fit(powerless)
    influence, before = run.influence().to_numpy(), contents(powerless / "run")
    with read_only(powerless / "run"):
        np.testing.assert_array_equal(TracInRun.open(powerless / "run").influence(), influence)
        message = r"run cannot be written \(Permission denied\); make the folder writable, or choose another `dirpath`"
        with pytest.raises(TracInError, match=message):
            resumed(powerless, {})
    assert contents(powerless / "run") == before
    with read_only(powerless), pytest.raises(TracInError, match=r"new cannot be written \(Permission denied\)"):
        trainer(powerless, [TracInCallback(powerless / "new", top_k=5)]).fit(Classifier(), *loaders())


def test_file_that_may_not_be_read_is_named(powerless: Path) -> None:
    run = fit(powerless)
    file = run.snapshots[0].path / "weights.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(
        TracInError, match=r"weights\.safetensors cannot be read \(.*\); check that it is a file and that you may read it"
    ):
        run.snapshots[0].state_dict()
