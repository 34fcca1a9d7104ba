"""Tables of languages that need no influence: what a table of influence has to be better than.

Each is a function to [probe languages, train languages], both in the given order. Baselines that score single samples
(`analysis.baselines`) become tables by their mean over the samples and probes of two languages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.tables import own_cells
from lightning_tracin.storage.sample_table import SampleTable

Floats = npt.NDArray[np.float64]

#: Length of the character sequences that languages are compared by.
_LENGTH = 3


def identity_table(probe_languages: Sequence[str], train_languages: Sequence[str]) -> Floats:
    """1 for a probe language's own train language, 0 for others: "one's own language first".

    Example:
        >>> identity_table(["de", "fr"], ["de", "en"]).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    return own_cells(pd.DataFrame(index=list(probe_languages), columns=list(train_languages))).astype(np.float64)


def spelling_table(
    train: SampleTable, probes: SampleTable, probe_languages: Sequence[str], train_languages: Sequence[str]
) -> Floats:
    """Cosine of the counts of character trigrams in the texts of two languages; 0 if one has no text.

    Example:
        >>> train = SampleTable(("de", "ru"), (None,) * 2, ("Hund", "собака"), (None,) * 2)
        >>> spelling_table(train, SampleTable(("nl",), (None,), ("hond",), (None,)), ["nl"], ["de", "ru"]).round(2).tolist()
        [[0.25, 0.0]]
    """
    one = [_trigrams(probes, language) for language in probe_languages]
    other = [_trigrams(train, language) for language in train_languages]
    return np.asarray([[_cosine(first, second) for second in other] for first in one])


def _trigrams(table: SampleTable, language: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for text, own in zip(table.text, table.language, strict=True):
        if own == language:
            padded = f" {' '.join(text.lower().split())} "
            found.update(padded[start : start + _LENGTH] for start in range(len(padded) - _LENGTH + 1))
    return found


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    product = sum(count * other[gram] for gram, count in one.items())
    sizes = [float(np.sqrt(sum(count**2 for count in grams.values()))) for grams in (one, other)]
    return product / (sizes[0] * sizes[1]) if product else 0.0


def mean_table(
    scores: npt.ArrayLike, train: SampleTable, probes: SampleTable, probe_languages: Sequence[str], train_languages: Sequence[str]
) -> Floats:
    """Mean of scores [train, probes] over the samples and the probes of two languages.

    Example:
        >>> train, probes = (SampleTable(names, (None,) * 2, ("",) * 2, (None,) * 2) for names in (("de", "de"), ("en", "fr")))
        >>> mean_table([[1.0, 2.0], [3.0, 6.0]], train, probes, ["en", "fr"], ["de"]).tolist()
        [[2.0], [4.0]]
    """
    rows, columns = np.asarray(train.language), np.asarray(probes.language)
    values = np.asarray(scores, dtype=np.float64)
    return np.asarray(
        [[values[rows == name][:, columns == probe].mean() for name in train_languages] for probe in probe_languages]
    )
