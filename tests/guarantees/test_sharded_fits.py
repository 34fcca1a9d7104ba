"""Fits whose model is sharded (ModelParallelStrategy: FSDP2, tensor parallelism), in processes on the CPU.

Snapshots are compared with the weights that torch puts together itself, runs with those of the same fit under DDP, scores with a
loop of `autograd.grad`. The fits that most tests look at share one start of two processes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from lightning_tracin import TracInError, TracInRun, attribute
from lightning_tracin.cli.main import main
from lightning_tracin.storage import files
from lightning_tracin.storage.snapshots import Snapshot, load_weights
from tests.support.fits import Samples
from tests.support.models import padded
from tests.support.oracles import gradient_loop, ingredients_loop
from tests.support.processes import last_checkpoint
from tests.support.ranks import in_ranks, succeeded
from tests.support.sharded import (
    Failing,
    FullySharded,
    Gathered,
    TensorParallel,
    Unfreezing,
    Whole,
    fit_in_ranks,
    sharded_loaders,
    watcher,
)

#: What rank 0 and rank 1 say where rank 1's disk is full.
FULL = (
    "TracIn: rank 1 could not write its part of snapshot 0001-step6, because its disk is full: the fit goes on, and no more",
    "TracIn: the snapshot 0001-step6 could not be written to .*: the fit goes on, and no more snapshots are taken",
)


def several_fits(folder: Path) -> None:
    """One after the other, in one start of the processes."""

    def fit(name: str, module: Any, *others: Any, epochs: int = 2, **options: Any) -> None:
        fit_in_ranks(folder / name, module, [watcher(folder / name, **options), *others, Gathered(folder / name)], epochs=epochs)

    fit("sharded", FullySharded())
    fit("whole", Whole(), when="never")
    fit_in_ranks(folder / "alone", FullySharded(), [Gathered(folder / "alone")])
    fit("adam", FullySharded("embeddings"), preconditioner="adam", every_n_train_steps=2)
    fit("sgd", FullySharded(optimizer="SGD"), when="snapshot", keep_snapshots=False)
    fit("unfrozen", FullySharded("embeddings.word"), Unfreezing(1), preconditioner=None)
    with pytest.raises(RuntimeError, match="the power is off"):
        fit("interrupted", FullySharded(), Failing(1))
    fit("interrupted", FullySharded())
    fit("held", FullySharded(), every_n_epochs=5)
    fit("dry", FullySharded(), dry_run=True, epochs=1)
    with refused_in_rank_1(errno.ENOSPC), pytest.warns(UserWarning, match=FULL[int(os.environ["LOCAL_RANK"])]):
        fit("full", FullySharded())
    with refused_in_rank_1(errno.EACCES), pytest.raises(Exception, match=r"cannot be written|Rank 1 could not write its part"):
        fit("closed", FullySharded())


@contextmanager
def refused_in_rank_1(reason: int) -> Iterator[None]:
    """The system refuses rank 1 to write its weights of the second snapshot."""
    written = files.write_whole

    def write(path: Path, content: bytes) -> None:
        if path.name == "weights-0001-of-0002.safetensors" and path.parent.name == "0001-step6":
            raise OSError(reason, os.strerror(reason))
        written(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_whole", write)
        yield


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return succeeded(several_fits, tmp_path_factory.mktemp("fits"))


def attributed(run: TracInRun, module: Whole) -> TracInRun:
    return attribute(module, run.path, *sharded_loaders(), progress=False)


def gathered(folder: Path, snapshot: Snapshot) -> Mapping[str, Tensor]:
    """The weights at a snapshot, as torch put them together in the fit, and the buffers, which no fit here changes."""
    return {**dict(Whole().named_buffers()), **torch.load(folder / f"step{snapshot.step}.pt")}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def assert_scores_equal_the_loop(
    run: TracInRun, module: Whole, scales: Callable[[Snapshot], Mapping[str, Tensor]] | None
) -> None:
    """Dot products, summed over snapshots, against gradients of single samples at the stored weights."""
    module = module.float().eval()
    expected, size = 0.0, 0.0
    for snapshot in run.snapshots:
        load_weights(module, snapshot.state_dict())
        names = [*snapshot.record.groups]
        gradients = [
            gradient_loop(module, lambda one: module.model(**padded([one])).loss, Samples(count, seed).samples, names)
            for count, seed in ((30, 1), (12, 2))
        ]
        if scales is not None:
            of_snapshot = scales(snapshot)
            gradients = [{name: one[name] * of_snapshot[name].flatten().double() for name in names} for one in gradients]
        dot, norm, probe_norm = ingredients_loop(*gradients, dict.fromkeys(names, 0), 1)
        expected, size = expected + dot[0], size + norm[0][:, None] * probe_norm[0]
    difference = np.abs(run.influence("dot", "uniform").to_numpy() - np.asarray(expected)) / np.asarray(size)
    assert difference.max() <= 1e-5


@pytest.mark.slow
def test_a_snapshot_is_what_torch_puts_together(fits: Path) -> None:
    for name in ("sharded", "adam", "sgd"):
        run = TracInRun.open(fits / name / "run")
        ends = [snapshot for snapshot in run.snapshots if snapshot.step % 3 == 0]
        assert ends
        for snapshot in ends:
            whole = gathered(fits / name, snapshot)
            assert_same(snapshot.state_dict(), {key: whole[key] for key in snapshot.own_names})


def test_no_rank_writes_more_than_its_part(fits: Path) -> None:
    for snapshot in TracInRun.open(fits / "sharded" / "run").snapshots:
        whole = snapshot.state_dict()
        pieces = {f"{kind}-000{rank}-of-0002.safetensors" for kind in ("moments", "weights") for rank in range(2)}
        assert {path.name for path in snapshot.path.iterdir()} == {*pieces, "snapshot.json"}
        for rank in range(2):
            held = safetensors.torch.load_file(snapshot.path / f"weights-000{rank}-of-0002.safetensors")
            for name in snapshot.record.groups:
                rows, piece = len(whole[name]), held.get(f"values/{name}", torch.empty(0))
                assert len(piece) == (-(-rows // 2) if rank == 0 else rows // 2), name


def test_the_run_is_that_of_the_same_fit_with_whole_models(fits: Path) -> None:
    ours, theirs = (TracInRun.open(fits / name / "run") for name in ("sharded", "whole"))
    own = {"run", "witnesses"}  # of each run, and those that a sharded fit does not have
    for one, other in zip(ours.snapshots, theirs.snapshots, strict=True):
        assert one.record.model_dump(exclude=own) == other.record.model_dump(exclude=own)
        assert_same(one.state_dict(), other.state_dict())
    ours, theirs = (attributed(run, Whole()) for run in (ours, theirs))
    np.testing.assert_array_equal(ours.influence("dot").to_numpy(), theirs.influence("dot").to_numpy())
    record, other = ours.directory.record(), theirs.directory.record()
    assert (record.loss, record.coverage, record.elements) == (other.loss, other.coverage, other.elements)
    assert record.deviation is not None
    assert record.deviation < 1e-5
    assert all(check.deviation < 1e-5 for check in record.spot_checks.values())


def test_the_fit_is_untouched(fits: Path) -> None:
    for rank in range(2):
        assert_same(torch.load(fits / "sharded" / f"rank{rank}.pt"), torch.load(fits / "alone" / f"rank{rank}.pt"))


@pytest.mark.long
def test_scores_in_adams_metric_with_frozen_parameters(fits: Path) -> None:
    run = attributed(TracInRun.open(fits / "adam" / "run"), Whole("embeddings"))
    assert [snapshot.step for snapshot in run.snapshots] == [2, 4, 6]

    def scales(snapshot: Snapshot) -> dict[str, Tensor]:
        moments = snapshot.second_moments()
        assert moments is not None
        names = [*snapshot.record.groups]
        second = {name: moments[f"second/{name}"] for name in names}
        return {name: torch.where(one > 0, (one.sqrt() + 1e-8).rsqrt(), 0.0) for name, one in second.items()}

    assert_scores_equal_the_loop(run, Whole("embeddings"), scales)


def test_second_moments_are_those_of_the_optimizer(fits: Path) -> None:
    snapshot = TracInRun.open(fits / "sharded" / "run").snapshots[-1]
    moments = snapshot.second_moments()
    assert moments is not None
    held = [torch.load(fits / "sharded" / f"rank{rank}.pt") for rank in range(2)]
    for name in snapshot.record.groups:
        corrected = torch.cat([one[f"{name}/exp_avg_sq"] for one in held]) / (1 - 0.999**6)
        assert torch.equal(moments[f"second/{name}"], corrected), name


def test_frozen_parameters_must_be_the_fits(fits: Path) -> None:
    module = Whole("embeddings")
    nn.init.ones_(module.model.roberta.embeddings.word_embeddings.weight)
    with pytest.raises(TracInError, match="The parameters that the fit did not train"):
        attributed(TracInRun.open(fits / "adam" / "run"), module)


def test_weights_are_kept_for_the_influence_that_is_computed_later(fits: Path) -> None:
    run = TracInRun.open(fits / "sgd" / "run")
    assert all(snapshot.kept for snapshot in run.snapshots)
    assert run.record.options.when == "never"
    assert run.record.options.preconditioner is None
    assert_scores_equal_the_loop(attributed(run, Whole()), Whole(), None)


def test_parameters_that_are_unfrozen_on_the_way(fits: Path) -> None:
    run = TracInRun.open(fits / "unfrozen" / "run")
    for snapshot in run.snapshots:
        whole = gathered(fits / "unfrozen", snapshot)
        assert_same(snapshot.state_dict(), {key: whole[key] for key in snapshot.state_dict()})
    sizes = [len(snapshot.own_names) for snapshot in run.snapshots]
    assert sizes[1] == sizes[0] + 1
    assert len(run.snapshots[0].state_dict()) == sizes[1]
    assert_scores_equal_the_loop(attributed(run, Whole()), Whole(), None)


def test_the_fit_says_what_it_leaves_for_later(fits: Path) -> None:
    said = (fits / "log0").read_text()
    only = "TracIn: ModelParallelStrategy shards the model, so this fit only takes 2 snapshots of 49.7 kB, each rank its own part"
    assert only in said
    line = f"TracIn: `lightning_tracin.attribute(module, {str(fits / 'sharded' / 'run')!r}, train_loader, probe_loaders)`"
    assert f"{line}, with a module that is not sharded" in said
    assert "TracIn:" not in (fits / "log1").read_text()


def test_the_last_weights_of_an_epoch_are_kept_where_others_may_replace_them(fits: Path) -> None:
    (snapshot,) = TracInRun.open(fits / "held" / "run").snapshots
    assert snapshot.step == 6
    assert_same(snapshot.state_dict(), gathered(fits / "held", snapshot))


def test_a_dry_run_writes_nothing(fits: Path) -> None:
    assert not (fits / "dry" / "run").exists()
    assert (fits / "dry" / "rank0.pt").exists()


def test_where_one_rank_has_no_room_the_fit_goes_on(fits: Path) -> None:
    """Each rank has said so, as `several_fits` expects."""
    assert [snapshot.step for snapshot in TracInRun.open(fits / "full" / "run").snapshots] == [3]
    assert_same(torch.load(fits / "full" / "rank0.pt"), torch.load(fits / "alone" / "rank0.pt"))


def test_where_one_rank_cannot_write_all_end_with_an_error(fits: Path) -> None:
    """The ranks have left `several_fits`, which expects it, so that none waits for the other."""
    assert [snapshot.step for snapshot in TracInRun.open(fits / "closed" / "run").snapshots] == [3]
    assert not (fits / "closed" / "rank0.pt").exists()


def contents(run: Path) -> dict[str, Any]:
    """Everything in a run but its identity: tensors by file, records, tables."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".safetensors":
            found |= {f"{name}/{key}": value.numpy().tobytes() for key, value in safetensors.torch.load_file(path).items()}
        elif path.suffix == ".json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("run", "checksum")}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def test_an_interrupted_fit_that_is_resumed_ends_with_the_same_files(fits: Path) -> None:
    fresh = contents(fits / "interrupted" / "run")
    again = contents(fits / "sharded" / "run")
    assert {name for name in again if name.startswith("snapshots")} == {name for name in fresh if name.startswith("snapshots")}
    for name in fresh:
        if name.startswith(("snapshots", "samples")):
            assert fresh[name] == again[name], name
    for rank in range(2):
        resumed, whole = (torch.load(fits / name / f"rank{rank}.pt") for name in ("interrupted", "sharded"))
        assert_same(resumed, {**whole, "generator": resumed["generator"]})  # a checkpoint does not keep it


