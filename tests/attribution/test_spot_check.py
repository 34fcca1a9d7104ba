"""What a pass has stored is compared with single samples' gradients, and what is wrong is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute
from lightning_tracin.storage.files import read_tensors, write_tensors
from tests.support.fits import Classifier, loaders, trainer
from tests.trainer.test_attribute import a_mask

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"preconditioner": None},
    "adam": {"preconditioner": "adam"},
    "factored": {"preconditioner": "adam-factored"},
    "means": {"language_means": True},
    "projected": {"projection_dim": 300},
    "ekfac": {"method": "ekfac"},
}


def fitted(folder: Path, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(folder / "run", **{"top_k": 5, "batch_size": 4, **settings})
    trainer(folder, [callback], max_epochs=2).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


@pytest.mark.parametrize("way", [*WAYS, "mask", "bfloat16"])
def test_each_snapshot_is_checked_and_the_record_says_so(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    others = {"mask": lambda: {"mask": a_mask(tmp_path)}, "bfloat16": lambda: {"dtype": "bfloat16"}}
    with caplog.at_level("INFO"):
        run = fitted(tmp_path, **(others[way]() if way in others else WAYS[way]))
    written = json.loads((run.path / "run.json").read_text())["spot_checks"]
    assert list(written) == [snapshot.name for snapshot in run.snapshots]
    most = {"projected": 2e-3, "bfloat16": 0.1}.get(way, 1e-5)
    for name, check in written.items():
        assert check["pairs"] == 8
        assert 0 < check["deviation"] < most
        assert f"spot check of {name}: 8 pairs, largest deviation {check['deviation']:.0e}" in caplog.text


def changed(run: TracInRun, name: str, change: Any) -> None:
    """Change one tensor of each file of the last snapshot, as if the engine had computed it so; the check is to be made again."""
    snapshot = run.snapshots[-1]
    folder = run.method.store(run.directory, snapshot).folder
    for path in folder.glob("*.safetensors"):
        owner = f"{run.record.run}/{folder.parent.name}/{snapshot.name}"
        tensors = dict(read_tensors(path, owner=owner))
        if name in tensors:
            change(tensors[name])
            write_tensors(path, tensors, owner)
    record = run.path / "run.json"
    said = json.loads(record.read_text())
    del said["spot_checks"][snapshot.name]
    said.pop("checksum")
    record.write_text(json.dumps(said))


def lose_the_short_probes(dot: torch.Tensor) -> None:
    """What was wrong once: products of a short probe lack the part of one layer."""
    dot[3] = 0


@pytest.mark.parametrize(
    ("way", "name", "change"),
    [
        ("exact", "dot", lose_the_short_probes),
        ("exact", "dot", lambda dot: dot[0].mul_(1.05)),
        ("exact", "train_norm", lambda norm: norm[1].mul_(1.5)),
        ("exact", "probe_norm", lambda norm: norm.mul_(1.01)),
        ("exact", "train_norm", lambda norm: norm.mul_(1.0004)),
        ("exact", "dot", lambda dot: dot.mul_(1.0004)),
        ("adam", "dot", lose_the_short_probes),
        ("factored", "dot", lose_the_short_probes),
        ("factored", "dot", lambda dot: dot[0].mul_(1.05)),
        ("means", "dot", lambda dot: dot[:, :, 0].zero_()),
        ("means", "dot", lambda dot: dot[:, :, 3].zero_()),
        ("projected", "features", lambda features: features[:, :40].zero_()),
    ],
)
def test_what_is_wrong_is_an_error(tmp_path: Path, way: str, name: str, change: Any) -> None:
    run = fitted(tmp_path, **WAYS[way])
    changed(run, name, change)
    last = run.snapshots[-1].name
    with pytest.raises(
        TracInError, match=rf"stored results of snapshot {last} are wrong by .* one sample at a time.* Delete .*{last} to compute"
    ):
        attribute(Classifier(), run, *loaders(), progress=False)


def test_what_is_no_number_is_never_taken_for_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Largest values that are looked for by comparing would pass it by."""
    run = fitted(tmp_path)
    changed(run, "nothing", None)

    def broken(*_: Any) -> dict[str, torch.Tensor]:
        names = run.snapshots[-1].record.groups
        return {name: torch.full_like(Classifier().get_parameter(name), torch.nan) for name in names}

    monkeypatch.setattr("lightning_tracin.attribution.spot_check.plain_gradient", broken)
    with pytest.raises(TracInError, match="wrong by nan of the gradients' norms"):
        attribute(Classifier(), run, *loaders(), progress=False)


def test_the_error_names_the_worst_pair(tmp_path: Path) -> None:
    run = fitted(tmp_path)

    def change(dot: torch.Tensor) -> None:
        dot[0] += 3.0

    changed(run, "dot", change)
    with pytest.raises(TracInError, match=r"inner product of train sample \d+ \(language '\w+'\) with probe \d+ .* stored as"):
        attribute(Classifier(), run, *loaders(), progress=False)


def test_a_run_that_was_not_checked_says_so_in_one_line_and_can_be_checked(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    for snapshot in run.snapshots:
        changed(run, "nothing", None) if snapshot is run.snapshots[-1] else None
    with pytest.warns(
        UserWarning, match=r"exact scores of .*run may be wrong: versions before 0.2 .* `lightning-tracin attribute`"
    ) as said:
        TracInRun.open(run.path)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    attribute(Classifier(), run, *loaders(), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TracInRun.open(run.path)


@pytest.mark.parametrize("settings", [{"batch_size": 32}, {"language_means": True}, {"projection_dim": 300}])
def test_runs_that_cannot_have_been_wrong_say_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = fitted(tmp_path, **settings)
    changed(run, "nothing", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TracInRun.open(run.path)


def test_added_probes_are_checked(tmp_path: Path) -> None:
    run = fitted(tmp_path, projection_dim=300)
    before = run.record.spot_checks
    grown = run.add_probes(Classifier(), loaders(probes=9)[1])
    for name, check in grown.record.spot_checks.items():
        assert check.pairs == before[name].pairs + 4
        assert check.deviation >= before[name].deviation


def test_a_snapshot_that_is_taken_anew_is_checked_anew(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    run.directory.discard(run.snapshots[1].name)
    assert list(TracInRun.open(run.path).record.spot_checks) == [run.snapshots[0].name]


def test_probes_without_a_gradient_are_no_deviation(tmp_path: Path) -> None:
    """A loss of zero has a gradient of zero, which nothing can be divided by."""

    class Masked(Classifier):
        def per_sample_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
            return losses * (batch["labels"] > 0)

    pl.seed_everything(7)
    callback = TracInCallback(tmp_path / "run", top_k=5, batch_size=4)
    trainer(tmp_path, [callback], max_epochs=1).fit(Masked(), *loaders())
    (check,) = TracInRun.open(tmp_path / "run").record.spot_checks.values()
    assert check.deviation < 1e-5


_TWO = """
import sys
from pathlib import Path
import pytorch_lightning as pl
from lightning_tracin import TracInCallback
from tests.support.fits import Classifier, loaders, trainer

if __name__ == "__main__":
    pl.seed_everything(7)
    callback = TracInCallback("run", top_k=5, batch_size=4)
    trainer(Path("."), [callback], strategy="ddp", devices=2, max_epochs=1).fit(Classifier(), *loaders(batch_size=5))
"""


@pytest.mark.long
def test_one_of_two_ranks_checks_what_both_have_stored(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_TWO)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("spot check of") == 1
    (check,) = TracInRun.open(tmp_path / "run").record.spot_checks.values()
    assert check.deviation < 1e-5
