"""Every combination of options that scores depend on: equal to its formula on gradients from a loop, or refused.

The table is the full product of the values in `config`, so a new value fails here until it has a formula or a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.attribution.ekfac import halves_of
from lightning_tracin.attribution.method import BUILT_IN, method_of
from lightning_tracin.config import Blocks, Preconditioner, Preconditioning, Scoring, Similarity, Weighting
from lightning_tracin.gradients.second_moments import DAMPINGS
from tests.support.two_rates import (
    ALSO_PROBES,
    GROUPS,
    LAYERS,
    PROBES,
    TRAIN,
    Floats,
    Moment,
    Probes,
    Vectors,
    fit,
    gradients_of,
    layer_of,
    mask_file,
    some_elements,
)

DAMPING = 0.02
STEPS, SAMPLES = 2, 10  # of an epoch: a visit is worth one part of the samples of a step
ADAM = ("adam", "adam-fisher")  # the preconditioners for which a fit keeps Adam's second moments
FACTORED = "adam-factored"  # for which it keeps them factored


@dataclass(frozen=True)
class Made:
    """How a run is made."""

    method: str
    preconditioner: str | None
    masked: bool
    per_layer: bool

    def settings(self, folder: Path) -> dict[str, Any]:
        needed = {"projected": {"projection_dim": 100}, "ekfac": {"method": "ekfac"}, "means": {"language_means": True}}
        mask = {"mask": mask_file(folder)} if self.masked else {}
        return {
            **needed.get(self.method, {}),
            **mask,
            "preconditioner": self.preconditioner,
            "per_layer": self.per_layer,
            "dtype": "float64",
        }

    @property
    def refused(self) -> str | None:
        """The message that a fit is refused with."""
        if self.preconditioner in ("fisher", "adam-fisher") and self.method != "projected":
            return rf"preconditioner='{self.preconditioner}' whitens projected features; give a `projection_dim` too"
        if self.preconditioner in ("adam", FACTORED) and self.method == "means":
            return rf"preconditioner='{self.preconditioner}' acts on single elements of a gradient; leave out `language_means`"
        if self.masked and self.method == "ekfac":
            return r"The method 'ekfac' does not support a mask"
        if self.preconditioner in ("adam", FACTORED) and self.method == "ekfac":
            return rf"The method 'ekfac' does not support preconditioner='{self.preconditioner}'"
        if self.masked and self.method != "exact":
            return r"mask='.*' needs exact influence; leave out `language_means` and `projection_dim`"
        return None


@dataclass(frozen=True)
class Asked:
    """How its scores are read."""

    similarity: Any
    weighting: Any
    preconditioner: Any
    blocks: Any
    by: Any

    def refused(self, made: Made) -> str | None:
        """The message that this reading of the run is refused with."""
        if self.by == "layer" and not made.per_layer:
            return r"keeps no products by layer; run the fit with `TracInCallback\(per_layer=True\)`"
        if self.by == "layer" and made.method == "means" and self.similarity == "cosine":
            return r"a layer's own cosine does not follow .* take similarity='dot' or 'relatif'"
        if self.preconditioner is not None and made.method == "ekfac":
            return rf"method='ekfac', so it has no scores with preconditioner='{self.preconditioner}'; leave `preconditioner` out"
        if self.preconditioner == "adam" and made.preconditioner not in ADAM:
            return r"preconditioner='adam'; run the fit with `TracInCallback\(preconditioner='adam'\)`"
        if self.preconditioner == FACTORED and made.preconditioner != FACTORED:
            return r"preconditioner='adam-factored'; run the fit with `TracInCallback\(preconditioner='adam-factored'\)`"
        if self.preconditioner == "fisher" and made.preconditioner in (*ADAM, FACTORED):
            return rf"preconditioner='fisher'; run .* a `projection_dim` and without preconditioner='{made.preconditioner}'"
        if self.preconditioner == "fisher" and made.method != "projected":
            return r"preconditioner='fisher'; run the fit with a `projection_dim`"
        if self.preconditioner == "adam-fisher" and (made.method != "projected" or made.preconditioner not in ADAM):
            return r"preconditioner='adam-fisher'; run the fit with `TracInCallback\(preconditioner='adam-fisher'\)` and a `proj"
        if self.preconditioner == "none" and made.preconditioner in (*ADAM, FACTORED):
            return r"preconditioner='none'; run the fit with `preconditioner=None`"
        if self.by == "layer" and self.used(made) in ("fisher", "adam-fisher") and self.blocks == "whole":
            return rf"preconditioner='{self.used(made)}' with blocks='whole' mixes the layers; take blocks='layer'"
        return None

    def used(self, made: Made) -> str:
        """The preconditioner that applies, or the method's own inner product."""
        return made.method if made.method == "ekfac" else self.preconditioner or made.preconditioner or "none"


MADE = [Made(*one) for one in product(BUILT_IN, (None, *get_args(Preconditioner)), (False, True), (True, False))]
ASKED = [
    Asked(*one)
    for one in product(
        get_args(Similarity), get_args(Weighting), (None, *get_args(Preconditioning)), get_args(Blocks), (None, "layer")
    )
]
POSSIBLE = [made for made in MADE if made.refused is None]

