"""The scores that are compared: the package's own, reference forms of the preconditioned ones, and baselines.

A score is an array [train, probes], summed over snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lds_fits import Trial
from benchmarks.lds_grams import Gram, gram
from lightning_tracin import TracInRun
from lightning_tracin.analysis.baselines import random_scores, same_label
from lightning_tracin.config import DAMPING, Similarity, Weighting
from lightning_tracin.studies.named_scores import SCORES, Way

Floats = npt.NDArray[np.float64]

PRODUCTS: dict[str, Similarity] = {"cosine": "cosine", "dot product": "dot"}
#: Whitened scores: the beginning of the name, and the run that has the features.
PROJECTED: dict[str, Way] = {"": "projected", "Adam-aware ": "adam-projected"}


def package_scores(runs: Mapping[Way, TracInRun], snapshots: Sequence[int], dampings: Sequence[float]) -> dict[str, Floats]:
    """`TracInRun.influence` by every named score, and by whitened scores of other dampings and by layer."""
    total: dict[str, Floats] = {}

    def add(index: int, name: str, way: Way, similarity: Similarity, weighting: Weighting = "uniform", **options: Any) -> None:
        score = runs[way].influence(similarity, weighting, [index], **options).to_numpy().astype(np.float64)
        total[name] = total[name] + score if name in total else score

    for index in snapshots:  # everything that needs a snapshot's features, so that they are whitened once
        for name, score in SCORES.items():
            add(index, name, score.way, score.similarity, score.weighting, damping=score.damping)
        add(index, "cosine, projected", "projected", "cosine", preconditioner="none")
        for damping in (one for one in dampings if one != DAMPING):  # that is a named score
            for before, way in PROJECTED.items():
                for product, similarity in PRODUCTS.items():
                    add(index, before + whitened_name(product, damping), way, similarity, damping=damping)
        add(index, "Fisher-whitened cosine by layer", "projected", "cosine", blocks="layer")
        add(index, "Fisher-whitened dot product by layer", "projected", "dot", blocks="layer")
    return total


def whitened_name(product: str, damping: float) -> str:
    """The name of a whitened score, without the damping if it is the default."""
    return f"Fisher-whitened {product}" + ("" if damping == DAMPING else f", damping {damping:g}")


def baselines(run: TracInRun, seed: int = 0) -> dict[str, Floats]:
    """Same label (+1 or -1), and random numbers."""
    return {
        "same label": same_label(run.train.label, run.probes.label),
        "random": random_scores(len(run.train), len(run.probes), seed),
    }


def reference_scores(made: Trial, run: TracInRun, snapshots: Sequence[int], dampings: Sequence[float]) -> dict[str, Floats]:
    """Plain, Adam-aware and Fisher-whitened scores, and the last two combined, from whole gradients of single samples."""
    total: dict[str, Floats] = {}

    def add(name: str, score: Floats) -> None:
        total[name] = total[name] + score if name in total else score

    for index in snapshots:
        plain, adam = (gram(made, run.snapshots[index], adam) for adam in (False, True))
        if "embeddings" in plain.blocks:
            add("cosine without embeddings", cosine(plain.values[_others(plain, "embeddings")].sum(0), plain.train))
        for before, of in (("", plain), ("Adam-aware ", adam)):
            products = of.values.sum(0)
            add(f"{before}cosine".strip(), cosine(products, of.train))
            add(f"{before}dot product".strip(), products[: of.train, of.train :])
            spectrum = Spectrum(products, of.train)
            for damping in dampings:
                add(before + whitened_name("cosine", damping), whitened_cosine(spectrum, damping))
                add(before + whitened_name("dot product", damping), spectrum.whitened(damping * spectrum.trace)[0])
    return total


def _others(of: Gram, block: str) -> list[int]:
    return [i for i, name in enumerate(of.blocks) if name != block]


def cosine(products: Floats, train: int) -> Floats:
    """Inner products over both norms, from a matrix of all inner products, train samples first."""
    norms = np.sqrt(np.diag(products))
    divided: Floats = products[:train, train:] / norms[:train, None] / norms[None, train:]
    return divided


class Spectrum:
    """Eigenvalues and eigenvectors of the train gradients' inner products, from which every damping follows.

    Args:
        products: inner products of all gradients [samples, samples], train samples first.
        train: how many train samples.
    """

    def __init__(self, products: Floats, train: int) -> None:
        values, self._vectors = np.linalg.eigh(products[:train, :train])
        self._values = np.clip(values, 0, None)
        self._along = self._vectors.T @ products[:train, train:]  # [train, probes]
        self._probe_norms = np.diag(products)[train:]
        self._train = train
        self.trace = float(self._values.sum()) / train  # of the mean outer product

    def whitened(self, ridge: float) -> tuple[Floats, Floats, Floats]:
        """Inner products in the metric of F^-1, F = G^T G / n + ridge I over the n train gradients G.

        Returns:
            Those of train samples with probes [train, probes]; the squared norms of train samples [train], of probes [probes].
        """
        inverse = 1 / (self._values + self._train * ridge)
        return (
            self._train * (self._vectors @ (inverse[:, None] * self._along)),
            self._train * (self._vectors**2 @ (self._values * inverse)),
            (self._probe_norms - (self._along**2 * inverse[:, None]).sum(0)) / ridge,
        )


def whitened_cosine(spectrum: Spectrum, damping: float) -> Floats:
    """Cosine in the metric of F^-1; damping is the ridge as a part of F's trace."""
    products, train_norms, probe_norms = spectrum.whitened(damping * spectrum.trace)
    divided: Floats = products / np.sqrt(train_norms[:, None] * probe_norms[None, :])
    return divided
