"""Scores from ingredients, and their ranking: pure functions on arrays, one line per formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_tracin.config import Sign, Similarity, Weighting, check_choice
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.shards import FloatArray, Indices, Ingredients

Scores = npt.NDArray[np.float64]


def group_weights(weighting: Weighting, learning_rates: Sequence[float], visits: float) -> npt.NDArray[np.float64]:
    """The weight of each parameter group in a snapshot's score: [groups].

    `"uniform"` is 1 (Choenni et al. 2023 sum without weights); `"learning_rate"` is the mean learning rate since the previous
    snapshot, times the mean number of visits to a train sample, as in TracInCP (Pruthi et al. 2020, equation 4).

    Raises:
        TracInError: a learning rate is negative; scores would then be no inner product.

    Example:
        >>> group_weights("learning_rate", learning_rates=[0.5, 0.25], visits=2).tolist()
        [1.0, 0.5]
    """
    check_choice("weighting", weighting, Weighting)
    if weighting == "uniform":
        return np.ones(len(learning_rates))
    if min(learning_rates, default=0.0) < 0:
        raise TracInError(
            f"weighting='learning_rate' takes rates of 0 or more, but a group of the optimizer had {min(learning_rates)}; take "
            "weighting='uniform'."
        )
    return np.asarray(learning_rates, dtype=np.float64) * visits


def snapshot_scores(ingredients: Ingredients, similarity: Similarity, weights: npt.NDArray[np.float64]) -> Scores:
    """Influence at one snapshot: [train, probes].

    `"dot"` is TracInCP (Pruthi et al. 2020), `"cosine"` divides by both full gradient norms (Choenni et al. 2023),
    `"relatif"` by the train sample's norm (after Barshan et al. 2020). If a gradient is exactly zero, its scores are 0.

    The weights are the diagonal of one inner product for train samples and probes. Norms do not contain them: a cosine would
    otherwise lose the weight of its snapshot.

    Example:
        >>> norm = np.array([[2.0, 0.0]])  # one group, two train samples
        >>> one = Ingredients(dot=np.array([[[4.0], [0.0]]]), train_norm=norm, probe_norm=np.array([[4.0]]))
        >>> snapshot_scores(one, "cosine", np.ones(1)).tolist(), snapshot_scores(one, "relatif", np.ones(1)).tolist()
        ([[0.5], [0.0]], [[2.0], [0.0]])
    """
    return factored_scores(ingredients, similarity, weights).dense()


@dataclass(frozen=True)
class FactoredScores:
    """The scores of one snapshot before they are multiplied out: single precision in memory, double precision when asked for.

    Example:
        >>> factored = FactoredScores(np.array([[[4.0, 6.0]]], np.float32), np.ones(1), np.array([0.5]), np.array([1.0, 0.5]))
        >>> factored.dense().tolist(), factored.at(np.array([0]), np.array([1])).tolist()
        ([[2.0, 1.5]], [1.5])
    """

    dot: FloatArray  # [groups, train, probes]
    weights: npt.NDArray[np.float64]  # [groups]
    train: npt.NDArray[np.float64]  # factor of each train sample: [train]
    probe: npt.NDArray[np.float64]  # factor of each probe: [probes]

    def dense(self) -> Scores:
        """All scores: [train, probes]."""
        return self._sums(self.dot, self.train[:, None], self.probe[None, :])

    def at(self, train: Indices, probes: Indices) -> Scores:
        """The scores of some pairs: those of `dense`, bit for bit."""
        return self._sums(self.dot[:, train, probes], self.train[train], self.probe[probes])

    def of_probes(self, chosen: Sequence[int]) -> FactoredScores:
        """The scores of some probes, in this order."""
        if list(chosen) == list(range(len(self.probe))):
            return self
        return FactoredScores(self.dot[:, :, list(chosen)], self.weights, self.train, self.probe[list(chosen)])

    def _sums(self, dot: FloatArray, train: Scores, probe: Scores) -> Scores:
        score: Scores = self.weights[0] * dot[0].astype(np.float64)
        for weight, one in zip(self.weights[1:], dot[1:], strict=True):
            score += weight * one.astype(np.float64)
        score *= train
        score *= probe
        return score


def factored_scores(ingredients: Ingredients, similarity: Similarity, weights: npt.NDArray[np.float64]) -> FactoredScores:
    """The scores of `snapshot_scores`, not multiplied out yet."""
    check_choice("similarity", similarity, Similarity)
    _, samples, probes = ingredients.dot.shape
    train, probe = np.ones(samples), np.ones(probes)
    if similarity in ("cosine", "relatif"):
        train = _inverse(np.sqrt(np.square(ingredients.train_norm, dtype=np.float64).sum(0)))
    if similarity == "cosine":
        probe = _inverse(np.sqrt(np.square(ingredients.probe_norm, dtype=np.float64).sum(0)))
    weights = weights[: len(ingredients.dot)]  # later groups have no scored parameters, and so no products
    return FactoredScores(ingredients.dot, weights, train, probe)


def _inverse(norm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)


def is_index(value: object) -> bool:
    """Whether a value is a whole number, of Python or numpy, and no truth value.

    Example:
        >>> [is_index(value) for value in (3, np.int64(3), 3.0, "3", True)]
        [True, True, False, False, False]
    """
    return hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)


def require_k(k: int, train: int) -> None:
    """Check that k train samples exist.

    Raises:
        TracInError: k is no whole number, or not between 1 and the number of train samples.
    """
    if not is_index(k):
        raise TracInError(f"k should be a whole number, but is {k!r}.")
    if not 1 <= k <= train:
        raise TracInError(f"k should be between 1 and the number of train samples ({train}), but is {k}.")


def ranked(scores: Scores, sign: Sign) -> npt.NDArray[np.int64]:
    """Rank the train samples of each probe, highest score first (lowest for `"negative"`): [train, probes].

    Equal scores are in random order, the same on every machine (`tie_order`): datasets are often sorted by language or label, and
    their order must not decide which language is relied on.

    Example:
        >>> scores = np.array([[0.1], [0.3], [-0.2]])
        >>> ranked(scores, "positive")[:, 0].tolist(), ranked(scores, "negative")[:, 0].tolist()
        ([1, 0, 2], [2, 0, 1])
    """
    check_choice("sign", sign, Sign)
    keys = -scores if sign == "positive" else scores
    ties = np.broadcast_to(tie_order(np.arange(len(scores)))[:, None], keys.shape)
    return np.lexsort((ties, keys), axis=0)


def tie_order(train: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A random number for each train sample that orders equal scores; it depends on the sample's index only.

    The numbers are those of SplitMix64 (Steele, Lea and Flood 2014), which are all different.

    Example:
        >>> np.argsort(tie_order(np.arange(6))).tolist()
        [2, 4, 5, 1, 0, 3]
    """
    with np.errstate(over="ignore"):
        mixed = (train.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return order
