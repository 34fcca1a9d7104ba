"""By default, influence is computed live where that is cheap, and the run goes on with what was decided."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.config import Options
from lightning_tracin.trainer.live import choice, samples_between_snapshots
from tests.support.fits import Classifier, loaders, trainer
from tests.support.models import padded


class Seen(pl.Callback):
    """Notes which snapshots have influence when an epoch begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributed: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.attributed.append(len(list((self.path / "ingredients").glob("*"))))


def fitted(folder: Path, epochs: int = 2, others: Sequence[pl.Callback] = (), resume: Path | None = None, **options: Any) -> str:
    """What the run says of when its influence is computed."""
    callback = TracInCallback(folder / "run", top_k=5, **options)
    fit = trainer(folder, [callback, *others], max_epochs=epochs, enable_checkpointing=True)
    fit.fit(Classifier(), *loaders(), ckpt_path=resume)
    return str(TracInRun.open(folder / "run").record.options.when)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "influence is computed" in record.getMessage()]


def test_a_snapshot_each_epoch_is_left_to_the_end_and_a_line_says_how_to_have_it_live(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(tmp_path / "run")
    assert fitted(tmp_path, others=[seen]) == "fit_end"
    assert seen.attributed == [0, 0]
    (said,) = lines(caplog)
    found = re.fullmatch(
        r"TracIn: influence is computed at the end of the fit, because that of a snapshot takes about (\d+) % of the time of the "
        r"training between two snapshots; `when='snapshot'` computes it live\.",
        said,
    )
    assert found is not None
    assert int(found[1]) >= 100  # it goes over all train samples, and the probes beside


def test_snapshots_that_are_many_epochs_apart_are_live(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert fitted(tmp_path, every_n_epochs=500) == "snapshot"
    (said,) = lines(caplog)
    assert re.fullmatch(
        r"TracIn: influence is computed live, because that of a snapshot takes about \d % of the time of the training between "
        r"two snapshots; `when='fit_end'` leaves it to the end\.",
        said,
    )


def test_live_influence_is_there_before_the_fit_goes_on(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "run")
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    assert fitted(tmp_path, 1, [checkpoint], every_n_epochs=500) == "snapshot"
    resumed = fitted(tmp_path, 3, [seen], tmp_path / "checkpoints" / "epoch=0.ckpt", every_n_epochs=1)
    assert resumed == "snapshot"  # as it was decided, although the snapshots of this part are an epoch apart
    assert seen.attributed == [1, 2]


@pytest.mark.parametrize("when", ["fit_end", "snapshot", "never"])
def test_what_is_asked_for_is_done(tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture) -> None:
    assert fitted(tmp_path, 1, every_n_epochs=500, when=when) == when
    assert lines(caplog) == []


def test_a_run_that_only_took_snapshots_is_decided_when_it_goes_on(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    assert fitted(tmp_path, 1, [checkpoint], when="never") == "never"
    assert fitted(tmp_path, 2, resume=tmp_path / "checkpoints" / "epoch=0.ckpt") == "fit_end"


@pytest.mark.parametrize(("influence", "training", "when"), [(9.9, 100.0, "snapshot"), (10.0, 100.0, "fit_end")])
def test_a_tenth_is_the_limit(influence: float, training: float, when: str) -> None:
    assert choice(influence, training)[0] == when


def test_a_loader_without_a_batch_size_leaves_it_to_the_end(tmp_path: Path) -> None:
    train, probes = loaders()
    batches = BatchSampler(RandomSampler(train.dataset), batch_size=7, drop_last=False)  # type: ignore[arg-type]
    unknown = DataLoader(train.dataset, batch_sampler=batches, collate_fn=padded)
    fit = trainer(tmp_path, [], max_epochs=1, logger=CSVLogger(tmp_path))
    fit.fit(Classifier(), unknown, probes)
    assert unknown.batch_size is None
    assert samples_between_snapshots(Options(every_n_epochs=3), fit) is None
    assert choice(1.0, None) == (
        "fit_end",
        "TracIn: influence is computed at the end of the fit, because it is not known how long training takes between two "
        "snapshots; `when='snapshot'` computes it live.",
    )


@pytest.mark.parametrize(
    ("options", "samples"), [({"every_n_epochs": 3}, 3 * 5 * 7), ({"every_n_train_steps": 4}, 4 * 2 * 7)], ids=["epochs", "steps"]
)
def test_samples_between_snapshots_are_those_of_the_batches_between(
    tmp_path: Path, options: dict[str, int], samples: int
) -> None:
    fit = trainer(tmp_path, [], max_epochs=1, accumulate_grad_batches=2)
    fit.fit(Classifier(), *loaders(batch_size=7))
    assert samples_between_snapshots(Options(**options), fit) == samples
