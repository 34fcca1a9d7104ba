"""What influence is compared with: scores that look at no gradient, in the same form, [train, probes].

A claim about reliance has to show what influence adds to these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lightning_tracin.analysis.scores import Scores
from lightning_tracin.errors import TracInError, needs
from lightning_tracin.storage.sample_table import SampleTable

#: Words, and single characters of scripts that are written without spaces (kana, Han, Thai, Lao, Burmese, Khmer).
_TOKENS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)

_SAME_LABEL, _REPRESENTATIONS = "same label", "representations"

#: The baselines by their names; a product of two is theirs, sample by sample.
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
    """Baselines by their names, equal scores in random order: arrays [train, probes].

    Args:
        names: some of `BASELINES`.
        train: the train samples.
        probes: the probes.
        representations: gives the fitted model's own, of the train samples and of the probes, each [samples, width]; called
            only if asked for. None leaves out what needs them.
        seed: of the random scores.
        missing: takes up which cannot be made and why, and they are left out; None makes that an error.

    Raises:
        TracInError: the samples have no texts or labels where these are needed, or there are no representations.
    """
    ways: dict[str, Callable[[], Scores]] = {
        "random": lambda: random_scores(len(train), len(probes), seed),
        _SAME_LABEL: lambda: same_label(train.label, probes.label),
        "BM25": lambda: lexical(train.text, probes.text),
    }
    if representations is not None:
        ways[_REPRESENTATIONS] = lambda: representation_similarity(*representations())
    parts = {name: name.split(" x ") for name in names}
    needed = dict.fromkeys(part for of in parts.values() for part in of if part in ways)
    tried = {part: _tried(part, ways[part], missing) for part in needed}
    made = {part: scores for part, scores in tried.items() if scores is not None}
    return {
        name: without_ties(np.prod([made[part] for part in of], axis=0), seed)
        for name, of in parts.items()
        if made.keys() >= {*of}
    }


def _tried(name: str, make: Callable[[], Scores], missing: list[str] | None) -> Scores | None:
    """A baseline; None where it cannot be made and that is no error."""
    try:
        return make()
    except TracInError as error:
        if missing is None:
            raise
        missing.append(f"{name}: {error}")
        return None


def random_scores(train: int, probes: int, seed: int = 0) -> Scores:
    """Scores that know nothing, all different: array [train, probes]."""
    return np.random.default_rng(seed).standard_normal((train, probes))


def same_label(train_labels: Sequence[str | None], probe_labels: Sequence[str | None]) -> Scores:
    """1 where a train sample has the probe's label, -1 where it has another: array [train, probes].

    Raises:
        TracInError: a sample has no label.
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
    """A text's words in lower case; each character by itself where the script has no spaces."""
    return _TOKENS.findall(text.lower())


def lexical(train_texts: Sequence[str], probe_texts: Sequence[str], tokenize: Callable[[str], Sequence[str]] = words) -> Scores:
    """BM25 of every train text for every probe's text (Robertson and Zaragoza 2009; Lucene's variant): array [train, probes].

    Args:
        train_texts: of the train samples, the documents.
        probe_texts: of the probes, the queries; a word that a probe has twice counts twice.
        tokenize: from a text to its tokens; a model's own tokenizer can stand here.

    Raises:
        TracInError: no train text has a token, or bm25s is not installed.
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
    """Scores with equal ones in random order: array [train, probes].

    A baseline gives many samples the same score (no word in common, the same label); a rank by position would then favour
    whatever language stands first in the data.
    """
    noise = np.random.default_rng(seed).random(scores.shape)
    found: Scores = scores + 1e-9 * max(1.0, float(np.abs(scores).max(initial=0.0))) * noise
    return found


def representation_similarity(train: npt.ArrayLike, probes: npt.ArrayLike) -> Scores:
    """Cosine of sentence representations: array [train, probes]; 0 where one of the two is zero.

    Args:
        train: of the train samples, [train, width].
        probes: of the probes, [probes, width].

    Raises:
        TracInError: the widths differ.
    """
    one, other = (np.asarray(side, dtype=np.float64) for side in (train, probes))
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise TracInError(f"Representations should be [samples, width] of one width, but are {one.shape} and {other.shape}.")
    one, other = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), np.finfo(np.float64).tiny) for side in (one, other)
    )
    similarity: Scores = one @ other.T
    return similarity
