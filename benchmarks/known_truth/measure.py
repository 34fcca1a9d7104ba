"""Computes what is missing of the worlds and stores it, so that a page can be written again from what is there.

`<output>/<model>/<arm>-<number>/` holds `truth.json`, `tables.csv` (what the package shows) and `curve.json`;
`<output>/<model>/coverage-<kind>.json` the coverage of intervals. Each file is written completely or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.known_truth import judge
from benchmarks.known_truth.documents import Document
from benchmarks.known_truth.plan import Plan
from benchmarks.known_truth.product import curve, tables, watched
from benchmarks.known_truth.truth import truth_of
from benchmarks.known_truth.worlds import World, worlds
from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.storage.files import as_utf8, write_bytes

#: Scores whose intervals are checked, and the measures that have a sign.
COVERED = ("cosine", "dot product x learning rate", "factored Adam dot product x learning rate")
COVERED_MEASURES = ("sum", "mean")
#: What differs between the data sets whose intervals are checked.
KINDS = ("documents", "documents and first weights")


@dataclass(frozen=True)
class Found:
    """What is stored of a world."""

    folder: Path

    @cached_property
    def truth(self) -> dict[str, Any]:
        """Arm, setting, level, languages, noisy, need, error, by_seed; for parallel documents also shapley and pair."""
        found: dict[str, Any] = json.loads((self.folder / "truth.json").read_text())
        return found

    @cached_property
    def curve(self) -> list[tuple[float, float]]:
        """As `product.curve`."""
        return [(value, null) for value, null in json.loads((self.folder / "curve.json").read_text())]

    @cached_property
    def tables(self) -> pd.DataFrame:
        """As `product.tables`."""
        return pd.read_csv(self.folder / "tables.csv", keep_default_na=False, na_values=[""])

    @property
    def need(self) -> judge.Floats:
        """How much a probe language's loss rises without a train language."""
        return np.asarray(self.truth["need"])

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Every score and measure."""
        return list(dict.fromkeys(zip(self.tables["score"], self.tables["measure"], strict=True)))

    def table(self, score: str, measure: str) -> pd.DataFrame:
        """One of the tables."""
        chosen = (self.tables["score"] == score) & (self.tables["measure"] == measure)
        found: pd.DataFrame = self.tables[chosen]
        return found


def measured(arm: str, model: str, documents: Sequence[Document], plan: Plan, output: Path) -> list[Found]:
    """Every world of an arm; what is stored is not computed again."""
    found = []
    for number, world in enumerate(worlds(arm, documents, plan)):
        folder = output / model / f"{arm}-{number}"
        if not (folder / "truth.json").exists():
            print(f"{model}: {arm}, {world.setting}: truth", flush=True)
            _write_truth(world, model, plan, folder)
        if not (folder / "curve.json").exists():
            print(f"{model}: {arm}, {world.setting}: what is shown", flush=True)
            _write_tables(world, model, plan, folder)
        found.append(Found(folder))
    return found


def _write_tables(world: World, model: str, plan: Plan, folder: Path) -> None:
    fits = [watched(world, model, seed, plan, folder / "runs") for seed in range(plan.scored)]
    shutil.rmtree(folder / "runs")
    write_bytes(folder / "tables.csv", as_utf8(as_csv(tables(world, fits, plan))))
    write_bytes(folder / "curve.json", json.dumps(curve(world, fits, plan)).encode())


def _write_truth(world: World, model: str, plan: Plan, folder: Path) -> None:
    truth = truth_of(world, model, plan)
    stored: dict[str, Any] = {
        "arm": world.arm,
        "setting": world.setting,
        "level": world.level,
        "languages": world.languages,
        "noisy": world.noisy,
        "need": truth.need().tolist(),
        "error": truth.error().tolist(),
        "by_seed": truth.need_by_seed().tolist(),
    }
    if frozenset() in truth.losses:
        first, second = world.languages[:2]
        stored |= {"shapley": truth.shapley().tolist(), "pair": truth.pair(first, second).tolist()}
    write_bytes(folder / "truth.json", json.dumps(stored).encode())


def covered(kind: str, model: str, documents: Sequence[Document], plan: Plan, output: Path) -> dict[str, dict[str, float]]:
    """How often the 95 % intervals of signed measures cover what other data sets give: score and measure -> column -> part.

    A data set is drawn `redraws` times: half as many train documents, and new probes, in four
    languages that share half of their words. One fit of each is attributed; its table has an interval for each cell. The value
    that an interval has to cover is the mean over the other data sets (`judge.coverage`).
    """
    path = output / model / f"coverage-{KINDS.index(kind)}.json"
    if not path.exists():
        print(f"{model}: coverage, new {kind}", flush=True)
        write_bytes(path, json.dumps(_covered(kind, model, documents, plan, output / model / "redrawn")).encode())
    found: dict[str, dict[str, float]] = json.loads(path.read_text())
    return found


def _covered(kind: str, model: str, documents: Sequence[Document], plan: Plan, folder: Path) -> dict[str, dict[str, float]]:
    smaller = replace(plan, train=plan.train // 2, parts=(0.5,))
    each = []
    for draw in range(plan.redraws):
        (world,) = worlds("different", documents, replace(smaller, seed=1000 + draw))
        fit = watched(world, model, draw if kind == KINDS[1] else 0, smaller, folder, COVERED)
        shown = tables(world, [fit], smaller)
        each.append(shown[shown["measure"].isin(COVERED_MEASURES)].assign(draw=draw))
    shutil.rmtree(folder)
    found = {}
    for (score, measure), rows in pd.concat(each).groupby(["score", "measure"]):
        by_draw = [part for _, part in rows.groupby("draw")]

        def stack(column: str, parts: Sequence[pd.DataFrame] = by_draw) -> judge.Floats:
            return np.stack([judge.grid(part, column) for part in parts])

        found[f"{score}, {measure}"] = {
            "value": judge.coverage(stack("value"), stack("low"), stack("high")),
            "contrast": judge.coverage(stack("contrast"), stack("contrast_low"), stack("contrast_high")),
        }
    return found
