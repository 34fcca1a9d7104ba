"""What cannot be written at the end of a fit costs no other result, and the command in the warning writes it later."""

from __future__ import annotations

import itertools
import re
import resource
import shlex
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import wandb
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import WandbLogger

import lightning_tracin
from lightning_tracin import TracInCallback, TracInError, TracInRun, import_checkpoints
from lightning_tracin.cli.main import main
from lightning_tracin.storage.sample_table import SampleTable
from tests.cli.test_main import CONFIG
from tests.guarantees.test_damage import size_limit
from tests.support.fits import Classifier, loaders, trainer, with_texts

pytestmark = pytest.mark.results

TABLES, PICTURES = ("reliance.csv", "top.csv", "compared.csv", "changes.csv"), ("heat_map.png", "curves.png", "lift.png")
EVERYTHING = {*TABLES, *PICTURES, "report.html", "representations.safetensors"}


def full_disk(path: Path) -> None:
    """Make the next writer of a file find the disk full; the refusal itself removes the cause."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.partial").symlink_to("/dev/full")


_SAID = re.compile("TracIn|A logger failed|Glyph")


class AtTheEnd(pl.Callback):
    """Does something at the end of the last epoch."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.work()


def fitted(
    folder: Path,
    work: Any = lambda: None,
    before_the_last: Any = lambda: None,
    several: Any = None,
    logger: Any = False,
    saves: bool = True,
    **options: Any,
) -> list[str]:
    """Fit two epochs, with a checkpoint after them, and return the callback's warnings."""
    pl.seed_everything(3)
    saver = ModelCheckpoint(folder / "checkpoints", every_n_epochs=1 if saves else 0)
    callbacks = [TracInCallback(folder / "run", top_k=5, **options), saver, AtTheEnd(work)]
    callbacks.append(BeforeTheLast(before_the_last))
    fit = trainer(folder, callbacks, max_epochs=2, enable_checkpointing=True, logger=logger)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(Classifier(), *(with_texts(*loaders()) if several is None else several))
    assert len(list((folder / "checkpoints").glob("*.ckpt"))) == saves
    return [str(one.message) for one in caught if _SAID.search(str(one.message))]


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "results").iterdir() if path.name != "representations.safetensors"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of a fit without trouble."""
    folder = tmp_path_factory.mktemp("whole")
    assert not fitted(folder)
    return contents(folder / "run")


def command(told: str) -> list[str]:
    """The command that a warning gives, as a shell reads it."""
    (found,) = re.findall(r"`(lightning-tracin [^`]+)`", told)
    return shlex.split(found)


@pytest.mark.parametrize(
    "names",
    [("reliance.csv", "compared.csv", "heat_map.png", "lift.png"), ("top.csv", "changes.csv", "curves.png", "report.html")],
)
def test_a_full_disk_costs_what_it_has_no_room_for(
    tmp_path: Path, whole: dict[str, bytes], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def fill() -> None:
        for name in names:
            full_disk(tmp_path / "run" / "results" / name)

    (told,) = fitted(tmp_path, fill)
    lost = f"not written: {', '.join(names)} (No space left on device)"
    assert f"{lost}. Once the cause is gone, `lightning-tracin results --run" in told
    assert {path.name for path in (tmp_path / "run" / "results").iterdir()} == EVERYTHING - {*names}
    assert TracInRun.open(tmp_path / "run").influence().shape == (30, 12)
    capsys.readouterr()
    main(command(told)[1:])
    assert capsys.readouterr().out == f"The results are in {tmp_path}/run/results.\n"
    assert contents(tmp_path / "run") == whole


def test_files_that_may_not_grow_cost_only_themselves(tmp_path: Path, whole: dict[str, bytes]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        told = fitted(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (33_000, hard)), saves=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (said,) = [one for one in told if "of its results" in one]
    assert "heat_map.png, curves.png, lift.png, report.html (File too large)" in said
    assert {path.name for path in (tmp_path / "run" / "results").iterdir()} >= set(TABLES)
    main(command(said)[1:])
    assert contents(tmp_path / "run") == whole


@pytest.mark.long
def test_a_results_folder_that_is_a_file_is_named(tmp_path: Path, whole: dict[str, bytes]) -> None:
    def block() -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "results").write_text("mine")

    (told,) = fitted(tmp_path, block)
    assert "reliance.csv, top.csv, compared.csv, changes.csv, heat_map.png, curves.png, lift.png, report.html" in told
    (tmp_path / "run" / "results").unlink()
    run_line(told)
    assert contents(tmp_path / "run") == whole


def run_line(told: str, **names: Any) -> None:
    """Run the line of Python that a warning gives."""
    train, probes = with_texts(*loaders())
    (line,) = re.findall(r"`(lightning_tracin\.attribute\([^`]+)`", told)
    pl.seed_everything(3)
    known = {"lightning_tracin": lightning_tracin, "module": Classifier(), "train_loader": train, "probe_loaders": probes}
    eval(line, {**known, **names})


def test_representations_that_are_not_stored_are_used_all_the_same(tmp_path: Path, whole: dict[str, bytes]) -> None:
    name = "representations.safetensors"
    (told,) = fitted(tmp_path, lambda: full_disk(tmp_path / "run" / "results" / name))
    assert f"not written: {name} (No space left on device)" in told
    assert contents(tmp_path / "run") == whole
    run_line(told)
    assert TracInRun.open(tmp_path / "run").representations()[0].shape[0] == 30


def full_folder(folder: Path) -> None:
    """Make the disk full for the shards of a snapshot's products."""
    for start, count in itertools.product(range(31), range(31)):
        full_disk(folder / f"{start:04d}+{count:04d}-00000.safetensors")


