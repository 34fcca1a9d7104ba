"""Every setting of the known truth: sizes, models, scores and measures. What is measured stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning_tracin.config import Measure

ARMS: Mapping[str, str] = {
    "different": "different documents in four languages that share a part p of their words",
    "parallel": "the same documents in four languages that share a part p of their words",
    "noise": "different documents in four clones that share all words, of which one has wrong labels",
    "sizes": "four languages with half as many, as many, and twice as many documents",
    "labels": "two pairs of languages, each with other frequent labels",
    "families": "two families of languages and an isolate",
}
#: The coverage of intervals, which is asked for like an arm.
INTERVALS = "intervals"
MODELS: Mapping[str, str] = {
    "mlp": "mean of word embeddings, one hidden layer",
    "xlmr": "XLM-R with one layer, from scratch, on whole words",
    "encoder": "the pretrained sentence encoder on whole words, embeddings frozen; clones' own words have rows of other pieces",
}
MEASURES: tuple[Measure, ...] = ("sum", "mean", "share", "mass")


@dataclass(frozen=True)
class Plan:
    """Sizes of the worlds, of their fits and of what is computed from them.

    Attributes:
        train: train documents of each language.
        probes: probes of each language: the same unselected documents in every language.
        parts: parts of the words that languages share.
        parallel_parts: those of parallel documents, where every set of languages is fitted on.
        noise: parts of the labels of the noisy language that are wrong.
        seeds: fits of each kind that the truth is averaged over; they differ in first weights and order.
        scored: of these, how many are attributed.
        redraws: data sets drawn for the coverage of intervals.
        resamples: of the bootstrap of each interval.
        top_k: what shares count.
        epochs: of each fit; a snapshot is taken after every second.
        batch_size: documents in an optimizer step.
        rates: highest learning rate of each model.
        width: of embeddings and hidden layers.
        words: longest text; the rest is left out.
        projection_dim: features of the Fisher-whitened scores.
        need_dim: features of the predicted need; embeddings that are trained need many, because their gradients are sparse.
        seed: of the draw of documents.
    """

    train: int = 200
    probes: int = 60
    parts: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    parallel_parts: tuple[float, ...] = (0.0, 0.5, 1.0)
    noise: tuple[float, ...] = (0.0, 0.2, 0.4)
    seeds: int = 8
    scored: int = 2
    redraws: int = 20
    resamples: int = 199
    top_k: int = 50
    epochs: int = 8
    batch_size: int = 32
    rates: tuple[tuple[str, float], ...] = (("mlp", 5e-3), ("xlmr", 2e-3), ("encoder", 3e-4))
    width: int = 32
    words: int = 32
    projection_dim: int = 512
    need_dim: int = 16_384
    seed: int = 0

    @property
    def fewer(self) -> int:
        """Train documents of each language where many languages, or those with few labels, share the text there is."""
        return self.train * 3 // 4

    def rate(self, model: str) -> float:
        """The highest learning rate of a model."""
        return dict(self.rates)[model]

    def of(self, model: str) -> Plan:
        """The plan of a model: a slow one has fewer worlds, and the encoder half of the documents and epochs."""
        if model == "mlp":
            return self
        ends, last = (self.parts[0], self.parts[-1]), self.parallel_parts[-1:]
        fewer = replace(self, parts=ends, parallel_parts=last, noise=self.noise[-1:])
        return fewer if model != "encoder" else replace(fewer, train=self.train // 2, epochs=self.epochs // 2)


#: A quick look, as the tests have.
SMALL = Plan(
    train=60,
    probes=30,
    parts=(0.0, 0.5, 1.0),
    parallel_parts=(0.0, 1.0),
    noise=(0.0, 0.4),
    seeds=3,
    scored=1,
    redraws=4,
    need_dim=4096,
    resamples=99,
    top_k=20,
)