def killed_fit(folder: Path, victim: int, change: str) -> None:
    """A fit of which one rank kills itself when it is about to make this change in the folder of the second snapshot."""

    def strike(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if event in ("open", "os.rename") and f"run/snapshots/0001-step6/{change}" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    if int(os.environ["LOCAL_RANK"]) == victim and last_checkpoint(folder) is None:
        sys.addaudithook(strike)
    fit_in_ranks(folder, FullySharded(), [watcher(folder)])


#: A rank dies before its pieces are there, half-way through them, and before the record.
KILLS = [(1, "weights"), (0, "moments-0000-of-0002.safetensors.partial"), (0, "snapshot.json")]


@pytest.mark.parametrize(("victim", "change"), [KILLS[0], *(pytest.param(*one, marks=pytest.mark.long) for one in KILLS[1:])])
def test_a_killed_fit_leaves_no_half_snapshot_and_can_be_resumed(tmp_path: Path, victim: int, change: str) -> None:
    work, killed = partial(killed_fit, victim=victim, change=change), tmp_path / "killed"
    codes = in_ranks(work, killed, seconds=60)
    assert codes[victim] == -signal.SIGKILL
    run = TracInRun.open(killed / "run")
    assert [snapshot.step for snapshot in run.snapshots] == [3]
    assert not (killed / "run" / "snapshots" / "0001-step6" / "snapshot.json").exists()
    succeeded(work, killed)
    succeeded(whole_fit, tmp_path / "whole")  # here, so that all ranks come from this process as it is now
    ended, whole = (contents(tmp_path / name / "run" / "snapshots") for name in ("killed", "whole"))
    assert ended == whole


def whole_fit(folder: Path) -> None:
    fit_in_ranks(folder, FullySharded(), [watcher(folder)])


def tensor_parallel(folder: Path, data: int) -> None:
    module = TensorParallel(optimizer="SGD")
    fit_in_ranks(folder, module, [watcher(folder), Gathered(folder)], data=data, tensor=2)


@pytest.mark.parametrize("data", [1, pytest.param(2, marks=pytest.mark.long)], ids=["alone", "with fully_shard"])
def test_tensors_that_are_split_in_another_dimension_or_in_two(tmp_path: Path, data: int) -> None:
    succeeded(partial(tensor_parallel, data=data), tmp_path, ranks=2 * data)
    run = TracInRun.open(tmp_path / "run")
    for snapshot in run.snapshots:
        assert_same(snapshot.state_dict(), gathered(tmp_path, snapshot))
        starts = set()
        for path in snapshot.path.glob("weights-*"):
            held = safetensors.torch.load_file(path)
            starts |= {tuple(held[name][1].tolist()) for name in held if name == "place/" + ROWS}
        assert len(starts) == 2 * data
        assert any(start[1] for start in starts)
    assert [snapshot.visits for snapshot in run.snapshots] == [1.0, 1.0]  # ranks of one group see the same samples
    assert_scores_equal_the_loop(attributed(run, Whole()), Whole(), None)


#: A matrix that `RowwiseParallel` splits by its second dimension.
ROWS = "model.roberta.encoder.layer.0.output.dense.weight"


def config_of(folder: Path, model: str) -> Path:
    """A LightningCLI file of the sharded fit."""
    data = {"class_path": "tests.support.fits.Data", "init_args": {"train": 30}}
    config = {"trainer": {"strategy": "a", "devices": 1}, "model": {"class_path": f"tests.support.sharded.{model}"}, "data": data}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_command_computes_the_influence(fits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TracInRun.open(shutil.copytree(fits / "interrupted" / "run", tmp_path / "run"))
    assert "exact influence by a loss that is not checked yet" in repr(run)
    with pytest.raises(TracInError, match=r"is of a sharded fit, whose loss is checked when .*; call `attribute` first"):
        run.score(Whole(), sharded_loaders()[0], probes=sharded_loaders()[1])
    main(["status", "--run", str(run.path)])
    assert "Missing: the influence at snapshot 0, 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"let `configure_model` shard the model only where `self.device_mesh` is not None"):
        main(["attribute", "--run", str(run.path), "--config", str(config_of(tmp_path, "NeedsMesh"))])
    main(["attribute", "--run", str(run.path), "--config", str(config_of(tmp_path, "FullySharded"))])
    again = attributed(TracInRun.open(fits / "sharded" / "run"), Whole())
    np.testing.assert_array_equal(TracInRun.open(run.path).influence("dot"), again.influence("dot"))


def test_a_module_without_whole_weights_is_refused(fits: Path) -> None:
    with pytest.raises(TracInError, match=r"'model.classifier.dense.weight' is on the meta device, so it has no values; build"):
        attributed(TracInRun.open(fits / "sharded" / "run"), Whole().to("meta"))
    module = Whole()
    module.model.classifier.dense.bias.placements = ()
    with pytest.raises(TracInError, match=r"'model.classifier.dense.bias' is sharded, .* `fully_shard` and `parallelize_module`"):
        attributed(TracInRun.open(fits / "sharded" / "run"), module)


def test_a_lost_piece_is_named(fits: Path, tmp_path: Path) -> None:
    run = TracInRun.open(shutil.copytree(fits / "unfrozen" / "run", tmp_path / "run"))
    lost = run.snapshots[1].path / "weights-0001-of-0002.safetensors"
    lost.unlink()
    with pytest.raises(TracInError, match=rf"{lost.name} is missing; restore it from a copy, or resume the fit"):
        attributed(run, Whole())
