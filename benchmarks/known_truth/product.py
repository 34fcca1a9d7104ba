"""Every number that the package shows of a fit, as tables of probe and train languages, and tables that need no fit.

The fit is watched by the package's own callbacks. Their pages and figures are not written: scores and tables are what is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from benchmarks.known_truth.networks import Encoded, WordClassifier, network_of
from benchmarks.known_truth.plan import MEASURES, Plan
from benchmarks.known_truth.truth import batches_of
from benchmarks.known_truth.worlds import World
from lightning_tracin import ContributionCallback, TracInCallback, TracInRun
from lightning_tracin.analysis.baselines import baselines_of
from lightning_tracin.analysis.contributions import whole_fit
from lightning_tracin.analysis.exchange import units_of
from lightning_tracin.analysis.reliance import cross_lingual, reliance_table, table_of, tally_of
from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import stacked
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.prepare import GivenLanguages, Setup, dtype_of, read_samples
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.studies.datasets.clones import words
from lightning_tracin.studies.named_scores import SCORES, influence_of, settings_of
from lightning_tracin.studies.quiet import quiet_trainer
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy
from lightning_tracin.trainer.refits import seeded

#: Of the callbacks.
_BATCH, _EVERY = 128, 2
#: The run that need is predicted from.
_NEED = "need"


@dataclass(frozen=True)
class Watched:
    """A fit that callbacks watched.

    Attributes:
        scores: name -> influence summed over all snapshots, [train, probes].
        by_snapshot: influence by cosine at each snapshot, [snapshots, train, probes].
        nats: the table of contributions over the whole fit; None if it was not asked for.
        need: the table of predicted need; None if it was not asked for.
        losses: the loss of each probe after the fit, by the fit's own module.
    """

    scores: Mapping[str, Scores]
    by_snapshot: Scores
    nats: pd.DataFrame | None
    need: pd.DataFrame | None
    losses: Scores


def watched(world: World, model: str, seed: int, plan: Plan, folder: Path, names: Sequence[str] = tuple(SCORES)) -> Watched:
    """Fit on the whole world with the callbacks, and read the scores with these names, and contributions if all are named."""
    data, whole = Encoded(world, plan), len(names) == len(SCORES)
    probes: DataLoader[dict[str, torch.Tensor]] = DataLoader(data.probes, batch_size=_BATCH)
    ways = list(dict.fromkeys(SCORES[name].way for name in names))
    settings: dict[str, dict[str, Any]] = {way: settings_of(way, plan.projection_dim) for way in ways}
    if whole:
        settings[_NEED] = settings_of("adam-projected", plan.need_dim)
    callbacks = {
        name: TracInCallback(
            folder / name,
            probes=probes,
            max_probes_per_language=None,
            item_column="item",
            batch_size=_BATCH,
            when="never",
            every_n_epochs=_EVERY,
            top_k=plan.top_k,
            overwrite=True,
            **chosen,
        )
        for name, chosen in settings.items()
    }
    order = batches_of(len(data.train), np.ones(len(data.train), dtype=np.bool_), seed, plan)
    account = ContributionCallback(
        folder / "account",
        probes=probes,
        item_column="item",
        probes_per_language=None,
        batch_size=_BATCH,
        window=len(order),
        overwrite=True,
    )
    with seeded(seed):
        module = WordClassifier(network_of(model, data, plan), plan.rate(model))
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(data.train, batch_sampler=order)
    trainer = quiet_trainer(max_epochs=plan.epochs, callbacks=[*callbacks.values(), *([account] if whole else [])])
    trainer.fit(module, loader)
    runs = {name: _attributed(folder / name, module, loader, probes) for name in callbacks}
    scores = {name: influence_of(name, runs[SCORES[name].way]) for name in names}
    run = runs[ways[0]]
    each = np.stack([run.influence("cosine", snapshots=[index]).to_numpy() for index in range(len(run.snapshots))])
    nats = whole_fit(TracInRun.open(folder / "account").contributions(cumulative=True)) if whole else None
    need = runs[_NEED].predicted_need(interval=Interval(resamples=plan.resamples)) if whole else None
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(module.network(data.probes.ids), data.probes.labels, reduction="none")
    return Watched(scores, each, nats, need, losses.double().numpy())


def _attributed(path: Path, module: WordClassifier, train: DataLoader[object], probes: DataLoader[object]) -> TracInRun:
    """Compute the influence of a run as `trainer.attribute` does, without the results that it then writes."""
    run = TracInRun.open(path)
    options, environment = run.record.options, Environment(module)
    samples = read_samples(train, probes, GivenLanguages(), options, environment)
    copy = isolated_copy(module, dtype_of(options))
    attributor = Attributor(run.directory, Environment(copy), Setup(options, *samples, run.record.loss))
    for snapshot in attributor.unfinished(run.directory.ledger.snapshots()):
        attributor.attribute_stored(copy, snapshot)
    return TracInRun.open(path)


def tables(world: World, fits: Sequence[Watched], plan: Plan) -> pd.DataFrame:
    """What is shown of several fits of a world: columns score, measure, and those of `analysis.reliance`.

    The rows with the measure "nats" are contributions and predicted need, averaged over the fits; with "table", the tables that
    need no fit.
    """
    train, units, interval = TrainLanguages.of_table(world.train), units_of(world.probes), Interval(resamples=plan.resamples)
    found: dict[tuple[str, str], pd.DataFrame] = {
        (name, measure): table_of(
            [tally_of(fit.scores[name], train, plan.top_k, measure=measure) for fit in fits],
            world.probes.language,
            interval,
            units,
        )
        for name in fits[0].scores
        for measure in MEASURES
    }
    nats = [fit.nats[fit.nats["is_group"]] for fit in fits if fit.nats is not None]
    if nats:
        found["contributions", "nats"] = _mean_nats(nats)
    need = [fit.need for fit in fits if fit.need is not None]
    if need:
        found["predicted need", "nats"] = _mean_nats(need)
    for name, table in plain_tables(world, plan).items():
        found[name, "table"] = table
    return stacked(found, "score", "measure")


def _mean_nats(each: Sequence[pd.DataFrame]) -> pd.DataFrame:
    keys = ["probe_language", "train_language"]
    mean = pd.concat(each).groupby(keys)[["nats", "low", "high"]].mean().reset_index()
    found: pd.DataFrame = mean.rename(columns={"nats": "value"}).assign(null=0.0)
    return found


def plain_tables(world: World, plan: Plan) -> dict[str, pd.DataFrame]:
    """What a table is worth that knows nothing of the model: own = 1, shared words, same labels, and BM25 x same label."""
    names = world.languages
    grid = pd.MultiIndex.from_product([names, names], names=["probe_language", "train_language"])
    own = pd.Series([float(probe == train) for probe, train in grid], grid)
    known, asked = (_words(table) for table in (world.train, world.probes))
    overlap = pd.Series([float(np.mean([word in known[train] for word in asked[probe]])) for probe, train in grid], grid)
    baselines = baselines_of(["same label", "BM25 x same label"], world.train, world.probes, None)
    found = {"identity": own, "shared words": overlap}
    for name, scores in baselines.items():
        table = reliance_table(
            scores,
            TrainLanguages.of_table(world.train),
            world.probes.language,
            plan.top_k,
            measure="mean",
            interval=NO_INTERVAL,
        )
        found[name] = table.set_index(grid.names)["value"]
    return {name: values.rename("value").reset_index().assign(null=0.0) for name, values in found.items()}


def _words(table: SampleTable) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for language, text in zip(table.language, table.text, strict=True):
        found.setdefault(language, set()).update(words(text))
    return found


def curve(world: World, fits: Sequence[Watched], plan: Plan) -> list[tuple[float, float]]:
    """Cross-lingual reliance (share of the top k by cosine) at each snapshot, and what it is by chance: means."""
    train = TrainLanguages.of_table(world.train)
    found = []
    for index in range(len(fits[0].by_snapshot)):
        tallies = [tally_of(fit.by_snapshot[index], train, plan.top_k) for fit in fits]
        table = table_of(tallies, world.probes.language, NO_INTERVAL)
        found.append((float(cross_lingual(table).mean()), float(cross_lingual(table, "null").mean())))
    return found
