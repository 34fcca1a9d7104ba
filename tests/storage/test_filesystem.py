"""A run directory may stand on any file system that fsspec reaches; what it says is what it would say here."""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
from fsspec.implementations.memory import MemoryFileSystem
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute, import_checkpoints
from lightning_tracin.cli import commands
from lightning_tracin.storage.files import as_record, write_record
from lightning_tracin.storage.filesystem import place, write_whole
from lightning_tracin.storage.lock import Holder, RunLock
from tests.support.fits import Classifier, loaders, trainer


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server of this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed; it is in the extra `dev`")
    moto = pytest.importorskip("moto.server", reason="moto is not installed; it is in the extra `dev`")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty folder."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        endpoint = request.getfixturevalue("server")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint, "key": "somebody", "secret": "something"})
        fsspec.filesystem("s3").call_s3("create_bucket", Bucket=name)
    yield f"{request.param}://{name}"
    MemoryFileSystem.store.clear()


def fitted(dirpath: str | Path, root: Path, module: pl.LightningModule | None = None, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(dirpath, **{"top_k": 5, **settings})
    trainer(root, [callback], max_epochs=2).fit(Classifier() if module is None else module, *loaders())
    return TracInRun.open(dirpath)


def contents(run: TracInRun) -> set[str]:
    return {str(path).removeprefix(str(run.path)).strip("/") for path in run.path.glob("**/*") if path.is_file()}


def assert_same(ours: TracInRun, theirs: TracInRun) -> None:
    np.testing.assert_array_equal(ours.influence().to_numpy(), theirs.influence().to_numpy())
    assert contents(ours) - {"lock"} == contents(theirs) - {"lock"}
    for name in ("reliance.csv", "top.csv", "report.html"):
        assert (ours.path / "results" / name).read_bytes() == (theirs.path / "results" / name).read_bytes()


@pytest.mark.results
@pytest.mark.parametrize("settings", [{}, {"projection_dim": 64}, {"when": "snapshot", "keep_snapshots": False}])
def test_a_run_elsewhere_is_the_same_as_one_here(folder: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    here, there = fitted(tmp_path / "run", tmp_path, **settings), fitted(f"{folder}/run", tmp_path, **settings)
    assert str(there.path) == f"{folder}/run"
    assert "results/report.html" in contents(there)
    assert not [path for path in tmp_path.rglob("*") if folder.partition("://")[0] in path.name]
    assert_same(there, here)


@pytest.mark.results
def test_attributed_later_and_read_by_commands(folder: str, tmp_path: Path) -> None:
    here = fitted(tmp_path / "run", tmp_path)
    later = fitted(f"{folder}/run", tmp_path, when="never")
    assert "Missing: the influence at snapshot 0, 1" in commands.status(f"{folder}/run")
    assert_same(attribute(Classifier(), f"{folder}/run", *loaders(), progress=False), here)
    assert "Nothing is missing" in commands.status(f"{folder}/run")
    commands.export(f"{folder}/run", f"{folder}/tables")
    with fsspec.open(f"{folder}/tables/reliance.csv") as file:
        assert len(pd.read_csv(file)) == len(pd.read_csv(tmp_path / "run" / "results" / "reliance.csv"))
    assert later.path == place(f"{folder}/run")


@pytest.mark.slow
def test_resumed_fit_cuts_the_ledger_back(folder: str, tmp_path: Path) -> None:
    def fit(epochs: int, resume: Path | None = None) -> None:
        pl.seed_everything(7)
        saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
        callbacks = [TracInCallback(f"{folder}/run", top_k=5), saver]
        fitting = trainer(tmp_path, callbacks, max_epochs=epochs, enable_checkpointing=True)
        fitting.fit(Classifier(), *loaders(), ckpt_path=resume)

    fit(3)
    steps = [snapshot.step for snapshot in TracInRun.open(f"{folder}/run").snapshots]
    with pytest.raises(TracInError, match=f"{folder}/run holds another run"):
        fit(3)
    fit(4, tmp_path / "checkpoints" / "epoch=1.ckpt")
    run = TracInRun.open(f"{folder}/run")
    assert [snapshot.step for snapshot in run.snapshots] == [*steps, steps[-1] + steps[0]]
    assert np.isfinite(run.influence().to_numpy()).all()


def test_checkpoints_are_imported(folder: str, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    pl.seed_everything(7)
    trainer(tmp_path, [saver], max_epochs=2, enable_checkpointing=True).fit(Classifier(), *loaders())
    run = import_checkpoints(f"{folder}/run", tmp_path / "checkpoints", Classifier(), *loaders(), top_k=5)
    assert len(run.snapshots) == 2
    assert not [name for name in contents(run) if name.startswith("snapshots.partial")]
    attributed = attribute(Classifier(), run, *loaders(), progress=False)
    assert np.isfinite(attributed.influence().to_numpy()).all()


def test_one_process_at_a_time(folder: str) -> None:
    path = place(f"{folder}/run")
    with RunLock(path):
        with pytest.raises(TracInError, match=r"run is in use: process \d+ on .*If that process was killed, delete .*lock\.json"):
            RunLock(path).acquire()
        assert (path / "lock.json").exists()
    assert not (path / "lock.json").exists()
    elsewhere = Holder(pid=2**22 + 1, host="another", since="yesterday")
    write_record(path / "lock.json", elsewhere)  # of a machine whose processes are not seen from here
    with pytest.raises(TracInError, match="on another has been working there since yesterday"), RunLock(path):
        pass
    (path / "lock.json").unlink()
    with RunLock(path):
        write_whole(path / "lock.json", as_record(elsewhere))  # deleted by hand, and taken by another
    assert b"yesterday" in (path / "lock.json").read_bytes()
    ended = Holder(pid=2**22 + 1, host=socket.gethostname(), since="yesterday")
    write_whole(path / "lock.json", as_record(ended))
    with RunLock(path):
        assert b"yesterday" not in (path / "lock.json").read_bytes()


def test_damage_is_named(folder: str, tmp_path: Path) -> None:
    run = fitted(f"{folder}/run", tmp_path)
    shard = next(iter(sorted(run.method.store(run.directory, run.snapshots[0]).folder.glob("*.safetensors"))))
    whole = shard.read_bytes()
    write_whole(shard, whole[:-3])
    with pytest.raises(TracInError, match=re.escape(f"{shard} is damaged")):
        TracInRun.open(f"{folder}/run").influence()
    shard.unlink()
    with pytest.raises(TracInError, match=r"holds no ingredients|incomplete"):
        TracInRun.open(f"{folder}/run").influence()
    write_whole(shard, whole)
    TracInRun.open(f"{folder}/run").influence()
    (run.path / "run.json").unlink()
    with pytest.raises(TracInError, match=re.escape(f"{folder}/run/run.json is missing")):
        TracInRun.open(f"{folder}/run")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://a/b", "nowhere://a/b names no file system that can be used here: .*nowhere"),
        ("s3://no-such-bucket-at-all/run", "no-such-bucket-at-all/run cannot be written .*make the folder writable"),
    ],
)
def test_bad_places(url: str, message: str, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"endpoint_url": server, "key": "somebody", "secret": "something"}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    with pytest.raises(TracInError, match=message):
        fitted(url, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if "run" in path.name]


def test_paths_and_file_urls_are_paths(tmp_path: Path) -> None:
    assert place(tmp_path) == place(str(tmp_path)) == place(f"file://{tmp_path}") == tmp_path
    assert str(place("memory://a/b") / "c") == "memory://a/b/c"
