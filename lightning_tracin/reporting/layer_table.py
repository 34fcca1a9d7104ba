"""How much of the influence goes through each layer, in one short table."""

from __future__ import annotations

import pandas as pd

from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.analysis.tables import own_language
from lightning_tracin.config import Scoring, View
from lightning_tracin.reporting.logged_keys import OTHERS, OWN
from lightning_tracin.run import TracInRun


def layer_table(run: TracInRun, view: View) -> pd.DataFrame | None:
    """Influence over the whole run by each layer's own parameters, from the embeddings to the head.

    Args:
        run: a run with influence.
        view: similarity and weighting.

    Returns:
        A row for each layer: of the own language on a probe language and of all the others, mean over probe languages. None if
        the run has no scores by layer, or is too large to read all of it once more.
    """
    if run.is_large or not run.has_layers(Scoring(similarity=view.similarity, weighting=view.weighting)):
        return None
    whole = run.reliance(
        cumulative=True,
        similarity=view.similarity,
        weighting=view.weighting,
        snapshots=[len(run.snapshots) - 1],
        interval=NO_INTERVAL,
        by="layer",
    )
    return by_layer(whole)


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """The influence of the own and of the other languages in each layer.

    Args:
        table: one row for each layer, probe language and train language.

    Example:
        >>> rows = [("head", "de", "de", 3.0), ("head", "de", "en", 1.0), ("head", "fr", "de", 2.0), ("head", "fr", "en", 4.0)]
        >>> table = pd.DataFrame(rows, columns=["layer", "probe_language", "train_language", "value"])
        >>> by_layer(table).to_dict("records")
        [{'layer': 'head', 'own_language': 3.0, 'other_languages': 3.5}]
    """
    own = own_language(table)
    others = table.drop(own.index).groupby(["layer", "probe_language"], sort=False)["value"].sum()
    columns = {
        OWN: own.groupby("layer", sort=False)["value"].mean(),
        OTHERS: others.groupby(level="layer", sort=False).mean(),
    }
    layers: pd.DataFrame = pd.DataFrame(columns, index=pd.Index(table["layer"].unique(), name="layer")).reset_index()
    return layers
