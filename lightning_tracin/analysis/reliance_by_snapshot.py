"""Reliance at every snapshot of a run, from a scorer's blocks of influence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import pandas as pd

from lightning_tracin.analysis.reliance import COLUMNS, table_of
from lightning_tracin.analysis.resampling import Interval
from lightning_tracin.analysis.scorer import Scorer
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tally import SIGNED, Tally
from lightning_tracin.config import Scoring
from lightning_tracin.storage.snapshots import Snapshot

#: `unit` is "part" for shares, "nats (first order)" for signed measures that are first-order predictions (see `Scorer.nats`), and
#: "score" for other signed measures.
RELIANCE_COLUMNS = ("snapshot", "epoch", "step", *COLUMNS, "unit")

NATS, SCORE, PART = "nats (first order)", "score", "part"


def reliance_by_snapshot(
    scorer: Scorer,
    scoring: Scoring,
    snapshots: Sequence[Snapshot],
    chosen: Sequence[int],
    tally: Callable[[], Tally],
    probe_languages: Sequence[str],
    cumulative: bool = False,
    by_layer: bool = False,
    interval: Interval | None = None,
    probe_units: Sequence[Hashable] | None = None,
) -> pd.DataFrame:
    """Reliance of every probe language on every train language, at some snapshots.

    Args:
        scorer: of the run.
        scoring: the score.
        snapshots: all snapshots of the run.
        chosen: positions of those to show, in order.
        tally: makes an empty tally.
        probe_languages: language of each query.
        cumulative: sum influence up to each snapshot, instead of taking each alone.
        by_layer: a table for each layer from its own gradients; column `layer` after `step`.
        interval: settings of the bootstrap over train samples and probes.
        probe_units: queries that are resampled together.

    Raises:
        TracInError: a snapshot has no stored products, or the run has no scores by layer.
    """
    if by_layer:
        scorer.require_layers(scoring)
    signed = tally().measure in SIGNED
    nats = scorer.nats(scoring) if signed else None
    tables, unit = [], NATS if nats is not None else SCORE if signed else PART
    for together in [range(max(chosen) + 1)] if cumulative else [[index] for index in chosen]:
        tallies: dict[tuple[int, str], Tally] = defaultdict(tally)
        for train, each in scorer.blocks(together, scoring, by_layer=by_layer):
            total: dict[str, Scores] = {}
            for index, unscaled in zip(together, each, strict=True):
                scores = unscaled if nats is None else {layer: one * nats[index] for layer, one in unscaled.items()}
                total = {layer: one + total[layer] if layer in total else one for layer, one in scores.items()}
                for layer, one in total.items() if index in chosen else ():
                    tallies[index, layer].add(train, one)
        while tallies:  # each tally is let go as soon as its table is made
            index, layer = next(iter(tallies))
            about = snapshots[index].record
            table = table_of([tallies.pop((index, layer))], probe_languages, interval, probe_units)
            tables.append(table.assign(snapshot=about.index, epoch=about.epoch, step=about.step, layer=layer, unit=unit))
    columns = [*RELIANCE_COLUMNS[:3], *(["layer"] if by_layer else []), *RELIANCE_COLUMNS[3:]]
    whole: pd.DataFrame = pd.concat(tables, ignore_index=True)[columns]
    return whole
