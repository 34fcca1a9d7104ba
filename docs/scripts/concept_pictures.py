"""Draw the pictures of the page on concepts from one small real run: `python -m docs.scripts.concept_pictures`; takes a minute.

The run is a fine-tuning of a small classifier on German, English and Russian names of the Unicode CLDR. Dutch and Ukrainian are
only probed. The first picture is of another fit: logistic regression with two weights, because a plane can be drawn.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback, TracInCallback, TracInRun
from lightning_tracin.analysis.contributions import whole_fit
from lightning_tracin.reporting.figures.drawing import DIVERGING, LOWERS, RAISES
from lightning_tracin.studies.datasets import load_cldr
from lightning_tracin.studies.quiet import quietly

FOLDER = Path(__file__).parents[1] / "pictures"
TRAINED, PROBED = ("de", "en", "ru"), ("de", "en", "nl", "ru", "uk")
GREY = "#777777"
COLOURS = {"de": "#4c72b0", "en": "#dd8452", "ru": "#55a868"}
SEEDS = range(3)


class LetterPairs(pl.LightningModule):
    """Classifies a name by the mean embedding of its pairs of letters."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Embedding(8192, 32), nn.Linear(32, 5))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """The mean loss of a batch."""
        return nn.functional.cross_entropy(self.model(batch["pairs"]).mean(dim=1), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pairs of letters, and labels."""
    texts = [f" {row['text']:24.24}" for row in rows]
    pairs = [[(97 * ord(text[i]) + ord(text[i + 1])) % 8192 for i in range(24)] for text in texts]
    return {"pairs": torch.tensor(pairs), "labels": torch.tensor([row["label"] for row in rows])}


def data() -> tuple[Dataset, Dataset]:
    """Train samples, and probes of other items."""
    names = load_cldr(PROBED).dataset.shuffle(seed=0)
    items = sorted(set(names["item"]))
    held = set(items[::5])
    train = names.filter(lambda row: row["language"] in TRAINED and row["item"] not in held)
    return train.select(range(900)), names.filter(lambda row: row["item"] in held)


def fitted(train: Dataset, probes: Dataset, seed: int, callbacks: list[pl.Callback] | None = None) -> LetterPairs:
    """The module after five epochs."""
    pl.seed_everything(seed, verbose=False)
    module = LetterPairs()
    settings: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=5, callbacks=callbacks, accelerator="cpu", **settings)
    trainer.fit(module, DataLoader(train, 32, shuffle=True, collate_fn=collate), DataLoader(probes, 32, collate_fn=collate))
    return module.eval()


def need(train: Dataset, probes: Dataset, language: str) -> pd.DataFrame:
    """By how many nats the loss of a language rises without each train language, by seed."""
    batch = collate(list(probes.filter(lambda row: row["language"] == language)))

    def loss(samples: Dataset, seed: int) -> float:
        return float(fitted(samples, probes, seed).training_step(batch, 0).detach())

    whole = [loss(train, seed) for seed in SEEDS]
    parts = {left: train.filter(lambda row, left=left: row["language"] != left) for left in TRAINED}
    rises = {left: [loss(part, seed) - whole[seed] for seed in SEEDS] for left, part in parts.items()}
    table: pd.DataFrame = pd.DataFrame.from_dict(rises)
    return table


@dataclass(frozen=True)
class Plane:
    """Logistic regression with two weights: two classes of points, plain gradient descent."""

    points: Tensor
    labels: Tensor

    def losses(self, weights: Tensor) -> Tensor:
        """The loss of each point: [points]."""
        return nn.functional.binary_cross_entropy_with_logits(self.points @ weights, self.labels, reduction="none")

    def descent(self, weights: Tensor, of: int) -> Tensor:
        """The direction in weights that lowers a point's loss."""
        return (self.labels[of] - torch.sigmoid(self.points[of] @ weights)) * self.points[of]


