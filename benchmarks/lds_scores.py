"""The scores that are compared: the package's own, reference forms of the preconditioned ones, and baselines.

A score is an array [train, probes], summed over snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from lds_fits import Trial
from lds_grams import Gram, gram

from lightning_tracin import TracInRun

Floats = npt.NDArray[np.float64]
DIMENSIONS = 4096  # whose mean diagonal `damping` is a multiple of: F's trace over so many, whatever the number of parameters


def package_scores(run: TracInRun, snapshots: Sequence[int]) -> dict[str, Floats]:
    """What `TracInRun.influence` gives."""
    return {
        "cosine": run.influence("cosine", snapshots=snapshots).to_numpy(),
        "dot product": run.influence("dot", snapshots=snapshots).to_numpy(),
        "dot product x learning rate": run.influence("dot", "learning_rate", snapshots=snapshots).to_numpy(),
        "relatif": run.influence("relatif", snapshots=snapshots).to_numpy(),
    }


def baselines(run: TracInRun, seed: int = 0) -> dict[str, Floats]:
    """Same label (+1 or -1), and random numbers."""
    train, probes = (np.asarray([str(label) for label in table.label]) for table in (run.train, run.probes))
    same = np.where(train[:, None] == probes[None, :], 1.0, -1.0)
    return {"same label": same, "random": np.random.default_rng(seed).normal(size=same.shape)}


def reference_scores(made: Trial, run: TracInRun, snapshots: Sequence[int], dampings: Sequence[float]) -> dict[str, Floats]:
    """Adam-aware and Fisher-whitened cosine, and both at once, from whole gradients."""
    total: dict[str, Floats] = {}

    def add(name: str, score: Floats) -> None:
        total[name] = total[name] + score if name in total else score

    for index in snapshots:
        plain, adam = (gram(made, run.snapshots[index], adam) for adam in (False, True))
        add("cosine without embeddings", cosine(plain.values[_others(plain, "embeddings")].sum(0), plain.train))
        add("Adam-aware cosine", cosine(adam.values.sum(0), adam.train))
        for name, blocks in (
            ("Fisher-whitened cosine", plain.values.sum(0)[None]),
            ("Fisher-whitened cosine by block", plain.values),
            ("Adam-aware and whitened cosine", adam.values.sum(0)[None]),
        ):
            spectra = [Spectrum(block, plain.train) for block in blocks]
            for damping in dampings:
                add(f"{name}, damping {damping:g}", whitened_cosine(spectra, damping))
                if len(spectra) == 1:
                    product = spectra[0].whitened(damping * spectra[0].trace / DIMENSIONS)[0]
                    add(f"{name}, damping {damping:g}".replace("cosine", "dot product"), product)
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


def whitened_cosine(blocks: Sequence[Spectrum], damping: float) -> Floats:
    """Cosine in the metric of F^-1, a matrix of these blocks; the ridge of each is relative to its own trace."""
    parts = [block.whitened(damping * block.trace / DIMENSIONS) for block in blocks]
    products, train_norms, probe_norms = (np.sum([part[i] for part in parts], axis=0) for i in range(3))
    divided: Floats = products / np.sqrt(train_norms[:, None] * probe_norms[None, :])
    return divided
