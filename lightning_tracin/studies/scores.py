"""Scores of a study by their names: which kind of run they are read from, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_tracin.baselines import lexical, random_scores, representation_similarity, same_label, without_ties
from lightning_tracin.influence import Scores, Similarity, Weighting
from lightning_tracin.reliance import Floats
from lightning_tracin.run import TracInRun

#: How a run computes, by what its callback is told.
Way = Literal["exact", "adam", "projected"]


@dataclass(frozen=True)
class Score:
    """One way to read influence off a run."""

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
RANDOM, SAME_LABEL, LEXICAL, REPRESENTATIONS = "random", "same label", "BM25", "representations"
BASELINES = (RANDOM, SAME_LABEL, LEXICAL, f"{LEXICAL} x {SAME_LABEL}", REPRESENTATIONS, f"{REPRESENTATIONS} x {SAME_LABEL}")


def ways_of(names: Sequence[str]) -> list[Way]:
    """Which runs these scores need, in a fixed order; the first score's way first."""
    return list(dict.fromkeys(SCORES[name].way for name in names))


def settings_of(way: Way, projection_dim: int) -> dict[str, Any]:
    """What the callback is told for a way."""
    told: dict[Way, dict[str, Any]] = {
        "exact": {},
        "adam": {"preconditioner": "adam"},
        "projected": {"projection_dim": projection_dim, "preconditioner": "fisher"},
    }
    return told[way]


def influence_of(name: str, run: TracInRun, snapshots: Sequence[int] | None = None) -> Scores:
    """A score by its name, summed over snapshots: [train, probes]."""
    score = SCORES[name]
    return run.influence(score.similarity, score.weighting, snapshots).to_numpy()


def baselines_of(
    names: Sequence[str], run: TracInRun, representations: Callable[[], tuple[Floats, Floats]], seed: int
) -> dict[str, Scores]:
    """Baselines by their names, equal scores in random order, each [train, probes].

    Args:
        names: some of `BASELINES`.
        run: whose samples are compared.
        representations: gives the fitted model's own, of the train samples and of the probes; called only if asked for.
        seed: of the random scores.

    Raises:
        TracInError: the samples have no texts or labels where these are needed.
    """
    needed = {part for name in names for part in name.split(" x ")}
    found: dict[str, Scores] = {}
    if RANDOM in needed:
        found[RANDOM] = random_scores(len(run.train), len(run.probes), seed)
    if SAME_LABEL in needed:
        found[SAME_LABEL] = same_label(run.train.label, run.probes.label)
    if LEXICAL in needed:
        found[LEXICAL] = lexical(run.train.text, run.probes.text)
    if REPRESENTATIONS in needed:
        found[REPRESENTATIONS] = representation_similarity(*representations())
    for name in names:
        if " x " in name:
            one, other = name.split(" x ")
            found[name] = found[one] * found[other]
    return {name: without_ties(found[name], seed) for name in names}
