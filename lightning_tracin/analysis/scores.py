"""From ingredients to scores, and the top of them. Pure functions on arrays; DESIGN's formulas, one line each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_tracin.config import Sign, Similarity, Weighting, check_choice
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.shards import Ingredients

Scores = npt.NDArray[np.float64]


def group_weights(weighting: Weighting, learning_rates: Sequence[float], visits: float) -> npt.NDArray[np.float64]:
    """The weight of each parameter group in a snapshot's score: [groups].

    `"uniform"` is 1 (Choenni et al. 2023 sum without weights); `"learning_rate"` is the mean learning rate times the visits
    a train sample had in the interval, as in TracInCP (Pruthi et al. 2020, equation 4).
    """
    check_choice("weighting", weighting, Weighting)
    if weighting == "uniform":
        return np.ones(len(learning_rates))
    return np.asarray(learning_rates, dtype=np.float64) * visits


def snapshot_scores(ingredients: Ingredients, similarity: Similarity, weights: npt.NDArray[np.float64]) -> Scores:
    """Influence at one snapshot: [train, probes].

    `"dot"` is TracInCP (Pruthi et al. 2020), `"cosine"` divides by both full gradient norms (Choenni et al. 2023),
    `"relatif"` by the train sample's (after Barshan et al. 2020). A gradient that is exactly zero influences nothing: its
    scores are 0.
    """
    check_choice("similarity", similarity, Similarity)
    score: Scores = np.einsum("g,gtp->tp", weights, ingredients.dot, dtype=np.float64)
    if similarity in ("cosine", "relatif"):
        score *= _inverse(np.sqrt(np.square(ingredients.train_norm, dtype=np.float64).sum(0)))[:, None]
    if similarity == "cosine":
        score *= _inverse(np.sqrt(np.square(ingredients.probe_norm, dtype=np.float64).sum(0)))[None, :]
    return score


def _inverse(norm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)


def require_k(k: int, train: int) -> None:
    """Refuse a number of strongest train samples that there are not.

    Raises:
        TracInError: k is not between 1 and the number of train samples.
    """
    if not 1 <= k <= train:
        raise TracInError(f"k should be between 1 and the number of train samples ({train}), but is {k}.")


def ranked(scores: Scores, sign: Sign) -> npt.NDArray[np.int64]:
    """Train samples of each probe in order, highest score first (lowest for `"negative"`): [train, probes].

    Equal scores stay in the order of the train samples, so the ranking is the same everywhere.
    """
    check_choice("sign", sign, Sign)
    return np.argsort(-scores if sign == "positive" else scores, axis=0, kind="stable")
