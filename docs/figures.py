"""Draws the figures of a run from made-up tables of 5, 12 and 30 languages: what they look like in a paper.

    python docs/figures.py [FOLDER]

draws those in docs/figures (top-5.png needs fonts for Chinese, Korean and Hindi, such as Noto's); `--all` draws every figure at
every number of languages, as PNG, SVG and PDF.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_tracin.analysis.reliance_by_snapshot import NATS, PART
from lightning_tracin.config import View
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.reporting.results import Results

#: Pixels an inch, of a column and of a page, so that a file stays below 200 kB.
_DOTS, _FEWER = 180, 100

#: Thirty languages of eleven families and nine scripts; Basque and Swahili are only probed where there are twelve or more.
LANGUAGES = (
    *("en", "de", "ko", "zho_Hans", "ar", "es", "ru", "hi", "eu", "sw", "ja", "fr"),
    *("pt", "it", "nl", "sv", "pl", "uk", "bn", "ur", "fa", "he", "am", "fi", "hu", "et", "tr", "id", "vi", "th"),
)
#: What they have in common here, so that the tables have a pattern: a group each.
_GROUPS = "gg.c.rsi...rrrgggssiiaaa...".ljust(30, ".")


#: The figures in docs/figures, with their numbers of languages.
CHOSEN = ("heat_map-5", "heat_map-30", "lift-12", "curves-5", "curves-30", "layers-12", "contributions-12", "top-5")


def main(folder: Path, everything: bool) -> None:
    """Draw the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for count in (5, 12, 30):
        made, width = results(count), 3.3 if count < 30 else 7.0
        draw: dict[str, Callable[[], PaperFigure]] = {
            "heat_map": lambda made=made: figures.heat_map(made, width=3.3),
            "lift": lambda made=made: figures.lift(made, width=3.3),
            "curves": lambda made=made, width=width: figures.curves(made, width=width),
            "layers": lambda made=made, width=width: figures.layers(by_layer(made), made.view, width=width),
            "contributions": lambda made=made, width=width: figures.contributions(contributions(made), width=width),
        }
        if count == 5:
            draw["top"] = lambda: figures.top_samples(samples(), "influence (dot)", width=3.3)
        for name, one in draw.items():
            if everything or f"{name}-{count}" in CHOSEN:
                figure = one()
                for suffix in (".png", ".svg", ".pdf") if everything else (".png",):
                    figure.savefig(folder / f"{name}-{count}{suffix}", dpi=_DOTS if figure.get_figwidth() < 4 else _FEWER)


def results(count: int, snapshots: int = 6) -> Results:
    """Made-up results of so many languages, the same every time."""
    generator = np.random.default_rng(0)
    trains = LANGUAGES[:count] if count < 12 else tuple(name for name in LANGUAGES[:count] if name not in ("eu", "sw"))
    parts = []
    for measure in ("sum", "mean", "share"):
        base = _pairs(LANGUAGES[:count], trains, generator)
        for snapshot in range(snapshots):
            alone = base.assign(
                value=base["value"] * (0.4 + 0.6 * np.sin(snapshot / 2 + 0.5)) + generator.normal(0, 0.03, len(base))
            )
            for whole, table in ((False, alone), (True, base)):
                parts.append(_row(table, measure, whole, snapshot))
    return Results(View(top_k=100), pd.concat(parts, ignore_index=True), pd.DataFrame())


def by_layer(made: Results, layers: int = 12) -> pd.DataFrame:
    """The sums of influence, divided among layers."""
    whole, generator = made.final().tables["sum"], np.random.default_rng(1)
    names = ("embeddings", *(f"layer {number}" for number in range(layers)), "head")
    parts = []
    for depth, name in enumerate(names):
        part = np.exp(-(((depth - 4) / 4) ** 2)) / 4 * generator.uniform(0.7, 1.3, len(whole))
        parts.append(whole.assign(layer=name, **{column: whole[column] * part for column in ("value", "low", "high", "null")}))
    return pd.concat(parts, ignore_index=True)


