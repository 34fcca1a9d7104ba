"""Bad input gets an error that names the thing, the value and the remedy, before the fit has made a step."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from lightning_tracin import TracInCallback, TracInError, TracInRun
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded, ragged_samples


def refused(folder: Path, message: str, module: pl.LightningModule | None = None, data: Any = None, **options: Any) -> None:
    """Fit with the callback; it must raise that message before any optimizer step."""
    module = module or Classifier()
    settings = {"top_k": 5, **options}
    fit = trainer(folder, [TracInCallback(folder / "run", **settings)])
    train, probes = data or loaders()
    with pytest.raises(TracInError, match=message):
        fit.fit(module, train, probes)
    assert fit.global_step == 0


def loader(dataset: Any, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **{"batch_size": 7, "collate_fn": padded, **settings})


def test_no_language_column_names_the_columns(tmp_path: Path) -> None:
    rows = Dataset.from_list([{**sample, "lang": "de"} for sample in ragged_samples(30)])
    refused(
        tmp_path,
        r"train samples have no column or attribute 'language'.*'input_ids', 'labels', 'lang'.*`language_column=",
        data=(loader(rows), loaders()[1]),
    )


def test_language_list_of_the_wrong_length(tmp_path: Path) -> None:
    refused(tmp_path, r"29 languages were given for 30 train samples; give one for each", languages=["de"] * 29)


def test_language_list_of_probes_of_the_wrong_length(tmp_path: Path) -> None:
    refused(tmp_path, r"11 languages were given for 12 probes; give one for each", languages_of_probes=["de"] * 11)


def test_sample_without_a_language(tmp_path: Path) -> None:
    data = Samples(30, 1)
    data.language[4] = None  # type: ignore[call-overload]
    refused(tmp_path, r"Sample 4 of the train samples has no language", data=(loader(data), loaders()[1]))


def test_no_probes(tmp_path: Path) -> None:
    refused(tmp_path, r"There are no probes: .*`probes=DataLoader", data=(loaders()[0], None))


def test_probe_language_without_samples(tmp_path: Path) -> None:
    refused(tmp_path, r"probe language 'fr' has no samples; the probes have 'de', 'en', 'ru'", probe_languages=["de", "fr"])


def test_iterable_dataset(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(ragged_samples(30))

    refused(tmp_path, r"Stream, an iterable dataset.*Use a map-style dataset", data=(loader(Stream()), loaders()[1]))


def test_several_train_loaders(tmp_path: Path) -> None:
    class Both(Classifier):
        def training_step(self, batch: list[dict[str, Tensor]], batch_idx: int) -> Tensor:
            return self.model(**batch[0]).loss + self.model(**batch[1]).loss

    several = [loaders()[0], loaders()[0]]
    refused(tmp_path, r"got 2 loaders in a list.*ConcatDataset", module=Both(), data=(several, loaders()[1]))


def test_datasets_of_whole_batches(tmp_path: Path) -> None:
    class Batches(torch.utils.data.Dataset[Any]):
        language = ("de", "en")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return padded(ragged_samples(4, seed=index))

    whole = DataLoader(Batches(), batch_size=None)
    refused(tmp_path, r"batch_size=None, so its dataset yields whole batches", data=(whole, loaders()[1]))


def test_k_larger_than_the_train_set(tmp_path: Path) -> None:
    refused(tmp_path, r"top_k=31 is larger than the train set \(30 samples\)", top_k=31)


def test_loss_that_is_not_a_mean_over_samples(tmp_path: Path) -> None:
    class Rooted(Classifier):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.model(**batch).loss.sqrt()

    refused(tmp_path, r"neither the mean nor the sum of its samples' losses.*per_sample_loss\(self, batch\)", module=Rooted())


def test_per_sample_loss_of_the_wrong_shape(tmp_path: Path) -> None:
    class Scalar(Classifier):
        def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
            return self.model(**batch).loss

    refused(tmp_path, r"should return a tensor of shape \[5\].*returned \[\]", module=Scalar())


def test_per_sample_loss_that_mixes_samples(tmp_path: Path) -> None:
    class Mixed(Classifier):
        def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
            logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
            return nn.functional.cross_entropy(logits - logits.mean(0), batch["labels"], reduction="none")

    refused(tmp_path, r"`per_sample_loss` sum to .* for a batch of 5 train samples, but .* one at a time", module=Mixed())


def test_manual_optimization_needs_a_per_sample_loss(tmp_path: Path) -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    refused(tmp_path, r"optimizes manually.*per_sample_loss", module=Manual())


def test_training_step_without_a_loss(tmp_path: Path) -> None:
    class Silent(Classifier):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            return None

    refused(tmp_path, r"`training_step` should return a scalar loss .* but returned NoneType", module=Silent())


def test_loader_that_draws_from_a_part_of_its_dataset(tmp_path: Path) -> None:
    part = loader(Samples(30, 1), sampler=SubsetRandomSampler(range(10)))
    refused(tmp_path, r"draws from a part of its dataset only .*Subset", data=(part, loaders()[1]))


def test_one_string_where_a_list_is_due() -> None:
    with pytest.raises(TracInError, match=r"parameters should be a list of strings, but is the string '\*.classifier.\*'"):
        TracInCallback(parameters="*.classifier.*")  # type: ignore[arg-type]


def test_parameter_pattern_that_matches_nothing(tmp_path: Path) -> None:
    refused(tmp_path, r"pattern 'encoder\.\*' in `parameters` matches no trainable parameter", parameters=["encoder.*"])


def test_embedding_whose_gradient_depends_on_the_batch(tmp_path: Path) -> None:
    module = Classifier()
    module.model.roberta.embeddings.word_embeddings.scale_grad_by_freq = True
    refused(tmp_path, r"word_embeddings' has scale_grad_by_freq=True", module=module)


class Infinite(Classifier):
    """A loss that is not finite on one sample, from a given step on."""

    def __init__(self, marked: int, value: float) -> None:
        super().__init__()
        self.marked, self.value = marked, value
        self.armed = True

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        hit = bool((batch["input_ids"] == self.marked).any()) and self.armed and not self.training
        return loss * self.value if hit else loss

    def on_train_start(self) -> None:
        self.armed = True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_names_sample_and_snapshot(tmp_path: Path, value: float) -> None:
    train, probes = loaders()
    train.dataset.samples[17]["input_ids"][1] = 3  # a token that no other sample has
    module = Infinite(3, value)
    module.armed = False  # armed when the fit starts, after the check
    fit = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1)
    with pytest.raises(TracInError, match=rf"loss of train sample 17 \(language 'ru'\) is {value} at snapshot 0000-step5"):
        fit.fit(module, train, probes)


def test_gradient_that_is_not_finite_names_sample_and_snapshot(tmp_path: Path) -> None:
    class Steep(Infinite):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            output = self.model(**batch)
            if self.armed and not self.training:
                hit = (batch["input_ids"] == self.marked).any(1)
                zero = torch.where(hit, output.logits.sum(1) * 0, torch.ones(len(hit)))
                return output.loss + (zero.sqrt() - zero.detach().sqrt()).mean()  # sqrt has no gradient at 0
            return output.loss

    train, probes = loaders()
    train.dataset.samples[8]["input_ids"][1] = 3
    module = Steep(3, 1.0)
    module.armed = False
    fit = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1)
    with pytest.raises(TracInError, match=r"gradient of train sample 8 \(language 'ru'\) is not finite at snapshot 0000-step5"):
        fit.fit(module, train, probes)


def test_directory_that_holds_another_run(tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(tmp_path / "run", when="never")], max_epochs=1).fit(Classifier(), *loaders())
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    refused(tmp_path, r"run holds another run \(.*30 train samples, 12 probes, 1 snapshots\)\. Choose another `dirpath`")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def free(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """A disk that has these numbers of bytes free, one look after another; the last one stays."""
    usage, left = namedtuple("usage", "total used free"), list(sizes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_000_000, 500_000, left.pop(0) if len(left) > 1 else left[0]))


def test_disk_that_cannot_hold_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 30_000)
    refused(tmp_path, r"has 30\.0 kB free, but one snapshot needs 62\.6 kB; take fewer snapshots \(`every_n_epochs")


def test_disk_for_some_of_the_snapshots_is_a_warning_and_the_fit_goes_on_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 150_000, 150_000, 150_000, 60_000)
    callback = TracInCallback(tmp_path / "run", top_k=5)
    fitting = trainer(tmp_path, [callback], max_epochs=1000, max_steps=20)
    with (
        pytest.warns(UserWarning, match=r"150\.0 kB free, which is enough for 2 of 1000 snapshots \(62\.6 kB each\)"),
        pytest.warns(UserWarning, match=r"60\.0 kB free, but the next .* need .*: the fit goes on, and no more snapshots"),
    ):
        fitting.fit(Classifier(), *loaders())
    assert fitting.global_step == 20
    run = TracInRun.open(tmp_path / "run")
    assert [snapshot.step for snapshot in run.snapshots] == [5]
    assert run.influence().shape == (30, 12)


def crashed(folder: Path, after: int) -> None:
    """A fit that fails after some steps."""

    class Crashing(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == after:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(folder, [TracInCallback(folder / "run", top_k=5)], max_epochs=2).fit(Crashing(), *loaders())


def test_a_run_without_snapshots_is_replaced_and_a_line_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crashed(tmp_path, after=3)
    first = TracInRun.open(tmp_path / "run").record.run
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1).fit(Classifier(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert run.record.run != first
    assert len(run.snapshots) == 1
    assert "replacing the run in" in caplog.text
    assert "which has no snapshots" in caplog.text


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crashed(tmp_path, after=7)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    refused(tmp_path, r"holds another run .* replace it with `overwrite=True`")
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, overwrite=True)], max_epochs=2)
    fitting.fit(Classifier(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert [snapshot.step for snapshot in run.snapshots] == [5, 10]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert "as `overwrite=True` asks for" in caplog.text


@pytest.mark.parametrize("name", ["run.json", "samples"])
def test_overwrite_replaces_what_is_left_of_a_run(tmp_path: Path, name: str) -> None:
    crashed(tmp_path, after=7)
    left = tmp_path / "run" / name
    if left.is_dir():
        shutil.rmtree(left)
    else:
        left.unlink()
    callback = TracInCallback(tmp_path / "run", top_k=5, overwrite=True)
    trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    assert len(TracInRun.open(tmp_path / "run").snapshots) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "euclid"}, "similarity should be one of 'cosine', 'dot', 'relatif', but is 'euclid'"),
        ({"weighting": "none"}, "weighting should be one of 'uniform', 'learning_rate', but is 'none'"),
        ({"when": "later"}, "when should be one of 'auto', 'fit_end', 'snapshot', 'never', but is 'later'"),
        ({"dtype": "float16"}, "dtype should be one of"),
        ({"every_n_epochs": 0}, "every_n_epochs should be 1 or more, but is 0"),
        ({"top_k": 0}, "top_k should be 1 or more, but is 0"),
        ({"every_n_epochs": 1, "every_n_train_steps": 5}, "not both"),
        ({"when": "never", "keep_snapshots": False}, "would keep nothing"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        TracInCallback(**options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    folder = tmp_path_factory.mktemp("fit")
    trainer(folder, [TracInCallback(folder / "run", top_k=5)], max_epochs=1).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def test_reading_out_of_range(run: TracInRun) -> None:
    for ask, message in (
        (lambda: run.reliance(k=31, measure="share"), r"k should be between 1 and the number of train samples \(30\), but is 31"),
        (lambda: run.top(12), r"no probe 12; the run has probes 0 to 11"),
        (lambda: run.influence(snapshots=[1]), r"no snapshot 1; the run has 1"),
        (
            lambda: run.reliance(measure="mean", sign="negative"),
            r"measure='mean' adds up influence with its sign, .* leave `sign`",
        ),
        (lambda: run.plot.heat_map("share"), r"measure='share' has no sign; draw it with `lift` or `curves`"),
        (lambda: run.reliance(k=5, measure="weight"), r"measure should be one of"),
    ):
        with pytest.raises(TracInError, match=message):
            ask()


def test_reading_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"run\.json is missing"):
        TracInRun.open(tmp_path)


def test_reading_scores_that_were_never_computed(tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(tmp_path / "run", when="never")], max_epochs=1).fit(Classifier(), *loaders())
    with pytest.raises(TracInError, match=r"0000-step5 holds no ingredients"):
        TracInRun.open(tmp_path / "run").influence()
