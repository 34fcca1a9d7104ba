"""Baselines for influence: scores [train, probes] that use no gradients.

A claim about reliance has to show what influence adds to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lightning_tracin.analysis.scores import Scores
from lightning_tracin.errors import TracInError, needs
from lightning_tracin.storage.sample_table import SampleTable

#: Words, and single characters in scripts written without spaces (kana, Han, Thai, Lao, Burmese, Khmer).
_TOKENS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)

_SAME_LABEL, _REPRESENTATIONS = "same label", "representations"

#: Names of the baselines; `A x B` is the elementwise product of A and B.
BASELINES = (
    "random",
    _SAME_LABEL,
    "BM25",
    f"BM25 x {_SAME_LABEL}",
    _REPRESENTATIONS,
    f"{_REPRESENTATIONS} x {_SAME_LABEL}",
)


def baselines_of(
    names: Sequence[str],
    train: SampleTable,
    probes: SampleTable,
    representations: Callable[[], tuple[npt.ArrayLike, npt.ArrayLike]] | None,
    seed: int = 0,
    missing: list[str] | None = None,
) -> dict[str, Scores]:
    """Compute baselines by name: arrays [train, probes], ties broken at random.

    Args:
        names: some of `BASELINES`.
        train: the train samples.
        probes: the probes.
        representations: returns the fitted model's representations of the train samples and of the probes, each
            [samples, width]; called only if needed. None skips the baselines that need them.
        seed: seed of the random scores and of the tie-breaking.
        missing: collects the reason for each skipped baseline; None raises the error instead.

    Raises:
        TracInError: a baseline needs texts or labels that the samples do not have.

    Example:
        >>> train = SampleTable(("de", "en"), (None, None), ("Hund", "dog"), ("animal", "tool"))
        >>> skipped = []
        >>> list(baselines_of(["same label", "BM25"], train, SampleTable((), (), (), ()), None, missing=skipped))
        ['same label', 'BM25']
        >>> empty = SampleTable(("de",), (None,), ("",), (None,))
        >>> list(baselines_of(["random", "BM25"], empty, train, None, missing=skipped)), skipped[0][:5]
        (['random'], 'BM25:')
    """
    functions: dict[str, Callable[[], Scores]] = {
        "random": lambda: random_scores(len(train), len(probes), seed),
        _SAME_LABEL: lambda: same_label(train.label, probes.label),
        "BM25": lambda: lexical(train.text, probes.text),
    }
    if representations is not None:
        functions[_REPRESENTATIONS] = lambda: representation_similarity(*representations())
    parts = {name: name.split(" x ") for name in names}
    needed = dict.fromkeys(factor for factors in parts.values() for factor in factors if factor in functions)
    results = {factor: _scores_or_none(factor, functions[factor], missing) for factor in needed}
    scores = {factor: result for factor, result in results.items() if result is not None}
    return {
        name: without_ties(np.prod([scores[factor] for factor in factors], axis=0), seed)
        for name, factors in parts.items()
        if scores.keys() >= {*factors}
    }


def _scores_or_none(name: str, compute: Callable[[], Scores], missing: list[str] | None) -> Scores | None:
    """The baseline's scores, or None after adding the error to `missing`."""
    try:
        return compute()
    except TracInError as error:
        if missing is None:
            raise
        missing.append(f"{name}: {error}")
        return None


def random_scores(train: int, probes: int, seed: int = 0) -> Scores:
    """Standard normal scores: array [train, probes].

    Example:
        >>> random_scores(train=3, probes=2).shape
        (3, 2)
    """
    return np.random.default_rng(seed).standard_normal((train, probes))


def same_label(train_labels: Sequence[str | None], probe_labels: Sequence[str | None]) -> Scores:
    """1 where a train sample has the probe's label, -1 elsewhere: array [train, probes].

    Raises:
        TracInError: a sample has no label.

    Example:
        >>> same_label(["pos", "neg"], ["pos"]).tolist()
        [[1.0], [-1.0]]
    """
    for role, labels in (("train samples", train_labels), ("probes", probe_labels)):
        if any(label is None for label in labels):
            raise TracInError(
                f"The {role} have no labels to compare (sample {list(labels).index(None)} has none); run the fit with a label "
                "column in both data sets, or leave out the baselines that use it."
            )
    equal = np.asarray(train_labels, dtype=object)[:, None] == np.asarray(probe_labels, dtype=object)[None, :]
    return np.where(equal, 1.0, -1.0)


def words(text: str) -> list[str]:
    """Lowercased words of a text; single characters in scripts without spaces.

    Example:
        >>> words("Guten Tag! 東京")
        ['guten', 'tag', '東', '京']
    """
    return _TOKENS.findall(text.lower())


def lexical(train_texts: Sequence[str], probe_texts: Sequence[str], tokenize: Callable[[str], Sequence[str]] = words) -> Scores:
    """BM25 score of each train text for each probe text (Robertson and Zaragoza 2009; Lucene's variant): array [train, probes].

    Args:
        train_texts: the documents.
        probe_texts: the queries; a word that occurs twice in a query counts twice.
        tokenize: splits a text into tokens, for example the model's own tokenizer.

    Raises:
        TracInError: no train text has a token, or bm25s is not installed.

    Example:
        >>> (lexical(["the cat sat", "a dog"], ["my cat"]) > 0).tolist()
        [[True], [False]]
    """
    bm25s = needs("bm25s", "report", "Baselines by BM25")
    documents = [list(tokenize(text)) for text in train_texts]
    if not any(documents):
        raise TracInError("The train samples have no text to compare; name their columns with `text_columns=[...]`.")
    known = {token for document in documents for token in document}
    index = bm25s.BM25(method="lucene")
    index.index(documents, show_progress=False)
    scores: Scores = np.zeros((len(documents), len(probe_texts)))
    for probe, text in enumerate(probe_texts):
        query = [token for token in tokenize(text) if token in known]
        if query:
            scores[:, probe] = index.get_scores(query)
    return scores


def without_ties(scores: Scores, seed: int = 0) -> Scores:
    """Break ties at random: array [train, probes].

    A baseline gives many samples the same score (no common word, the same label). Ranking them by position would favour the
    language that comes first in the data.

    Example:
        >>> int(without_ties(np.array([[1.0], [1.0], [2.0]])).argmax()), len(set(without_ties(np.ones(9))))
        (2, 9)
    """
    noise = np.random.default_rng(seed).random(scores.shape)
    return scores + 1e-9 * max(1.0, float(np.abs(scores).max(initial=0.0))) * noise


def representation_similarity(train: npt.ArrayLike, probes: npt.ArrayLike) -> Scores:
    """Cosine similarity of sentence representations: array [train, probes]; 0 if either is a zero vector.

    Args:
        train: representations of the train samples, [train, width].
        probes: representations of the probes, [probes, width].

    Raises:
        TracInError: the widths differ.

    Example:
        >>> representation_similarity([[3, 4], [0, 0]], [[1, 0]]).tolist()
        [[0.6], [0.0]]
    """
    one, other = (np.asarray(side, dtype=np.float64) for side in (train, probes))
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise TracInError(f"Representations should be [samples, width] of one width, but are {one.shape} and {other.shape}.")
    one, other = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), np.finfo(np.float64).tiny) for side in (one, other)
    )
    similarity: Scores = one @ other.T
    return similarity