def contributions(made: Results, windows: int = 8) -> pd.DataFrame:
    """Contributions whose sums fall as the sums of influence say."""
    whole, rows = made.final().tables["sum"], []
    for probe, mine in whole.groupby("probe_language"):
        for window in range(windows):
            progress = 1 - np.exp(-(window + 1) / 3)
            nats = {
                str(train): 0.6 * value * progress for train, value in zip(mine["train_language"], mine["value"], strict=True)
            }
            nats |= {"decay": -0.05 * progress, "unexplained": 0.04 * progress}
            fall = sum(nats.values())
            for source, fell in nats.items():
                facts = (window, 100 * window + 1, 100 * (window + 1), probe, source, fell, fall, 3.0 - fall, 40)
                rows.append((*facts, source not in ("decay", "unexplained")))
    columns = ["window", "first_step", "step", "probe_language", "train_language", "nats", "fall", "loss", "probes", "is_group"]
    return pd.DataFrame(rows, columns=columns)


def samples() -> pd.DataFrame:
    """Proponents and opponents in several scripts."""
    texts = [
        ("positive", "en", 0.82, "The library opens at nine on weekdays and closes at noon on Saturdays.", "1"),
        (
            "positive",
            "ar",
            0.61,
            "تفتح المكتبة في التاسعة صباحا (9:00)",
            "1",
        ),
        ("positive", "zho_Hans", 0.4, "图书馆平日九点开门", "1"),
        (
            "positive",
            "ko",
            0.22,
            "도서관은 평일 아홉 시에 문을 엽니다",
            "2",
        ),
        (
            "negative",
            "de",
            -0.3,
            "Wer zu spaet kommt, muss draussen warten, bis die Pause beginnt und die Tueren wieder offen sind.",
            "3",
        ),
        (
            "negative",
            "hi",
            -0.12,
            "पुस्तकालय नौ बजे खुलता है",
            "4",
        ),
    ]
    table = pd.DataFrame(texts, columns=["sign", "language", "score", "text", "item"])
    table["rank"] = table.groupby("sign").cumcount() + 1
    return table.assign(
        probe=3,
        probe_language="de",
        probe_label="opening hours",
        probe_text="Die Bibliothek oeffnet werktags um neun Uhr und schliesst samstags um zwoelf.",
        probe_item="1",
    )


def _pairs(probes: tuple[str, ...], trains: tuple[str, ...], generator: np.random.Generator) -> pd.DataFrame:
    group = dict(zip(LANGUAGES, _GROUPS, strict=True))
    rows = []
    for probe in probes:
        for train in trains:
            kin = group[probe] == group[train] != "."
            own = probe == train
            value = (1.0 if own else 0.35 if kin else 0.08) * generator.uniform(0.6, 1.4) + generator.normal(0, 0.06)
            rows.append((probe, train, value))
    return pd.DataFrame(rows, columns=["probe_language", "train_language", "value"])


def _row(table: pd.DataFrame, measure: str, whole: bool, snapshot: int) -> pd.DataFrame:
    found = table.copy()
    if measure == "share":
        found["value"] = found["value"].clip(lower=0.005)
        found["value"] /= found.groupby("probe_language")["value"].transform("sum")
    rows = found.groupby("probe_language")["value"].transform("mean")
    columns = found.groupby("train_language")["value"].transform("mean")
    contrast = found["value"] - rows - columns + found["value"].mean()
    spread = 0.06 if measure != "share" else 0.02
    return found.assign(
        contrast=contrast,
        null=found["value"].mean(),
        low=found["value"] - spread,
        high=found["value"] + spread,
        contrast_low=contrast - spread,
        contrast_high=contrast + spread,
        lift=found["value"] / columns,
        probes=40,
        measure=measure,
        unit=PART if measure == "share" else NATS,
        sign="positive",
        cumulative=whole,
        snapshot=snapshot,
        epoch=snapshot,
        step=100 * (snapshot + 1),
    )


if __name__ == "__main__":
    folders = [one for one in sys.argv[1:] if one != "--all"]
    main(Path(folders[0]) if folders else Path(__file__).parent / "figures", "--all" in sys.argv)
