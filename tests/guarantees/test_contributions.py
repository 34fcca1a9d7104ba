"""What contributions mean: closed forms, sums that are measured, and data that did nothing or the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_tracin import ContributionCallback, TracInRun
from lightning_tracin.attribution import window_length
from tests.support.fits import trainer
from tests.support.models import padded, tiny_xlmr

Floats = npt.NDArray[np.float64]

LANGUAGES = ("de", "en", "ru")


def accounted(
    folder: Path, module: pl.LightningModule, train: Dataset[Any], probes: Dataset[Any], batch: int, settings: Any, **options: Any
) -> TracInRun:
    """A fit with an account of all its probes, in the order of the samples unless `shuffle` is set."""
    collate = settings.pop("collate_fn", None)
    shuffle = settings.pop("shuffle", False)
    account = ContributionCallback(folder / "run", **{"probes_per_language": None, **options})
    trainer(folder, [account], limit_val_batches=0, num_sanity_val_steps=0, **settings).fit(
        module,
        DataLoader(train, batch_size=batch, shuffle=shuffle, collate_fn=collate),
        DataLoader(probes, batch_size=16, collate_fn=collate),
    )
    return TracInRun.open(folder / "run")


def whole(run: TracInRun) -> pd.DataFrame:
    """Nats over the whole fit: a row for each probe group, a column for each source, and the measured fall."""
    table = run.contributions(cumulative=True)
    table = table[table["window"] == table["window"].max()]
    probe, train = f"probe_{run.account.record().by}", f"train_{run.account.record().by}"
    nats = table.pivot(index=probe, columns=train, values="nats")
    return nats.assign(fall=table.groupby(probe)["fall"].first())


# -- the closed form


class Points(Dataset[dict[str, Any]]):
    """Inputs and targets of a linear model, with a language and a domain each."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.inputs, self.targets = draw.normal(size=(count, 4)), draw.normal(size=count)
        self.language = [LANGUAGES[index] for index in draw.integers(3, size=count)]
        self.domain = [("news", "web")[index] for index in draw.integers(2, size=count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": torch.from_numpy(self.inputs[index]), "targets": torch.tensor(self.targets[index])}


class Regression(pl.LightningModule):
    """A linear model with the squared loss."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.linear, self.momentum = nn.Linear(4, 1, bias=False, dtype=torch.float64), momentum
        nn.init.zeros_(self.linear.weight)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return (self.linear(batch["inputs"])[:, 0] - batch["targets"]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=_RATE, momentum=self.momentum)


_RATE, _BATCH, _EPOCHS = 0.05, 4, 3


def slope(data: Points, rows: Sequence[int], weights: Floats) -> Floats:
    """The gradient of the sum of some samples' squared losses."""
    inputs, targets = data.inputs[list(rows)], data.targets[list(rows)]
    return 2 * inputs.T @ (inputs @ weights - targets)


def closed_form(train: Points, probes: Points, by: str, momentum: float, window: int) -> dict[tuple[int, str, str], float]:
    """(window, probe group, train group) -> nats.

    Along the straight way through a window the gradient of a squared loss is linear, so its mean is that in the middle.
    """
    groups: list[str] = getattr(train, by)
    of_probes: list[str] = getattr(probes, by)
    weights, velocity = np.zeros(4), {group: np.zeros(4) for group in set(groups)}
    found: dict[tuple[int, str, str], float] = {}
    begin, moved, steps = weights, {group: np.zeros(4) for group in velocity}, 0
    batches = [range(at, min(at + _BATCH, len(train))) for at in range(0, len(train), _BATCH)] * _EPOCHS
    for batch in batches:
        for group, mine in velocity.items():
            rows = [row for row in batch if groups[row] == group]
            velocity[group] = momentum * mine + slope(train, rows, weights) / len(batch)
        for group, mine in velocity.items():
            moved[group] = moved[group] - _RATE * mine
        weights, steps = begin + sum(moved.values()), steps + 1
        if steps % window and steps < len(batches):
            continue
        for probe in set(of_probes):
            rows = [row for row, name in enumerate(of_probes) if name == probe]
            mean = slope(probes, rows, (begin + weights) / 2) / len(rows)
            found |= {(-(-steps // window), probe, group): -float(mean @ mine) for group, mine in moved.items()}
        begin, moved = weights, {group: np.zeros(4) for group in velocity}
    return found


@pytest.mark.parametrize("by", ["language", "domain"])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_contributions_to_a_linear_model_are_the_closed_form(tmp_path, momentum, window, by):
    train, probes = Points(26, seed=1), Points(12, seed=2)
    options = {} if by == "language" else {"group_column": by}
    run = accounted(
        tmp_path,
        Regression(momentum),
        train,
        probes,
        _BATCH,
        {"max_epochs": _EPOCHS, "precision": "64-true"},
        window=window,
        dtype="float64",
        **options,
    )
    table, expected = run.contributions(), closed_form(train, probes, by, momentum, window)
    groups = table[table["is_group"]]
    found = {(row["window"], row[f"probe_{by}"], row[f"train_{by}"]): row["nats"] for _, row in groups.iterrows()}
    assert found.keys() == expected.keys()
    largest = max(map(abs, expected.values()))
    for key, nats in expected.items():
        assert found[key] == pytest.approx(nats, abs=1e-10 * largest), key
    unexplained = table.loc[table[f"train_{by}"] == "unexplained", "nats"].abs().max()
    assert unexplained < 1e-10 * largest
    assert set(table[f"train_{by}"]) == {*getattr(train, by), "unexplained"}


# -- a small transformer that learns a planted task


class Planted(Dataset[dict[str, Any]]):
    """Sentences whose class shows in their tokens, in languages that have half of their tokens in common.

    Args:
        count: of each language's sentences.
        seed: of the draws.
        languages: their names.
        noisy: languages whose classes are drawn at random instead.
    """

    def __init__(self, count: int, seed: int, languages: Sequence[str] = LANGUAGES, noisy: Sequence[str] = ()) -> None:
        draw = random.Random(seed)
        self.samples: list[dict[str, Any]] = []
        self.language: list[str] = []
        for place in range(count * len(languages)):
            number, label = place % len(languages), place // len(languages) % 3  # each class as often in each language
            own = 30 + 9 * number  # 27 tokens are common to all; 9 are a language's own
            threes = [draw.choice((range(3, 30), range(own, own + 9))[draw.randrange(2)]) // 3 for _ in range(draw.randint(4, 9))]
            inner = [3 * three + (label if draw.random() < 0.9 else draw.randrange(3)) for three in threes]
            name = languages[number]
            self.samples.append({"input_ids": [0, *inner, 2], "labels": draw.randrange(3) if name in noisy else label})
            self.language.append(name)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


class Encoder(pl.LightningModule):
    """A small encoder with AdamW and warm-up; before the fit all classes are equally likely."""

    def __init__(self, seed: int, rate: float = 2e-3) -> None:
        super().__init__()
        self.rate = rate
        self.model = tiny_xlmr(seed=seed, initializer_range=0.2)
        nn.init.zeros_(self.model.classifier.out_proj.weight)
        nn.init.zeros_(self.model.classifier.out_proj.bias)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learnt(folder: Path, train: Planted, probes: Planted, seed: int = 0, **options: Any) -> TracInRun:
    pl.seed_everything(seed, verbose=False)
    settings = {"max_epochs": 4, "collate_fn": padded, "shuffle": True}
    return accounted(folder, Encoder(seed), train, probes, 32, settings, **options)


@pytest.mark.long
@pytest.mark.parametrize(("window", "most"), [(1, 0.005), (None, 0.05)])
def test_contributions_add_up_to_the_measured_fall(tmp_path, window, most):
    found = whole(learnt(tmp_path, Planted(160, seed=1), Planted(8, seed=2), window=window))
    assert (found["fall"] > 0.5).all()
    assert (found["unexplained"].abs() <= most * found["fall"]).all(), found


def test_rough_windows_are_looked_at_at_more_points(tmp_path, monkeypatch):
    """A high rate makes the loss jump within a window; what the first points miss, more points find."""

    def left(name: str) -> float:
        pl.seed_everything(0, verbose=False)
        settings = {"max_epochs": 2, "collate_fn": padded, "shuffle": True}
        data = Planted(160, seed=1), Planted(8, seed=2)
        run = accounted(tmp_path / name, Encoder(0, rate=2e-2), *data, 32, settings, window=6)
        table = run.contributions()
        unexplained = table[(table["train_language"] == "unexplained") & ~table["is_group"]]
        return float(unexplained["nats"].abs().sum() / unexplained["fall"].abs().sum())

    refined = left("refined")
    monkeypatch.setattr(window_length, "DOUBLED", 0)
    assert refined < 0.005
    assert left("once") > 5 * refined


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_a_language_of_random_labels_does_not_help_the_others(tmp_path, seed):
    train, probes = Planted(200, seed=1 + seed, noisy=["ru"]), Planted(24, seed=100 + seed)
    others = whole(learnt(tmp_path, train, probes, seed=seed)).drop(index="ru")
    assert others["fall"].min() > 0.3
    assert others["ru"].sum() < 0


# -- groups at random


class Alike(Points):
    """Points that all follow one law, two to an item."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.targets = self.inputs @ np.array([1.0, -1.0, 0.5, 2.0]) + 0.5 * self.targets
        self.language = ["all"] * count
        self.item = [str(index // 2) for index in range(count)]


_PROBES = 40


def accounts_of_one_fit(folder: Path, train: Alike, groupings: Sequence[Sequence[str]]) -> list[pd.DataFrame]:
    """The rows of the whole fit of an account for each grouping of the train samples; all probes are one group."""
    callbacks = [
        ContributionCallback(
            folder / str(number),
            languages=groups,
            languages_of_probes=["all"] * _PROBES,
            probes_per_language=None,
            window=12,
            dtype="float64",
        )
        for number, groups in enumerate(groupings)
    ]
    pl.seed_everything(0, verbose=False)
    fitting = trainer(folder, callbacks, limit_val_batches=0, num_sanity_val_steps=0, max_epochs=2, precision="64-true")
    fitting.fit(
        Regression(momentum=0.9), DataLoader(train, batch_size=8, shuffle=True), DataLoader(Alike(_PROBES, seed=2), batch_size=20)
    )
    tables = []
    for number in range(len(groupings)):
        table = TracInRun.open(folder / str(number)).contributions(cumulative=True)
        mine = table[table["is_group"] & (table["window"] == table["window"].max())]
        tables.append(mine.set_index("train_language"))
    return tables


def sums(values: Floats, groups: Sequence[str]) -> dict[str, float]:
    """The sum of some values in each group."""
    return {group: float(values[np.array(groups) == group].sum()) for group in set(groups)}


_TRAIN, _DRAWS, _HALVINGS = 96, 20, 10


@pytest.fixture(scope="module")
def train() -> Alike:
    return Alike(_TRAIN, seed=1)


@pytest.fixture(scope="module")
def relabelled() -> list[list[str]]:
    """Languages at random, as many samples of each."""
    return [[LANGUAGES[i] for i in np.random.default_rng(draw).permutation(np.arange(_TRAIN) % 3)] for draw in range(_DRAWS)]


@pytest.fixture(scope="module")
def halved(train) -> list[list[str]]:
    """A and B by item, at random."""
    halves = [np.random.default_rng(100 + draw).permutation(np.arange(_TRAIN // 2) % 2) for draw in range(_HALVINGS)]
    return [["AB"[half[int(item)]] for item in train.item] for half in halves]


@pytest.fixture(scope="module")
def tables(train, relabelled, halved, tmp_path_factory) -> list[pd.DataFrame]:
    """First the account in which each sample is a group of its own."""
    alone = [str(index) for index in range(_TRAIN)]
    return accounts_of_one_fit(tmp_path_factory.mktemp("runs"), train, [alone, *relabelled, *halved])


@pytest.fixture(scope="module")
def each(tables) -> Floats:
    """What each train sample contributed."""
    return tables[0]["nats"].reindex([str(index) for index in range(_TRAIN)]).to_numpy()


@pytest.mark.slow
def test_a_group_contributes_the_sum_of_its_samples(tables, each, relabelled, halved):
    for table, groups in zip(tables[1:], [*relabelled, *halved], strict=True):
        assert dict(table["nats"]) == pytest.approx(sums(each, groups), abs=1e-12)


def test_languages_at_random_contribute_equally_per_sample(tables, each):
    """An interval of the account is over probes only; that other samples had been drawn is what permutations show.

    The statistic is how far the highest language lies above the mean of all samples, per sample. It may exceed what 95 % of
    permutations of the samples' own contributions stay below in one of 20 draws.
    """
    draw = np.random.default_rng(0)
    highest = [draw.permutation(each).reshape(3, -1).mean(1).max() for _ in range(2000)]
    beyond = disjoint = 0
    for table in tables[1 : _DRAWS + 1]:
        beyond += bool((table["nats"] / (_TRAIN / 3)).max() > np.quantile(highest, 0.95))
        disjoint += any((table["low"][name] > table["high"].drop(name)).all() for name in LANGUAGES)
    assert beyond <= 1
    assert disjoint <= 1


def test_the_halves_of_a_language_contribute_equally(tables, each, train):
    """The intervals of A and B overlap, and they differ by no more than halves of the items' own contributions do."""
    items = pd.Series(each).groupby(train.item).sum().to_numpy()
    draw = np.random.default_rng(0)
    differences = [abs(draw.permutation(items).reshape(2, -1).sum(1) @ [1, -1]) for _ in range(2000)]
    beyond = 0
    for table in tables[_DRAWS + 1 :]:
        assert table["low"].max() <= table["high"].min()
        beyond += bool(abs(table["nats"]["A"] - table["nats"]["B"]) > np.quantile(differences, 0.95))
    assert beyond <= 1