def test_influence_that_finds_the_disk_full_does_not_end_the_fit(tmp_path: Path, whole: dict[str, bytes]) -> None:
    languages = ["de", "en", "ru"] * 10
    (told,) = fitted(tmp_path, lambda: full_folder(tmp_path / "run" / "ingredients" / "0000-step5"), languages=languages)
    assert "the influence at snapshot 0000-step5 could not be stored (No space left on device)" in told
    assert "languages=languages)`" in told
    assert len(TracInRun.open(tmp_path / "run").snapshots) == 2
    for link in (tmp_path / "run").rglob("*.partial"):
        link.unlink()
    run_line(told, languages=languages)
    assert contents(tmp_path / "run") == whole


class BeforeTheLast(AtTheEnd):
    """Does something at the beginning of the last epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.work()


def test_influence_during_the_fit_that_finds_the_disk_full_is_computed_at_its_end(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    def fill() -> None:
        full_folder(tmp_path / "full")
        (tmp_path / "run" / "ingredients" / "0001-step10").symlink_to(tmp_path / "full")

    told = fitted(tmp_path, before_the_last=fill, when="snapshot")
    assert len(told) == 1
    assert "the influence at snapshot 0001-step10 could not be stored (No space left on device)" in told[0]
    assert contents(tmp_path / "run") == whole


def test_a_last_snapshot_that_finds_the_disk_full_does_not_end_the_fit(tmp_path: Path) -> None:
    def fill() -> None:
        full_disk(tmp_path / "full" / "weights.safetensors")
        (tmp_path / "run" / "snapshots" / "0001-step10").symlink_to(tmp_path / "full")

    (told,) = fitted(tmp_path, before_the_last=fill)
    assert "the snapshot 0001-step10 could not be written" in told
    assert "(No space left on device): the fit goes on" in told
    run = TracInRun.open(tmp_path / "run")
    assert [snapshot.step for snapshot in run.snapshots] == [5]
    assert run.influence().shape == (30, 12)
    assert (run.path / "results" / "report.html").exists()


def test_the_end_that_is_not_recorded_is_recorded_later(tmp_path: Path) -> None:
    told = fitted(tmp_path, lambda: full_disk(tmp_path / "run" / "run.json"), when="never")
    (said,) = told
    assert "the end of the fit could not be written to run.json (No space left on device)" in said
    run = TracInRun.open(tmp_path / "run")
    assert run.record.snapshots is None
    assert len(run.snapshots) == 2


ODD = ("$x$", "$\\bad$", "half \ud800 a letter", "nu\x00l", "esc \x1b[31m", "한국어", "a\r\nb", "🙂", "<b>", "_x", '"', "a\rb")


@pytest.mark.long
@pytest.mark.parametrize("names", [ODD[:6], ODD[6:]])
def test_odd_languages_and_texts_lose_nothing(tmp_path: Path, names: tuple[str, ...]) -> None:
    train, probes = with_texts(*loaders())
    for loader in (train, probes):
        data: Any = loader.dataset
        data.language = [names[index % len(names)] for index in range(len(data))]
        data.text = [f"{names[index % len(names)]} text" for index in range(len(data))]
        data.label = [names[0]] * len(data)
    columns = {"text_columns": ["text"], "label_column": "label"}
    told = fitted(tmp_path, several=(train, probes), **columns, logger=WandbLogger(save_dir=tmp_path, offline=True))
    assert not told
    assert {path.name for path in (tmp_path / "run" / "results").iterdir()} == EVERYTHING | {"language_keys.csv"}
    escaped = {name.encode("utf-8", "backslashreplace").decode() for name in names}
    assert {*TracInRun.open(tmp_path / "run").train.language} == escaped
    written = pd.read_csv(tmp_path / "run" / "results" / "top.csv", keep_default_na=False)
    assert {text.removesuffix(" text") for text in written["text"]} <= escaped
    for kind in ("csv", "parquet"):
        main(["export", "--run", str(tmp_path / "run"), "--folder", str(tmp_path / kind), "--format", kind])
        assert len(list((tmp_path / kind).iterdir())) == 7
    wandb.finish()
    logged = [path.name for path in tmp_path.glob("wandb/*/files/media/**/*.table.json")]
    assert len({name.partition("_table_")[0] for name in logged}) == 2 + len(names), logged


def test_surrogates_are_escaped_wherever_a_table_comes_from() -> None:
    table = SampleTable(("de\udc80",), ("1\ud800",), ("\ud83d\ude42",), (None,))
    assert table == SampleTable(("de\\udc80",), ("1\\ud800",), ("\\ud83d\\ude42",), (None,))


def test_the_command_ends_with_an_error_after_everything_else_is_written(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """`attribute`, by the command and from Python."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["trainer"]["default_root_dir"] = str(tmp_path)
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(tmp_path / "run")
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    LightningCLI(args=["fit", "--config", str(tmp_path / "fit.yaml")])
    full_disk(tmp_path / "run" / "results" / "top.csv")
    with pytest.raises(SystemExit) as ended:
        main(["attribute", "--run", str(tmp_path / "run"), "--config", str(tmp_path / "config.yaml")])
    said = str(ended.value.code)
    assert said.startswith("Error: TracIn: the influence is in")
    assert "not written: top.csv (No space left on device)" in said
    assert {path.name for path in (tmp_path / "run" / "results").iterdir()} == EVERYTHING - {"top.csv"}
    main(command(said)[1:])
    assert (tmp_path / "run" / "results" / "top.csv").exists()


