"""Scores as a labelled array."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lightning_tracin.analysis.scores import Scores
from lightning_tracin.storage.sample_table import SampleTable


def score_array(
    scores: Scores, train: SampleTable, queries: SampleTable, similarity: str, weighting: str, preconditioner: str
) -> xr.DataArray:
    """Scores with the languages and items of their train samples and probes, and how they were computed.

    Args:
        scores: [train, queries].
        train: table of the train samples.
        queries: table of the probes, or of groups of them.
        similarity: of the score.
        weighting: of the score.
        preconditioner: of the score, or "none".

    Example:
        >>> table = SampleTable(("de", "sw"), (None, None), ("", ""), (None, None))
        >>> array = score_array(np.eye(2), table, table, "dot", "uniform", "none")
        >>> float(array.sel(train=1, probe=1)), array.probe_language.values.tolist()
        (1.0, ['de', 'sw'])
    """
    return xr.DataArray(
        scores,
        dims=("train", "probe"),
        coords={
            "train": np.arange(len(train)),
            "probe": np.arange(len(queries)),
            "train_language": ("train", list(train.language)),
            "train_item": ("train", list(train.item)),
            "probe_language": ("probe", list(queries.language)),
            "probe_item": ("probe", list(queries.item)),
        },
        name="influence",
        attrs={"similarity": similarity, "weighting": weighting, "preconditioner": preconditioner},
    )
