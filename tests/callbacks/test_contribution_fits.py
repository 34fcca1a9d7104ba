"""Odd fits, errors and settings: an account is right, empty, or refused with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset as Stored
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_tracin import ContributionCallback, TracInCallback, TracInError, TracInRun
from lightning_tracin.storage.account import AccountStore
from tests.support.accounted_fits import Module, Tokens, fit, loader, numbers, probes, require_same, rows, without_language
from tests.support.fits import trainer


def steps(folder: Path) -> list[tuple[int, int]]:
    return [one["steps"][:2] for one in numbers(folder)]


def plain(folder: Path, train: Any, module: Any, **settings: Any) -> Any:
    """The same fit without the callback."""
    trainer(folder, settings.pop("callbacks", []), precision="64-true", **{"max_epochs": 2, **settings}).fit(
        module, train, probes()
    )
    return module


def require_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Validating(Module):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val", torch.nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"]))


class Skipping(Validating):
    """Has no loss for the second batch of an epoch."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class Breaking(Validating):
    """Ends an epoch before its fourth batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


class Dropping(Validating):
    """Takes no notice of the second batch."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return None if self.trainer.training and torch.equal(batch["tokens"], Tokens(20, seed=1).tokens[4:8]) else batch


class Stopping(Validating):
    def on_train_batch_end(self, *_: Any) -> None:
        self.trainer.should_stop = self.trainer.global_step >= 4


class Looking(Validating):
    """Goes over the train samples in the middle of an epoch."""

    def on_train_batch_end(self, *_: Any) -> None:
        assert len(list(self.trainer.train_dataloader)) == 5


class Renewing(Validating):
    """Has other train samples in each epoch, in other languages."""

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch
        return DataLoader(Tokens(20, seed=epoch, languages=("de", "en") if epoch else ("uk",)), batch_size=4)


class Changing(Validating):
    """Changes the train samples in each epoch, in place."""

    def on_train_epoch_start(self) -> None:
        dataset = self.trainer.train_dataloader.dataset
        dataset.language = dataset.language[::-1] if self.trainer.current_epoch else ["uk"] * 20


WHOLE = [(1, 3), (4, 6), (7, 9), (10, 10)]

FITS: dict[str, tuple[type[Module], dict[str, Any], list[tuple[int, int]]]] = {
    "limited": (Validating, {"limit_train_batches": 2}, [(1, 3), (4, 4)]),
    "limited, stream": (Validating, {"limit_train_batches": 2, "stream": True}, [(1, 3), (4, 4)]),
    "steps": (Validating, {"max_steps": 7, "max_epochs": -1}, [(1, 3), (4, 6), (7, 7)]),
    "skipped batch": (Skipping, {}, WHOLE),
    "skipped batch, accumulated": (Skipping, {"accumulate_grad_batches": 2}, [(1, 3), (4, 6)]),
    "dropped batch": (Dropping, {}, [(1, 3), (4, 6), (7, 8)]),
    "dropped batch, stream": (Dropping, {"stream": True}, [(1, 3), (4, 6), (7, 8)]),
    "broken epoch": (Breaking, {}, [(1, 3), (4, 6)]),
    "broken epoch, stream": (Breaking, {"stream": True}, [(1, 3), (4, 6)]),
    "broken epoch, accumulated": (Breaking, {"accumulate_grad_batches": 2}, [(1, 2)]),
    "should stop": (Stopping, {}, [(1, 3), (4, 4)]),
    "another pass": (Looking, {}, WHOLE),
    "another pass, stream": (Looking, {"stream": True}, WHOLE),
    "validation within epochs": (Validating, {"val_check_interval": 2}, WHOLE),
    "sanity check": (Validating, {"num_sanity_val_steps": 2}, WHOLE),
    "overfit": (Validating, {"overfit_batches": 2}, [(1, 3), (4, 4)]),
    "reloaded": (Renewing, {"reload_dataloaders_every_n_epochs": 1}, WHOLE),
    "changed in place": (Changing, {}, WHOLE),
}