def test_the_command_shows_what_the_attribution_was_asked_for(tmp_path: Path) -> None:
    fitted(tmp_path, when="never")
    full_disk(tmp_path / "run" / "results" / "reliance.csv")
    with pytest.raises(TracInError, match=r"results --run \S+ --k 7 --similarity relatif`") as caught:
        lightning_tracin.attribute(Classifier(), tmp_path / "run", *with_texts(*loaders()), top_k=7, similarity="relatif")
    main(command(str(caught.value))[1:])
    written = pd.read_csv(tmp_path / "run" / "results" / "reliance.csv").query("sign == 'positive' and not cumulative")
    for measure, table in written.groupby("measure"):
        expected = TracInRun.open(tmp_path / "run").reliance(7, similarity="relatif", measure=measure)
        assert table["value"].tolist() == pytest.approx(expected["value"].tolist())


def test_export_writes_what_it_can_and_ends_with_an_error(tmp_path: Path) -> None:
    fitted(tmp_path)
    full_disk(tmp_path / "tables" / "top.csv")
    with pytest.raises(SystemExit, match=r"Written to .*Not written: top.csv \(No space left on device\)"):
        main(["export", "--run", str(tmp_path / "run"), "--folder", str(tmp_path / "tables")])
    assert len(list((tmp_path / "tables").iterdir())) == 6


def test_an_import_that_finds_the_disk_full_can_be_made_again(tmp_path: Path) -> None:
    fitted(tmp_path / "fit", when="never")
    given = (tmp_path / "old", tmp_path / "fit" / "checkpoints", Classifier(), *with_texts(*loaders()))
    full_disk(tmp_path / "old" / "run.json")
    with pytest.raises(TracInError, match=r"run\.json cannot be written \(No space left on device\)"):
        import_checkpoints(*given, top_k=5)
    run = import_checkpoints(*given, top_k=5)
    with size_limit(5_000), pytest.raises(TracInError, match="cannot be written"):
        lightning_tracin.attribute(Classifier(), run, *with_texts(*loaders()))
    assert lightning_tracin.attribute(Classifier(), run, *with_texts(*loaders())).influence().shape == (30, 12)
