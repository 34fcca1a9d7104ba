"""An account goes on from a checkpoint, in the middle of a window, as if the fit had never stopped; or says why it cannot."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from lightning_tracin import ContributionCallback, TracInError
from lightning_tracin.storage.account import AccountStore
from tests.support.accounted_fits import Module, Resumable, Tokens, fit, numbers, probes
from tests.support.fits import trainer

#: Steps of an epoch, and of the whole fit.
EPOCH, WHOLE = 7, 14


def saver(folder: Path, every: int = 3) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=every, save_top_k=-1)


def at(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step={step}.ckpt"


def fitted(folder: Path, checkpoint: Path | None = None, **others: Any) -> torch.nn.Module:
    """Fit two epochs, with windows of five steps and a checkpoint every third."""
    chosen = {"optimizer": "adamw", "options": {}, "callbacks": [], "train": Tokens(EPOCH * 4, seed=1), **others}
    optimizer, options, callbacks, train = (chosen.pop(name) for name in ("optimizer", "options", "callbacks", "train"))
    return fit(
        folder,
        Resumable(train, 4),
        Module(optimizer),
        {"window": 5, **options},
        [*callbacks, saver(folder)],
        checkpoint,
        enable_checkpointing=True,
        **chosen,
    )


def require_equal(folder: Path, whole: Path) -> None:
    """Two accounts say the same, to the last bit."""
    found, expected = numbers(folder), numbers(whole)
    assert [one["steps"] for one in found] == [one["steps"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(one[name], value) if isinstance(value, torch.Tensor) else one[name] == value, (
                name,
                other["steps"],
            )
    store, other_store = AccountStore(folder / "run"), AccountStore(whole / "run")
    assert store.record().ended
    if (other_store.folder / "samples.safetensors").exists():
        assert bool(other_store.samples().any(1).all())
        assert torch.equal(store.samples(), other_store.samples())


WAYS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": "sgd"},
    "AdamW": {"optimizer": "adamw"},
    "every second step": {"optimizer": "adamw", "options": {"every_n_steps": 2}},
    "default windows": {"options": {"window": None}},
    "samples": {"options": {"samples": True}},
    "samples, momentum": {"optimizer": "sgd", "options": {"samples": True}, "accumulate_grad_batches": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted fit of each way."""

    @lru_cache
    def made(way: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        fitted(folder, **WAYS[way])
        return folder

    return made


@pytest.mark.parametrize("step", [3, 6, 9, 12])
@pytest.mark.parametrize("way", WAYS)
def test_resumed_fit_says_what_an_uninterrupted_one_says(tmp_path: Path, whole: Any, way: str, step: int) -> None:
    """Windows that were written after the checkpoint are in the directory."""
    if not at(whole(way), step).exists():
        pytest.skip("the fit is shorter")
    shutil.copytree(whole(way), tmp_path, dirs_exist_ok=True)
    fitted(tmp_path, at(tmp_path, step), **WAYS[way])
    require_equal(tmp_path, whole(way))


def test_resumes_at_the_end_of_an_epoch(tmp_path: Path, whole: Any) -> None:
    end = ModelCheckpoint(tmp_path / "checkpoints", filename="end")
    fitted(tmp_path, callbacks=[end], max_epochs=1)
    fitted(tmp_path, tmp_path / "checkpoints" / "end.ckpt")
    require_equal(tmp_path, whole("AdamW"))


class Stop(Callback):
    """Ends the fit after a step, in one way or another."""

    def __init__(self, step: int, how: Callable[[Any], None]) -> None:
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.how(trainer)


def broken(_: Any) -> None:
    raise RuntimeError("out of memory")


def test_fit_that_raises_releases_everything_and_resumes(tmp_path: Path, whole: Any) -> None:
    module = Module("adamw")
    stop, account = Stop(8, broken), ContributionCallback(tmp_path / "run", window=5, dtype="float64")
    fitting = trainer(tmp_path, [account, stop, saver(tmp_path)], precision="64-true", max_epochs=2, enable_checkpointing=True)
    loader = Resumable(Tokens(EPOCH * 4, seed=1), 4)
    with pytest.raises(RuntimeError, match="out of memory"):
        fitting.fit(module, loader, probes())
    assert not {"setup_data"} & vars(fitting.fit_loop).keys()
    assert not {"process_dataloader"} & vars(fitting.strategy).keys()
    assert not {"convert_input"} & vars(fitting.precision_plugin).keys()
    assert not any(part._forward_hooks for part in module.modules())
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in fitting.optimizers)
    fitted(tmp_path, at(tmp_path, 6))
    require_equal(tmp_path, whole("AdamW"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")
@pytest.mark.parametrize("step", [4, 8, 11])
def test_killed_fit_resumes(tmp_path: Path, whole: Any, step: int) -> None:
    child = os.fork()
    if child == 0:
        fitted(tmp_path, callbacks=[Stop(step, lambda _: os.kill(os.getpid(), signal.SIGKILL))])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    fitted(tmp_path, at(tmp_path, step // 3 * 3))
    require_equal(tmp_path, whole("AdamW"))


def test_checkpoint_of_an_exception_and_of_the_end_hold_the_account(tmp_path: Path) -> None:
    """The account ends before other callbacks save."""
    folder = tmp_path / "checkpoints"

    class Late(Callback):
        def on_train_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(folder / "late.ckpt")

        def on_exception(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(folder / "exception.ckpt")

    with pytest.raises(RuntimeError):
        fitted(tmp_path, callbacks=[Stop(8, broken), Late()])
    fitted(tmp_path, folder / "exception.ckpt", callbacks=[Late()])
    assert [one["steps"][:2] for one in numbers(tmp_path)] == [(1, 5), (6, 10), (11, 14)]
    fitted(tmp_path, folder / "late.ckpt", max_epochs=3)
    assert [one["steps"][:2] for one in numbers(tmp_path)] == [(1, 5), (6, 10), (11, 15), (16, 20), (21, 21)]


def test_checkpoints_load_with_weights_only(whole: Any) -> None:
    states = torch.load(at(whole("AdamW"), 6), weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("ContributionCallback"))
    assert state["names"] == ["de", "en", "ru"]


def test_directory_may_move(tmp_path: Path, whole: Any) -> None:
    shutil.copytree(whole("AdamW"), tmp_path / "elsewhere")
    fitted(tmp_path / "elsewhere", at(tmp_path / "elsewhere", 6))
    require_equal(tmp_path / "elsewhere", whole("AdamW"))


def test_account_that_is_gone_is_refused(tmp_path: Path, whole: Any) -> None:
    shutil.copytree(whole("AdamW"), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(TracInError, match=r"contributions does not hold the account that the checkpoint belongs to; restore it"):
        fitted(tmp_path, at(tmp_path, 6))


def test_samples_option_is_that_of_the_checkpoint(tmp_path: Path, whole: Any) -> None:
    shutil.copytree(whole("AdamW"), tmp_path, dirs_exist_ok=True)
    with pytest.raises(TracInError, match=r"was begun with samples=False; resume it with the same option, or choose another"):
        fitted(tmp_path, at(tmp_path, 6), options={"samples": True})


def test_samples_of_a_fit_that_goes_on_are_not_there_yet(tmp_path: Path, whole: Any) -> None:
    shutil.copytree(whole("samples"), tmp_path, dirs_exist_ok=True)
    with pytest.raises(RuntimeError):
        fitted(tmp_path, at(tmp_path, 6), callbacks=[Stop(8, broken)], **WAYS["samples"])
    with pytest.raises(TracInError, match="written when the fit ends"):
        AccountStore(tmp_path / "run").samples()


def test_another_account_is_refused(tmp_path: Path, whole: Any) -> None:
    fitted(tmp_path)
    before = numbers(tmp_path)
    with pytest.raises(TracInError, match="does not hold the account that the checkpoint belongs to"):
        fitted(tmp_path, at(whole("AdamW"), 6))
    assert len(numbers(tmp_path)) == len(before)


def test_missing_windows_are_refused(tmp_path: Path, whole: Any) -> None:
    shutil.copytree(whole("AdamW"), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "contributions" / "windows")
    with pytest.raises(TracInError, match=r"windows holds 0 windows, but the checkpoint belongs to an account of 2; restore"):
        fitted(tmp_path, at(tmp_path, 12))


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"max_probes_per_language": 2}, "other probes"),
        ({"every_n_steps": 2}, "another every_n_steps"),
        ({"probes_per_language": 1}, "other probes whose loss is split"),
    ],
)
def test_other_probes_or_options_are_refused(tmp_path: Path, whole: Any, options: dict[str, Any], difference: str) -> None:
    shutil.copytree(whole("AdamW"), tmp_path, dirs_exist_ok=True)
    with pytest.raises(TracInError, match=rf"was begun with {difference}.* than this fit has; resume it with the same probes"):
        fitted(tmp_path, at(tmp_path, 6), options=options)


def test_checkpoint_without_an_account_begins_one(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    train = Tokens(EPOCH * 4, seed=1)
    trainer(tmp_path, [saver(tmp_path)], precision="64-true", max_epochs=1, enable_checkpointing=True).fit(
        Module("adamw"), Resumable(train, 4)
    )
    recwarn.clear()
    fitted(tmp_path, at(tmp_path, 6))
    assert not [one for one in recwarn if "TracIn" in str(one.message)]
    assert AccountStore(tmp_path / "run").record().began_at == 6
    assert [one["steps"][:2] for one in numbers(tmp_path)] == [(7, 11), (12, 14)]
    window = numbers(tmp_path)[0]
    assert "nats of momentum" in window
    explained = sum(value for name, value in window.items() if name.startswith("nats"))
    change = window["before"] - window["after"]
    assert float((explained - change).norm()) < 0.1 * float(change.norm())


def test_second_fit_is_refused_or_replaces(tmp_path: Path) -> None:
    fitted(tmp_path, max_epochs=1)
    account = AccountStore(tmp_path / "run").record().account
    with pytest.raises(TracInError, match=r"contributions holds another account \(2 windows\)\. .*`overwrite=True`, or resume"):
        fitted(tmp_path)
    assert AccountStore(tmp_path / "run").record().account == account
    fitted(tmp_path, options={"overwrite": True, "window": 7})
    assert AccountStore(tmp_path / "run").record().account != account
    assert [one["steps"][:2] for one in numbers(tmp_path)] == [(1, 7), (8, 14)]


def test_leftovers_of_an_account_that_was_being_cleared_are_no_windows(tmp_path: Path) -> None:
    fitted(tmp_path)
    (tmp_path / "run" / "contributions" / "account.json").unlink()
    fitted(tmp_path, options={"window": 14})
    assert [one["steps"][:2] for one in numbers(tmp_path)] == [(1, 14)]
