"""The scores of a study by name: the kind of run that each is read from, and its formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_tracin.analysis.scores import Scores
from lightning_tracin.config import DAMPING, Damping, Scoring, Similarity, Weighting
from lightning_tracin.run import TracInRun

#: The kinds of runs; see `settings_of` for the arguments of their callbacks.
Way = Literal["exact", "adam", "adam-factored", "projected", "adam-projected", "ekfac"]


@dataclass(frozen=True)
class Score:
    """The kind of run and the formula of a score."""

    way: Way
    similarity: Similarity
    weighting: Weighting = "uniform"
    damping: Damping = DAMPING

    @property
    def scoring(self) -> Scoring:
        """The formula, as a run takes it."""
        return Scoring(similarity=self.similarity, weighting=self.weighting, damping=self.damping)


SCORES: Mapping[str, Score] = {
    "cosine": Score("exact", "cosine"),
    "dot product": Score("exact", "dot"),
    "dot product x learning rate": Score("exact", "dot", "learning_rate"),
    "relatif": Score("exact", "relatif"),
    "Adam-aware cosine": Score("adam", "cosine"),
    "Adam-aware dot product": Score("adam", "dot"),
    "Adam-aware dot product x learning rate": Score("adam", "dot", "learning_rate"),
    "factored Adam dot product x learning rate": Score("adam-factored", "dot", "learning_rate"),
    "factored Adam cosine": Score("adam-factored", "cosine"),
    "Fisher-whitened cosine": Score("projected", "cosine"),
    "Fisher-whitened dot product": Score("projected", "dot"),
    "Fisher-whitened dot product x learning rate": Score("projected", "dot", "learning_rate"),
    "Adam-aware Fisher-whitened cosine": Score("adam-projected", "cosine"),
    "Adam-aware Fisher-whitened dot product": Score("adam-projected", "dot"),
    "compensated Adam dot product": Score("adam-projected", "dot", "learning_rate", "steps"),
    "EK-FAC cosine": Score("ekfac", "cosine"),
    "EK-FAC dot product": Score("ekfac", "dot"),
}


def ways_of(names: Sequence[str]) -> list[Way]:
    """The kinds of runs that these scores need; the first score's kind comes first.

    Example:
        >>> ways_of(["cosine", "Adam-aware cosine", "dot product"])
        ['exact', 'adam']
    """
    return list(dict.fromkeys(SCORES[name].way for name in names))


def settings_of(way: Way, projection_dim: int) -> dict[str, Any]:
    """The callback's arguments for a kind of run.

    Example:
        >>> settings_of("projected", projection_dim=64)
        {'projection_dim': 64, 'preconditioner': 'fisher'}
        >>> settings_of("exact", projection_dim=64)  # plain gradients, whatever the optimizer
        {'preconditioner': None}
    """
    arguments: dict[Way, dict[str, Any]] = {
        "exact": {"preconditioner": None},  # in a fit with Adam, the default is Adam's metric
        "adam": {"preconditioner": "adam"},
        "adam-factored": {"preconditioner": "adam-factored"},
        "projected": {"projection_dim": projection_dim, "preconditioner": "fisher"},
        "adam-projected": {"projection_dim": projection_dim, "preconditioner": "adam-fisher"},
        "ekfac": {"method": "ekfac"},
    }
    return arguments[way]


def influence_of(name: str, run: TracInRun, snapshots: Sequence[int] | None = None) -> Scores:
    """The score with this name, summed over snapshots: [train, probes]."""
    score = SCORES[name]
    return run.influence(score.similarity, score.weighting, snapshots, damping=score.damping).to_numpy()
