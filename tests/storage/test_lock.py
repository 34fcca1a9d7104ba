"""Two processes do not work in one run directory, and nothing is left of one that was killed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import pytorch_lightning as pl

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.storage.lock import RunLock
from tests.support.fits import Classifier, loaders, trainer
from tests.support.processes import fit, started, wait_for


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    with started(tmp_path, "1") as first:  # its data loader has a worker, which lives a little longer
        wait_for(tmp_path / "waiting", first)
        before = files(tmp_path / "run")
        message = (
            rf"run is in use: process {first.pid} on {socket.gethostname()} has been working there since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00\. Wait until it has ended, or choose another `dirpath`"
        )
        with pytest.raises(TracInError, match=message):
            fit(tmp_path)
        with pytest.raises(TracInError, match="is in use"), RunLock(tmp_path / "run"):
            pass
        assert files(tmp_path / "run") == before
        assert len(TracInRun.open(tmp_path / "run").snapshots) == 1  # readers are not kept out
        (tmp_path / "wait").unlink()
        first.kill()
        first.wait()
        fit(tmp_path)
    assert len(TracInRun.open(tmp_path / "run").snapshots) == 4


def test_lock_names_its_holder_and_is_given_back(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        (tmp_path / "run" / "run.json").touch()
        with pytest.raises(TracInError, match=rf"process {os.getpid()} on "), RunLock(tmp_path / "run"):
            pass
        (tmp_path / "run" / "lock.json").write_text("{")
        with pytest.raises(TracInError, match=r"another process has been working there\. Wait"), RunLock(tmp_path / "run"):
            pass
    with RunLock(tmp_path / "run"):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock", "run.json"]


def test_lock_on_a_directory_that_was_never_written_to_leaves_none(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


class Broken(Classifier):
    def on_train_epoch_end(self) -> None:
        raise ZeroDivisionError


class Interrupted(Classifier):
    def on_train_epoch_end(self) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("module", "error"), [(Broken, ZeroDivisionError), (Interrupted, SystemExit), (Classifier, None)])
def test_fit_gives_the_lock_back_however_it_ends(
    tmp_path: Path, module: type[pl.LightningModule], error: type[BaseException] | None
) -> None:
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", when="never")], max_epochs=1)
    if error is None:
        fitting.fit(module(), *loaders())
    else:
        with pytest.raises(error):
            fitting.fit(module(), *loaders())
    with RunLock(tmp_path / "run"):
        pass


def test_dry_run_takes_no_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        callback = TracInCallback(tmp_path / "run", top_k=5, dry_run=True)
        fitting = trainer(tmp_path, [callback], max_epochs=1)
        fitting.fit(Classifier(), *loaders())
        assert fitting.global_step == 5
        assert sorted(files(tmp_path / "run")) == ["lock", "lock.json"]


def test_lock_that_cannot_name_its_holder_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise TracInError("the disk is full")

    lock = RunLock(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("lightning_tracin.storage.lock.write_record", full)
        with pytest.raises(TracInError, match="the disk is full"):
            lock.acquire()
    with RunLock(tmp_path / "run"):
        assert (tmp_path / "run" / "lock.json").exists()
