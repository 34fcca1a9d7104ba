"""The command line on a run: as the same calls from Python, in one sentence where it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pytorch_lightning.cli import LightningCLI

from lightning_tracin import TracInRun, attribute
from lightning_tracin.cli.main import main
from lightning_tracin.storage.files import as_lines, write_record
from lightning_tracin.storage.records import Samples
from tests.support.fits import Classifier, loaders
from tests.trainer.test_attribute import assert_same_files

CONFIG: dict[str, Any] = {
    "seed_everything": 7,
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "lightning_tracin.TracInCallback",
                "init_args": {"dirpath": None, "when": "never", "top_k": 5, "max_probes_per_language": 3},
            }
        ],
    },
    "model": {"class_path": "tests.support.fits.Classifier", "init_args": {"steps": 10}},
    "data": {"class_path": "tests.support.fits.Data", "init_args": {"train": 30}},
}


def written(folder: Path, when: str = "never", **changes: Any) -> Path:
    """The file of a LightningCLI."""
    config = json.loads(json.dumps({**CONFIG, **changes}))
    config["trainer"]["default_root_dir"] = str(folder)
    config["trainer"]["callbacks"][0]["init_args"] |= {"dirpath": str(folder / "run"), "when": when}
    folder.mkdir(exist_ok=True)
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the same fit, attributed at its end and not at all."""
    folders = {when: tmp_path_factory.mktemp(when) for when in ("fit_end", "never")}
    for when, folder in folders.items():
        LightningCLI(args=["fit", "--config", str(written(folder, when))])
    return folders


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_attribute_with_the_file_of_the_fit(tmp_path: Path, fits: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = TracInRun.open(shutil.copytree(fits["never"] / "run", tmp_path / "run"))
    before = said(capsys, "status", "--run", run.path)
    assert "30 train samples (de 10, en 10, ru 10) x 9 probes (de 3, en 3, ru 3)" in before
    assert "Missing: the influence at snapshot 0, 1 (`lightning-tracin attribute` computes it)." in before
    after = said(capsys, "attribute", "--run", run.path, "--config", fits["never"] / "config.yaml")
    assert f"Nothing is missing; the results are in {run.path}/results." in after
    assert_same_files(run, TracInRun.open(fits["fit_end"] / "run"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("starter", "devices"),
    [(["-m"], ["--devices", "2"]), (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"], [])],
    ids=["two devices", "torchrun"],
)
def test_ranks_share_the_command(tmp_path: Path, fits: dict[str, Path], starter: list[str], devices: list[str]) -> None:
    run = TracInRun.open(shutil.copytree(fits["never"] / "run", tmp_path / "run"))
    command = [*starter, "lightning_tracin", "attribute", "--run", str(run.path), "--config", "fit.yaml", *devices]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = {"cwd": fits["never"], "env": environment, "capture_output": True, "text": True, "timeout": 500}
    done = subprocess.run([sys.executable, *command], **arguments)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    assert done.stdout.count("Nothing is missing; the results are in") == 1  # rank 0 alone tells
    alone = TracInRun.open(fits["fit_end"] / "run")
    np.testing.assert_allclose(run.influence(), alone.influence(), rtol=1e-6, atol=1e-6)
    pd.testing.assert_frame_equal(run.reliance(5), alone.reliance(5))


@pytest.mark.long
def test_tasks_of_slurm_share_the_command(tmp_path: Path, fits: dict[str, Path]) -> None:
    """By what srun would tell each of two tasks."""
    run = TracInRun.open(shutil.copytree(fits["never"] / "run", tmp_path / "run"))
    command = [
        sys.executable,
        "-m",
        "lightning_tracin",
        "attribute",
        "--run",
        str(run.path),
        "--config",
        "fit.yaml",
        "--devices",
        "2",
    ]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "tracin", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    place = {"SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "PYTHONPATH": str(Path(__file__).parents[2])}
    tasks = [
        subprocess.Popen(
            command,
            cwd=fits["never"],
            env={**os.environ, **job, **place, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        told = [task.communicate(timeout=300) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], told
    assert ["Nothing is missing" in out for out, _ in told] == [True, False]
    assert "2 processes" in told[0][1]
    alone = TracInRun.open(fits["fit_end"] / "run")
    np.testing.assert_allclose(run.influence(), alone.influence(), rtol=1e-6, atol=1e-6)


def test_status_of_a_part(
    tmp_path: Path, fits: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fits["fit_end"] / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    run = TracInRun.open("run")
    shutil.rmtree(run.path / "ingredients" / run.snapshots[1].name)
    run.snapshots[0].discard_weights()
    lines = said(capsys, "status", "--run", run.path).splitlines()
    first, second = (line.split() for line in lines if line.split()[:1] in (["0"], ["1"]))
    assert (first[-1], second[-1]) == ("yes", "no")
    assert "not kept" in " ".join(first)
    assert "Missing: the influence at snapshot 1" in lines[-1]


def test_reliance_is_the_table_of_the_run(fits: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = TracInRun.open(fits["fit_end"] / "run")
    asked = ["--sign", "negative", "--similarity", "cosine", "--weighting", "uniform", "--k", 4, "--snapshots", "[1]"]
    asked += ["--measure", "share"]
    expected = run.reliance(4, "negative", measure="share", similarity="cosine", weighting="uniform", snapshots=[1])
    as_csv = pd.read_csv(StringIO(said(capsys, "reliance", "--run", run.path, *asked, "--output", "csv")))
    pd.testing.assert_frame_equal(as_csv, expected)
    as_json = json.loads(said(capsys, "reliance", "--run", run.path, *asked, "--output", "json"))
    assert [line["value"] for line in as_json] == pytest.approx(expected["value"].tolist())
    plain = pd.read_csv(StringIO(said(capsys, "reliance", "--run", run.path, "--output", "csv")))
    headline = run.reliance(measure="sum", similarity="dot", weighting="learning_rate", preconditioner="adam-factored")
    pd.testing.assert_frame_equal(plain, headline, check_dtype=False)  # a column without any number has no type in a file
    assert set(headline["unit"]) == {"nats (first order)"}
    table = said(capsys, "reliance", "--run", run.path).splitlines()
    assert table[0].split() == list(run.reliance(5).columns)
    assert len(table) == 1 + 2 * 3 * 3
    mass = pd.read_csv(StringIO(said(capsys, "reliance", "--run", run.path, "--measure", "mass", "--output", "csv")))
    assert mass["value"].tolist() == pytest.approx(run.reliance(5, measure="mass")["value"].tolist())


def test_top_shows_no_control_characters(tmp_path: Path, fits: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = TracInRun.open(shutil.copytree(fits["fit_end"] / "run", tmp_path / "run"))
    strongest = run.top(2, 3)
    rows = run.train.rows()
    rows[int(strongest["train"][0])]["text"] = "red \x1b[31malert\x1b[0m\x07 \u202egnp\u202c \x9b2J end\nof line"
    path = run.path / "samples" / "train.jsonl"
    path.write_bytes(as_lines(rows))
    known = Samples(count=len(rows), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    write_record(run.path / "run.json", run.record.model_copy(update={"train": known}))
    for output in ("table", "csv", "json"):
        shown = said(capsys, "top", "--run", run.path, "--probe", 2, "--k", 3, "--output", output)
        assert "red [31malert[0m gnp 2J end of line" in shown
    assert said(capsys, "top", "--run", run.path, "--probe", 2, "--k", 3).startswith(f"Probe 2 ({run.probes.language[2]}):")


def test_export_says_what_it_leaves_out_of_a_large_run(
    tmp_path: Path, fits: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    shown = said(capsys, "export", "--run", fits["fit_end"] / "run", "--folder", tmp_path / "tables")
    assert "too large for its experiments (compared, changes, reinforcement)" in shown
    written = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert written == {"snapshots", "train", "probes", "reliance", "top"}


@pytest.mark.parametrize(("kind", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_export_writes_every_table(
    tmp_path: Path, fits: dict[str, Path], capsys: pytest.CaptureFixture[str], kind: str, read: Any
) -> None:
    run = TracInRun.open(fits["fit_end"] / "run")
    told = said(capsys, "export", "--run", run.path, "--folder", tmp_path / "tables", "--format", kind)
    names = {"snapshots", "train", "probes", "reliance", "top", "compared", "changes"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"{name}.{kind}" for name in names}
    assert f"Written to {tmp_path / 'tables'}: snapshots.{kind}, train.{kind}" in told
    table = read(tmp_path / "tables" / f"reliance.{kind}").query("sign == 'positive' and not cumulative")
    assert set(table["measure"]) == {"sum", "mean", "share"}
    for measure, of_it in table.groupby("measure"):
        assert of_it["value"].tolist() == pytest.approx(run.reliance(5, measure=measure)["value"].tolist())
    assert read(tmp_path / "tables" / f"train.{kind}")["language"].tolist() == list(run.train.language)


def failed(*arguments: Any) -> str:
    """The message of a command that cannot work: exit status 1, one sentence."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    message = error.value.code
    assert isinstance(message, str)  # what Python prints, with status 1
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"steps": 3}}, "does not name the class of the model; write `model: {class_path: package.Module"),
        ({"data": {"train": 3}}, "does not name the class of the data; write `data: {class_path: package.Data"),
        ({"model": {"class_path": "tests.support.fits.Nothing"}}, "does not build a module and its data: "),
        ({"data": {"class_path": "tests.support.fits.Data", "init_args": {"train": 29}}}, "30 train samples, but there are 29"),
    ],
)
def test_what_a_file_must_say(tmp_path: Path, fits: dict[str, Path], changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    assert message in failed("attribute", "--run", fits["never"] / "run", "--config", path)


def test_other_settings_than_the_fits_are_named(tmp_path: Path, fits: dict[str, Path]) -> None:
    path = written(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["callbacks"][0]["init_args"]["batch_size"] = 4
    path.write_text(yaml.safe_dump(config))
    message = failed("attribute", "--run", fits["never"] / "run", "--config", path)
    assert "sets batch_size=4, but the run" in message
    assert "was made with 32; give the fit's own file." in message


def test_errors_are_one_sentence(tmp_path: Path, fits: dict[str, Path]) -> None:
    run = fits["fit_end"] / "run"
    assert "There is no file" in failed("attribute", "--run", run, "--config", tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("model: [")
    assert "bad.yaml is not a YAML file: ParserError" in failed("attribute", "--run", run, "--config", tmp_path / "bad.yaml")
    assert "run.json is missing" in failed("status", "--run", tmp_path)
    assert "There is no probe 9; the run has probes 0 to 8." in failed("top", "--run", run, "--probe", 9)
    shares = ("reliance", "--run", run, "--measure", "share")
    assert "k should be between 1 and the number of train samples (30), but is 31." in failed(*shares, "--k", 31)
    assert "measure='sum' adds up influence with its sign" in failed("reliance", "--run", run, "--sign", "negative")
    assert "holds no ingredients" in failed("reliance", "--run", fits["never"] / "run")


def test_without_the_callbacks_section_the_runs_own_record_counts(
    tmp_path: Path, fits: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = TracInRun.open(shutil.copytree(fits["never"] / "run", tmp_path / "run"))
    path = written(tmp_path)
    config = yaml.safe_load(path.read_text())
    del config["trainer"]["callbacks"]
    path.write_text(yaml.safe_dump(config))
    said(capsys, "attribute", "--run", run.path, "--config", path)
    assert_same_files(run, TracInRun.open(fits["fit_end"] / "run"))
    again = attribute(Classifier(), run, *loaders(), progress=False)
    assert_same_files(again, TracInRun.open(fits["fit_end"] / "run"))