def tracin() -> Figure:
    """The path of a fit over the loss of one probe, and the directions of a proponent and an opponent at its snapshots."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(40) % 2).double()
    points = torch.randn(40, 2, generator=generator, dtype=torch.float64) + (2 * labels - 1)[:, None] * torch.tensor([1.1, 0.3])
    plane = Plane(points, labels)
    path = [torch.tensor([-1.4, 1.5], dtype=torch.float64)]
    for _ in range(60):
        path.append(path[-1] + 0.35 * torch.stack([plane.descent(path[-1], of) for of in range(39)]).mean(0))
    probe, snapshots = 39, (0, 12, 30)
    scores = sum(
        torch.stack([plane.descent(path[at], of) for of in range(39)]) @ plane.descent(path[at], probe) for at in snapshots
    )
    assert isinstance(scores, Tensor)
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    across, up = np.meshgrid(np.linspace(-2, 2.4, 120), np.linspace(-1, 2.1, 120))
    grid = torch.from_numpy(np.stack([across, up], axis=-1)) @ points[probe]
    heights = nn.functional.softplus(-(2 * labels[probe] - 1) * grid)
    colours = axes.contourf(across, up, heights, 14, cmap="Greys", alpha=0.55)
    figure.colorbar(colours, label="loss of the probe, nats")
    line = torch.stack(path)
    axes.plot(*line.T, color="black", lw=1.4, label="the fit")
    axes.plot(*line[list(snapshots)].T, "o", color="black", ms=6, label="snapshots")
    for at in snapshots:
        arrows = (
            (int(scores.argmax()), LOWERS, "proponent"),
            (int(scores.argmin()), RAISES, "opponent"),
            (probe, GREY, "the probe"),
        )
        for of, colour, name in arrows:
            step = plane.descent(path[at], of)
            axes.quiver(
                *path[at],
                *step,
                color=colour,
                angles="xy",
                scale_units="xy",
                scale=1.2,
                width=0.008,
                label=name if at == 0 else None,
            )
    axes.set(xlabel="weight 1", ylabel="weight 2", title="Which way does each sample push the weights?")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def matrix(run: TracInRun) -> Figure:
    """The influence of single samples, and of languages: the second is the first, added up."""
    influence = run.influence("dot", "learning_rate")
    train, probes = (influence[f"{role}_language"].to_numpy() for role in ("train", "probe"))
    rows, columns = (
        np.lexsort((np.array(samples.label), codes)) for samples, codes in ((run.probes, probes), (run.train, train))
    )
    values = influence.to_numpy().T[np.ix_(rows, columns)]
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    limit = float(np.quantile(np.abs(values), 0.98))
    left.imshow(values, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
    _blocks(left, train[columns], probes[rows])
    left.set(xlabel="train samples", ylabel="probes", title="scores of single samples, those of one label side by side")
    table = last(run.reliance(cumulative=True)).pivot(index="probe_language", columns="train_language", values="value")
    limit = float(table.abs().max(axis=None))
    right.imshow(table, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        right.text(column, row, f"{value:+.2f}", ha="center", va="center", color="white" if abs(value) > 0.7 * limit else "black")
    right.set_xticks(range(len(table.columns)), table.columns)
    right.set_yticks(range(len(table.index)), table.index)
    right.set(xlabel="train language", ylabel="probe language", title="added up by language, nats")
    return figure


def _blocks(axes: Axes, train: np.ndarray[Any, Any], probes: np.ndarray[Any, Any]) -> None:
    """Lines between languages, and their names."""
    for names, line, ticks in ((train, axes.axvline, axes.set_xticks), (probes, axes.axhline, axes.set_yticks)):
        languages, starts = np.unique(names, return_index=True)
        for start in starts[1:]:
            line(start - 0.5, color="black", lw=0.8)
        ends = [*starts[1:], len(names)]
        ticks([(start + end) / 2 for start, end in zip(starts, ends, strict=True)], list(languages))


def proponents(run: TracInRun) -> Figure:
    """The strongest proponents and opponents of one probe, with their texts."""
    probe = run.probes.language.index("uk")
    found = pd.concat([run.top(probe=probe, k=5), run.top(probe=probe, k=5, sign="negative")]).sort_values("score")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(found)), found["score"], color=[LOWERS if score > 0 else RAISES for score in found["score"]])
    axes.set_yticks(
        range(len(found)), [f"{text}  ({label}, {code})" for text, label, code in found[["text", "label", "language"]].values]
    )
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="influence on the probe", title=f"Probe: {run.probes.text[probe]} ({run.probes.label[probe]}, uk)")
    return figure


def reliance(run: TracInRun, k: int = 50) -> Figure:
    """The share of each train language in the strongest k of a probe language, beside chance."""
    table = last(run.reliance(cumulative=True, measure="share", k=k)).set_index(["probe_language", "train_language"])
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, probe in enumerate(reversed(PROBED)):
        start = 0.0
        for train in TRAINED:
            share = float(table.loc[(probe, train), "value"])
            axes.barh(row, share, left=start, color=COLOURS[train], label=train if row == 0 else None)
            axes.text(start + share / 2, row, f"{share:.0%}", ha="center", va="center", color="white", fontsize=9)
            start += share
    chance = np.cumsum([float(table.loc[(PROBED[0], train), "null"]) for train in TRAINED])[:-1]
    for at, edge in enumerate(chance):
        axes.axvline(edge, color="black", ls=":", lw=1.4, label="chance" if at == 0 else None)
    axes.set_yticks(range(len(PROBED)), list(reversed(PROBED)))
    axes.set(xlabel=f"share of the strongest {k} train samples", ylabel="probe language", xlim=(0, 1))
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def three_numbers(run: TracInRun, needed: pd.DataFrame, language: str = "uk") -> Figure:
    """Influence, contribution and need of each train language for one probe language, in nats."""
    influence = last(run.reliance(cumulative=True)).query("probe_language == @language").set_index("train_language")["value"]
    whole = whole_fit(run.contributions(cumulative=True)).query("probe_language == @language").set_index("train_language")["nats"]
    panels = {
        "influence\n(first order, in this fit)": influence.loc[list(TRAINED)],
        "contribution\n(to the measured fall of the loss)": whole.loc[list(TRAINED)],
        f"need\n(rise of the loss without it; {len(needed)} seeds)": needed.mean(),
    }
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        error = needed.std() if title.startswith("need") else None
        axes.bar(TRAINED, values, yerr=error, color=[COLOURS[train] for train in TRAINED], capsize=4)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("nats")
    figure.suptitle(f"What German, English and Russian names are to the {language} probes", fontsize=11)
    return figure


def last(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last snapshot."""
    rows: pd.DataFrame = table[table["snapshot"] == table["snapshot"].max()]
    return rows


def main() -> None:
    """Draw all of them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, quietly():
        train, probes = data()
        callbacks: list[pl.Callback] = [
            TracInCallback(folder, item_column="item", max_probes_per_language=30, top_k=50, report=False),
            ContributionCallback(folder, item_column="item", probes_per_language=30, window=4),
        ]
        fitted(train, probes, 0, callbacks)
        run = TracInRun.open(folder)
        needed = need(train, probes, "uk")
        pictures = {
            "tracin": tracin(),
            "matrix": matrix(run),
            "proponents": proponents(run),
            "reliance": reliance(run),
            "contribution": run.plot.contributions("uk", width=5.5),
            "three-numbers": three_numbers(run, needed),
        }
        FOLDER.mkdir(exist_ok=True)
        for name, figure in pictures.items():
            figure.savefig(FOLDER / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