class Rows(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset = Tokens(20, seed=1)
        yield from ({**dataset[index], "language": dataset.language[index]} for index in range(20))


class Counting(Callback):
    """Counts the languages of the samples that steps were made with."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch is not None:
            self.tokens.append(batch["tokens"])


@pytest.mark.parametrize("name", FITS)
def test_odd_fits_are_accounted_for(tmp_path: Path, name: str) -> None:
    kind, settings, expected = FITS[name]
    settings = dict(settings)

    def train(is_stream: bool = settings.pop("stream", False)) -> Any:
        if kind is Renewing:
            return None
        return DataLoader(Rows(), batch_size=4, collate_fn=without_language) if is_stream else loader(shuffle="overfit" in name)

    counting = Counting()
    torch.manual_seed(3)
    module = fit(tmp_path, train(), kind(), callbacks=[counting], **settings)
    torch.manual_seed(3)
    require_same_weights(module, plain(tmp_path, train(), kind(), **settings))
    assert steps(tmp_path) == expected
    found: dict[str, int] = {}
    for window in numbers(tmp_path):
        for language, count in window["samples"].items():
            found[language] = found.get(language, 0) + count
        split = sum(value for key, value in window.items() if key.startswith("nats"))
        change = (window["before"] - window["after"]).reshape(3, 3).mean(0)
        assert float((split.reshape(3, 3).mean(0) - change).norm()) < 0.05 * max(float(change.norm()), 0.02)
    if kind is Renewing:
        assert found == {"uk": 20, "de": 10, "en": 10}
    elif kind is Changing:
        assert found["uk"] == 20
    else:
        dataset = Tokens(20, seed=1)
        seen = [int((dataset.tokens == one).all(1).nonzero()[0]) for batch in counting.tokens for one in batch]
        if kind is Breaking and "accumulated" in name:  # the third batch of an epoch was not stepped with
            seen = [*seen[:8], *seen[12:20]]
        languages = [dataset.language[index] for index in seen]
        assert found == {language: languages.count(language) for language in sorted(set(languages))}


@pytest.mark.parametrize("settings", [{"fast_dev_run": 2}, {"barebones": True}], ids=["fast_dev_run", "barebones"])
def test_short_and_bare_fits_are_left_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    bare = (
        {}
        if "fast_dev_run" in settings
        else {"enable_checkpointing": None, "logger": None, "enable_progress_bar": None, "enable_model_summary": None}
    )
    fit(tmp_path, loader(), **settings, **bare)
    assert not (tmp_path / "run").exists()


def test_two_fits_with_one_trainer_and_one_callback(tmp_path: Path) -> None:
    account = ContributionCallback(tmp_path / "run", window=3, dtype="float64", overwrite=True)
    fitting, train = trainer(tmp_path, [account], precision="64-true", max_epochs=2), loader()
    fitting.fit(Module(), train, probes())
    first = numbers(tmp_path)
    trainer(tmp_path, [account], precision="64-true", max_epochs=2).fit(Module(), train, probes())
    require_same(numbers(tmp_path), first, 0.0)
    fitting.fit_loop.max_epochs = 3
    fitting.fit(Module(), train, probes())
    assert AccountStore(tmp_path / "run").record().began_at == 10
    assert steps(tmp_path) == [(11, 13), (14, 15)]


def test_two_callbacks_account_by_two_columns(tmp_path: Path) -> None:
    class Domains(Tokens):
        domain = ["news", "web"] * 10

    def make(name: str, **options: Any) -> ContributionCallback:
        given = DataLoader(OfDomains(9, seed=2), batch_size=4)
        return ContributionCallback(
            tmp_path / name / "run", given, window=3, dtype="float64", probes_per_language=None, **options
        )

    class OfDomains(Tokens):
        domain = ["web", "web", "news"] * 3

    fitting = trainer(tmp_path, [make("a"), make("b", group_column="domain")], precision="64-true", max_epochs=2)
    fitting.fit(Module(), DataLoader(Domains(20, seed=1), batch_size=4))
    assert steps(tmp_path / "a") == steps(tmp_path / "b") == WHOLE
    assert numbers(tmp_path / "a")[0]["samples"] == {"de": 4, "en": 4, "ru": 4}
    assert numbers(tmp_path / "b")[0]["samples"] == {"news": 6, "web": 6}
    assert AccountStore(tmp_path / "b" / "run").record().groups == ("web", "web", "news") * 3
    for one, other in zip(numbers(tmp_path / "a"), numbers(tmp_path / "b"), strict=True):
        assert torch.equal(one["after"], other["after"])
        sums = [sum(value for key, value in each.items() if key.startswith("nats")).sum() for each in (one, other)]
        assert float(sums[0]) == pytest.approx(float(sums[1]), rel=1e-9)
    assert not vars(fitting.fit_loop).keys() & {"setup_data"}


def test_pairs_of_columns(tmp_path: Path) -> None:
    class Pairs(Tokens):
        source, target = ["en", "de"] * 10, ["de", "ru", "de", "uk"] * 5

    class Few(Tokens):
        source, target = ["en"] * 9, ["de"] * 9

    account = ContributionCallback(tmp_path / "run", DataLoader(Few(9, seed=2)), language_column=("source", "target"), window=9)
    trainer(tmp_path, [account], max_epochs=1, precision="64-true").fit(Module(), DataLoader(Pairs(20, seed=1), batch_size=4))
    assert numbers(tmp_path)[0]["samples"] == {"de>ru": 5, "de>uk": 5, "en>de": 10}


def test_languages_may_be_given(tmp_path: Path) -> None:
    given = [f"l{index % 2}" for index in range(20)]
    fit(tmp_path, loader(), options={"languages": given, "window": 100}, max_epochs=1)
    assert numbers(tmp_path)[0]["samples"] == {"l0": 10, "l1": 10}


def test_one_loader_in_a_list_or_mapping(tmp_path: Path) -> None:
    class Listed(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if isinstance(batch, list | dict) and "tokens" not in batch:
                (batch,) = batch.values() if isinstance(batch, dict) else batch
            return super().training_step(batch, batch_idx)

    fit(tmp_path / "one", loader())
    for name, train in (("list", [loader()]), ("mapping", {"a": loader()})):
        fit(tmp_path / name, train, Listed())
        require_same(numbers(tmp_path / name), numbers(tmp_path / "one"), 0.0)


def test_two_callbacks_of_one_directory_are_refused(tmp_path: Path) -> None:
    callbacks = [ContributionCallback(tmp_path / "run"), ContributionCallback(tmp_path / "run", group_column="domain")]
    with pytest.raises(TracInError, match=r"Two ContributionCallbacks of this Trainer write to .*run; give each a `dirpath`"):
        trainer(tmp_path, callbacks).fit(Module(), loader(), probes())


def both(folder: Path, snapshots: dict[str, Any], account: dict[str, Any]) -> None:
    callbacks = [
        TracInCallback(folder / "run", top_k=3, **snapshots),
        ContributionCallback(folder / "run", window=3, dtype="float64", **account),
    ]
    trainer(folder, callbacks, precision="64-true", max_epochs=2).fit(Validating(), loader(shuffle=True), probes())


def test_both_callbacks_share_a_directory(tmp_path: Path) -> None:
    torch.manual_seed(1)
    both(tmp_path, {}, {})
    torch.manual_seed(1)
    fit(tmp_path / "alone", loader(shuffle=True), Validating())
    require_same(numbers(tmp_path), numbers(tmp_path / "alone"), 0.0)
    assert len(TracInRun.open(tmp_path / "run").snapshots) == 2
    first = AccountStore(tmp_path / "run").record().account

    with pytest.raises(TracInError, match="holds another account"):
        both(tmp_path, {"overwrite": True}, {})
    assert AccountStore(tmp_path / "run").record().account == first
    with pytest.raises(TracInError, match="holds another run"):
        both(tmp_path, {}, {"overwrite": True})
    both(tmp_path, {"overwrite": True}, {"overwrite": True})
    assert AccountStore(tmp_path / "run").record().account != first
    assert steps(tmp_path) == WHOLE


def test_stored_languages_count_even_if_raw_samples_have_others(tmp_path: Path) -> None:
    """The column of a `datasets` dataset is read where it is stored, whatever a transform makes of it."""
    stored = Stored.from_list(
        [{**row, "tokens": row["tokens"].tolist(), "labels": int(row["labels"]), "language": "de"} for row in rows()]
    )
    stored.set_transform(
        lambda batch: {
            **{name: [torch.tensor(one) for one in batch[name]] for name in ("tokens", "labels")},
            "language": [0] * len(batch["labels"]),
        }
    )
    fit(tmp_path, DataLoader(stored, batch_size=4), options={"window": 100})  # type: ignore[arg-type]
    assert numbers(tmp_path)[0]["samples"] == {"de": 16}