Pieces = list[tuple[str, list[str], float, Floats]]  # layer, parameters, weight, inner product


def weights(moment: Moment, weighting: str) -> Floats:
    """Of each group."""
    return {"uniform": np.ones(3), "learning_rate": moment.weights}[weighting]


def plain_pieces(moment: Moment, train: dict[str, Floats], made: Made, asked: Asked) -> Pieces:
    """Groups within layers, with elements weighted alone: by 1, Adam's P, and 0 outside the mask."""
    pieces: Pieces = []
    kept = some_elements()
    for name, group in GROUPS.items():
        scales = {"adam": moment.preconditioner, FACTORED: moment.factored}.get(asked.used(made))
        scale = np.ones(train[name].shape[1]) if scales is None else scales[name].numpy()
        if made.masked:
            scale = scale * kept[name].flatten().numpy() if name in kept else 0 * scale
        pieces.append((layer_of(name), [name], weights(moment, asked.weighting)[group], np.diag(scale)))
    return pieces


def whitened_pieces(moment: Moment, train: dict[str, Floats], made: Made, asked: Asked) -> Pieces:
    """N = (F + c R^-1)^-1 of all parameters or of each layer, and its weight s; see `analysis.fisher`."""
    whole = sum(float((one**2).sum()) for one in train.values()) / TRAIN
    blocks = {"whole": [list(GROUPS)], "layer": [[name for name in GROUPS if layer_of(name) == layer] for layer in LAYERS]}
    pieces: Pieces = []
    for names in blocks[asked.blocks]:
        features = np.concatenate([train[name] for name in names], 1)
        rates = np.concatenate([np.full(train[name].shape[1], weights(moment, asked.weighting)[GROUPS[name]]) for name in names])
        moments = features.T @ features / TRAIN
        s = (rates * np.diag(moments)).sum() / np.trace(moments)
        ridge = DAMPING * whole * s / np.maximum(rates, 1e-12)  # a rate of 0 is a very small one
        pieces.append((layer_of(names[0]), names, s, np.linalg.inv(moments + np.diag(ridge))))
    return pieces


def scaled_and_whitened_pieces(moment: Moment, train: dict[str, Floats], made: Made, asked: Asked) -> Pieces:
    """S N S with S = sqrt(P) of Adam, where N whitens the scaled gradients S g."""
    scales = {name: np.sqrt(moment.preconditioner[name].numpy()) for name in train}
    pieces = whitened_pieces(moment, {name: one * scales[name] for name, one in train.items()}, made, asked)
    both = [np.concatenate([scales[name] for name in names]) for _, names, _, _ in pieces]
    return [(layer, names, s, one[:, None] * inner * one) for (layer, names, s, inner), one in zip(pieces, both, strict=True)]


def ekfac_pieces(moment: Moment, train: dict[str, Floats], made: Made, asked: Asked) -> Pieces:
    """EK-FAC's damped inverse of each parameter, with the Kronecker products of eigenvectors written out.

    All layers are Linear and see one position, so a bias has the output gradients as gradients, and the input is what is left of
    the weight's.
    """
    pieces: Pieces = []
    halves = halves_of([None] * TRAIN).numpy()
    for name, group in GROUPS.items():
        basis, gradients = np.eye(train[name].shape[1]), train[name]
        if name.endswith("weight"):
            outputs = train[name.replace("weight", "bias")]
            matrices = gradients.reshape(TRAIN, outputs.shape[1], -1)
            inputs = np.einsum("no,noi->ni", outputs, matrices) / (outputs**2).sum(1, keepdims=True)
            basis = np.kron(np.linalg.eigh(outputs.T @ outputs)[1], np.linalg.eigh(inputs.T @ inputs)[1])
        squares = (gradients @ basis) ** 2
        known = squares.sum(0) > 1e-12 * squares.sum(0).max()  # a softmax's output gradients add up to 0: one direction has none
        basis, squares = basis[:, known], squares[:, known]
        first, second = squares[halves == 0].mean(0), squares[halves == 1].mean(0)
        held_out = []
        for damping in DAMPINGS:
            c = damping * (first + second).mean() / 2
            held_out.append((np.log(first + c) + second / (first + c) + np.log(second + c) + first / (second + c)).sum())
        values = squares.mean(0)
        inverse = basis @ np.diag(1 / (values + DAMPINGS[int(np.argmin(held_out))] * values.mean())) @ basis.T
        pieces.append((layer_of(name), [name], weights(moment, asked.weighting)[group], inverse))
    return pieces


PIECES: dict[str, Callable[[Moment, dict[str, Floats], Made, Asked], Pieces]] = {
    "none": plain_pieces,
    "adam": plain_pieces,
    FACTORED: plain_pieces,
    "fisher": whitened_pieces,
    "adam-fisher": scaled_and_whitened_pieces,
    "ekfac": ekfac_pieces,
}


