"""Tables as the study's experiments give them, in which every value is another, so that none can stand for its neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lightning_tracin.analysis import changes, imbalance, reinforcement, removal, zero_shot
from lightning_tracin.analysis.leave_one_out import changes_of, singles
from lightning_tracin.analysis.reliance import COLUMNS
from lightning_tracin.analysis.reliance_by_snapshot import NATS, PART
from lightning_tracin.config import Measure, View
from lightning_tracin.reporting.results import Results

LANGUAGES = ("acehnese", "banjarese", "english", "indonesian", "javanese", "minangkabau", "sundanese")
ZERO_SHOT = "toba batak"
SCORES = (
    *("cosine", "dot product", "dot product x learning rate", "relatif", "Adam-aware cosine", "Adam-aware dot product"),
    *("cosine, projected", "Fisher-whitened cosine", "Fisher-whitened dot product", "Fisher-whitened cosine by layer"),
    *("BM25", "BM25 x same label", "same label", "random"),
)


def reliance(trains: Sequence[str] = LANGUAGES, probes: Sequence[str] = (*LANGUAGES, ZERO_SHOT), seed: int = 0) -> pd.DataFrame:
    """A table of shares whose cells all differ, so that none can stand for another."""
    share, table = _cells(trains, probes, seed)
    centred = share - 0.5
    bounds = {"low": share - 0.06, "high": share + 0.04, "contrast_low": centred - 0.05, "contrast_high": centred + 0.03}
    found = table.assign(value=share, contrast=centred, null=1 / len(trains), lift=share * 2, probes=20, **bounds)
    return found[list(COLUMNS)]


def influence(trains: Sequence[str] = LANGUAGES, probes: Sequence[str] = (*LANGUAGES, ZERO_SHOT), seed: int = 0) -> pd.DataFrame:
    """A table of signed influence whose cells all differ; intervals leave out 0 except near it."""
    part, table = _cells(trains, probes, seed)
    other, _ = _cells(trains, probes, seed + 100)
    value, contrast = 3 * part - 1.2, 0.5 * other - 0.3
    bounds = {"low": value - 0.3, "high": value + 0.2, "contrast_low": contrast - 0.04, "contrast_high": contrast + 0.06}
    return table.assign(value=value, contrast=contrast, null=value.mean(), lift=np.nan, probes=20, **bounds)[list(COLUMNS)]


def _cells(trains: Sequence[str], probes: Sequence[str], seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """A number from 0 to 1 for each pair of languages, and the pairs."""
    count = len(trains) * len(probes)
    rows = [(probe, train) for probe in probes for train in trains]
    return np.random.default_rng(seed).permutation(count) / count, pd.DataFrame(rows, columns=list(COLUMNS[:2]))


def results(snapshots: int = 3, measures: Sequence[Measure] = ("sum", "mean", "share"), **options: Sequence[str]) -> Results:
    parts = [
        (reliance if measure == "share" else influence)(**options, seed=index + 10 * number).assign(
            measure=measure,
            unit=PART if measure == "share" else NATS,
            sign="positive",
            cumulative=whole,
            snapshot=index,
            epoch=index,
            step=10 * (index + 1),
        )
        for number, measure in enumerate(measures)
        for whole in (False, True)
        for index in range(snapshots)
    ]
    return Results(View(top_k=50), pd.concat(parts, ignore_index=True), pd.DataFrame())


def changed() -> pd.DataFrame:
    """Three snapshots; every third change is significant."""
    rows = [
        (probe, train, *pair, 0.2, 0.2 + change, change, 0.1, 0.1 + change / 3, change * 2 / 3, 20, 50.0, p / 4, p)
        for i, (probe, train) in enumerate((p, t) for p in (*LANGUAGES, ZERO_SHOT) for t in LANGUAGES)
        for j, pair in enumerate([(0, 1), (1, 2), (0, 2)])
        for change, p in [((i - 25) / 60 + j / 900, 0.01 if i % 3 == 0 else 0.2)]
    ]
    return pd.DataFrame(rows, columns=list(changes.COLUMNS))


def reinforced() -> pd.DataFrame:
    pairs = [(p, t) for p in (*LANGUAGES, ZERO_SHOT) for t in (reinforcement.ALL, *LANGUAGES) if p != t]
    value = [0.0 if p == ZERO_SHOT else (i % 11) / 20 + 0.1 for i, (p, _) in enumerate(pairs)]
    rows = [
        (*pair, v, 1 - v, 0.1 * (v > 0), v - 0.05 * (v > 0), v + 0.03 * (v > 0), 20, 7 * i + 1)
        for i, (pair, v) in enumerate(zip(pairs, value, strict=True))
    ]
    return pd.DataFrame(rows, columns=list(reinforcement.COLUMNS))


def without_language() -> pd.DataFrame:
    rows = [
        (language, name, 0.1 + 0.07 * i + shift, 0.05 + shift, 0.04 + 0.07 * i, 0.3 + 0.07 * i, 10 + i)
        for i, language in enumerate(LANGUAGES)
        for name, shift in (("translations", 0.0), ("stayed", 0.2))
    ]
    return pd.DataFrame(rows, columns=["language", *zero_shot.COLUMNS])


def imbalanced() -> pd.DataFrame:
    rows = [
        (language, added, 0.2 + i / 50 + added / 500, 0.1 + i / 50, 0.5 + i / 50, (1 + added / 100) / (7 + added / 100), 0, 0.7)
        for i, language in enumerate(LANGUAGES)
        for added in (0.0, 25.0, 50.0, 75.0, 100.0)
    ]
    return pd.DataFrame(rows, columns=list(imbalance.COLUMNS))


def masked() -> pd.DataFrame:
    at = np.arange(len(LANGUAGES)) / 20
    return pd.DataFrame({"probe_language": LANGUAGES, "share": 0.3 + at, "low": 0.25 + at, "high": 0.38 + at}).assign(
        chance=1 / 7, random_share=0.2 + at, random_low=0.17 + at, random_high=0.24 + at, whole_share=0.27 + at
    )


def removed(names: Sequence[str] = SCORES[:3], ks: Sequence[int] = (50, 100, 150), same: bool = True) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.3, 0.9, 30)
    at_random = {k: base + generator.normal(size=(2, 30)) * 0.05 for k in ks}
    tables = []
    for i, name in enumerate(names):
        others = at_random if same else {k: draws - i / 20 for k, draws in at_random.items()}
        gone = {k: base * (1 - k * (i + 1) / 2000) + generator.normal(size=30) * 0.02 for k in ks}
        tables.append(removal.removal_table(base, gone, others).assign(removed=name))
    return pd.concat(tables, ignore_index=True)


def areas() -> pd.DataFrame:
    value = np.linspace(-0.004, 0.009, len(SCORES))[::-1]
    return pd.DataFrame({"removed": SCORES, "area": value, "low": value - 0.001, "high": value + 0.002})


def predicted() -> pd.DataFrame:
    value = np.random.default_rng(0).permutation(len(SCORES)) / 30
    found = pd.DataFrame({"score": SCORES, "lds": value, "low": value - 0.08, "high": value + 0.06, "within_class": value / 2})
    return found.assign(probes=150, subsets=40)


def agreed() -> pd.DataFrame:
    rows = [
        (score, measure, value, value - 0.2, value + 0.1, 0.3 + j / 50, 49)
        for i, score in enumerate(SCORES)
        for j, measure in enumerate(("share", "mass", "mean"))
        for value in [((5 * i + j) % 14) / 20]
    ]
    columns = ["score", "measure", "contrast", "contrast_low", "contrast_high", "contrast_floor", "cells"]
    return pd.DataFrame(rows, columns=columns)


def left(seeds: int = 3, probes: Sequence[str] = (*LANGUAGES, ZERO_SHOT)) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(seeds, len(probes)))
    without = [whole + 0.4 * (np.asarray(probes) == t) + generator.normal(size=whole.shape) * 0.1 for t in LANGUAGES]
    return changes_of(np.stack([whole, *without], axis=1), singles(LANGUAGES), probes).table()


def contributed(trains: Sequence[str] = LANGUAGES, probes: Sequence[str] = (*LANGUAGES, ZERO_SHOT)) -> pd.DataFrame:
    """A cumulative table of contributions over three windows: one language raises the losses, and a little is unexplained."""
    sources = [*((train, True) for train in trains), ("decay", False), ("unexplained", False)]
    rows = [
        (window, 10 * window - 9, 10 * window, probe, *source, window * (0.1 + 0.01 * i + 0.002 * j) * (-1 if j == 2 else 1))
        for window in (1, 2, 3)
        for i, probe in enumerate(probes)
        for j, source in enumerate(sources)
    ]
    columns = ["window", "first_step", "step", "probe_language", "train_language", "is_group", "nats"]
    table = pd.DataFrame(rows, columns=columns).assign(epoch=1, probes=20, samples=5)
    fall = table.groupby(["window", "probe_language"])["nats"].transform("sum")
    return table.assign(fall=fall, loss=4.0 - fall, measured=fall, low=table["nats"] - 0.01, high=table["nats"] + 0.02)
