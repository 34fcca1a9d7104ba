"""The scores of a study by name: the kind of run that each is read from, and its formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_tracin.analysis.scores import Scores
from lightning_tracin.config import Similarity, Weighting
from lightning_tracin.run import TracInRun

#: The kinds of runs; see `settings_of` for the arguments of their callbacks.
Way = Literal["exact", "adam", "projected"]


@dataclass(frozen=True)
class Score:
    """The kind of run and the formula of a score."""

    way: Way
    similarity: Similarity
    weighting: Weighting = "uniform"


SCORES: Mapping[str, Score] = {
    "cosine": Score("exact", "cosine"),
    "dot product": Score("exact", "dot"),
    "dot product x learning rate": Score("exact", "dot", "learning_rate"),
    "relatif": Score("exact", "relatif"),
    "Adam-aware cosine": Score("adam", "cosine"),
    "Adam-aware dot product": Score("adam", "dot"),
    "Fisher-whitened cosine": Score("projected", "cosine"),
    "Fisher-whitened dot product": Score("projected", "dot"),
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
    """
    arguments: dict[Way, dict[str, Any]] = {
        "exact": {},
        "adam": {"preconditioner": "adam"},
        "projected": {"projection_dim": projection_dim, "preconditioner": "fisher"},
    }
    return arguments[way]


def influence_of(name: str, run: TracInRun, snapshots: Sequence[int] | None = None) -> Scores:
    """The score with this name, summed over snapshots: [train, probes]."""
    score = SCORES[name]
    return run.influence(score.similarity, score.weighting, snapshots).to_numpy()