def score(pieces: Pieces, train: dict[str, Floats], probes: dict[str, Floats], similarity: str) -> Floats:
    """DESIGN's formula (section 2): weighted inner products, over norms of the same inner products."""
    dot, left, right = np.zeros((TRAIN, PROBES)), np.zeros(TRAIN), np.zeros(PROBES)
    for _, names, weight, inner in pieces:
        phi, psi = (np.concatenate([side[name] for name in names], 1) for side in (train, probes))
        dot += weight * (phi @ inner @ psi.T)
        left += np.einsum("nd,de,ne->n", phi, inner, phi)
        right += np.einsum("nd,de,ne->n", psi, inner, psi)
    left, right = np.sqrt(left)[:, None], np.sqrt(right)[None]
    return dot / {"dot": np.ones((1, 1)), "cosine": left * right, "relatif": left}[similarity]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Moment, dict[str, Floats], dict[str, Floats]]]:
    """What a fit without callback goes through, with the gradients of its train samples and probes."""
    module = fit(tmp_path_factory.mktemp("plain"))
    return [(moment, *gradients_of(moment)) for moment in module.moments]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Made], TracInRun]:
    """Makes a run when it is first asked for."""
    made_runs: dict[Made, TracInRun] = {}

    def run_of(made: Made) -> TracInRun:
        if made not in made_runs:
            folder = tmp_path_factory.mktemp(made.method)
            fit(folder, TracInCallback(folder / "run", top_k=3, batch_size=4, **made.settings(folder)))
            made_runs[made] = TracInRun.open(folder / "run")
        return made_runs[made]

    return run_of


def expected(moments: Any, made: Made, asked: Asked, layer: str | None = None) -> Floats:
    """The sum over snapshots; columns are languages for language means."""
    total = np.zeros((TRAIN, PROBES))
    for moment, train, probes in moments:
        pieces = PIECES[asked.used(made)](moment, train, made, asked)
        total += score([one for one in pieces if layer in (None, one[0])], train, probes, asked.similarity)
    if made.method != "means":
        return total
    languages = np.array(Probes().language)
    return np.stack([total[:, languages == language].mean(1) for language in ("de", "en", "ru")], 1)


def name(value: Any) -> str:
    return "-".join(map(str, vars(value).values()))


def tolerance(made: Made) -> float:
    """Of the largest score; features are stored in half precision."""
    return 5e-3 if made.method == "projected" else 1e-5


@pytest.mark.parametrize("made", [made for made in MADE if made.refused is not None], ids=name)
def test_fits_that_cannot_be_made_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=made.refused):
        method_of(TracInCallback(tmp_path / "run", **made.settings(tmp_path)).options)


@pytest.mark.parametrize("asked", ASKED, ids=name)
@pytest.mark.parametrize("made", POSSIBLE, ids=name)
def test_scores_equal_their_formula_or_are_refused(made: Made, asked: Asked, runs: Any, moments: Any) -> None:
    run = runs(made)
    chosen = {**vars(asked), "damping": DAMPING}
    if message := asked.refused(made):
        with pytest.raises(TracInError, match=message):
            run.reliance(3, measure="mean", **chosen)
        return
    if asked.by is None:
        del chosen["by"]
        want, got = expected(moments, made, asked), run.influence(**chosen).to_numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(made) * np.abs(want).max())
        if made.method != "means" and asked.similarity != "relatif":  # one inner product for train samples and probes
            square = got[:ALSO_PROBES, :ALSO_PROBES]
            np.testing.assert_allclose(square, square.T, rtol=0, atol=tolerance(made) * np.abs(want).max())
            assert np.linalg.eigvalsh(square + square.T).min() >= -tolerance(made) * np.abs(square).max()
        return
    table = run.reliance(measure="mean", cumulative=True, snapshots=[1], **chosen)
    kept = [layer for layer in LAYERS if not made.masked or any(layer_of(name) == layer for name in some_elements())]
    assert list(table["layer"].unique()) == kept
    means = table.set_index(["layer", "probe_language", "train_language"])["value"]
    train, columns = np.array(Vectors(0, TRAIN).language), np.array(run.queries.language)
    in_nats = asked.used(made) in ("adam", FACTORED) and (asked.similarity, asked.weighting) == ("dot", "learning_rate")
    for layer in kept:
        want = expected(moments, made, asked, layer) * (STEPS / SAMPLES if in_nats else 1.0)
        for one, other in product(("de", "en", "ru"), repeat=2):
            cell = want[np.ix_(train == other, columns == one)].mean()
            assert means[layer, one, other] == pytest.approx(cell, rel=0, abs=tolerance(made) * np.abs(want).max())
    if asked.similarity == "dot":
        whole = run.reliance(measure="mean", cumulative=True, snapshots=[1], **{**chosen, "by": None})
        summed = means.groupby(level=[1, 2]).sum()
        want = whole.set_index(["probe_language", "train_language"])["value"].sort_index()
        np.testing.assert_allclose(summed, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))


def test_every_field_of_a_score_is_in_the_table() -> None:
    assert set(Scoring.model_fields) == {*vars(ASKED[0])} - {"by"} | {"damping"}
