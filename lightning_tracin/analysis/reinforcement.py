"""E5: do other languages reinforce or complement (Choenni et al. 2023)?

Of the samples from *other* languages in a probe's top k, those whose item also stands there in the probe's own language say
the same thing again: they reinforce. The rest say something else: they complement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lightning_tracin.analysis.reliance import Floats, Interval, bootstrap_mean
from lightning_tracin.analysis.scores import Scores, ranked, require_k
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable

COLUMNS = ("probe_language", "train_language", "reinforcing", "complementary", "chance", "low", "high", "probes", "samples")

#: In the column `train_language`: all languages but the probe's own.
ALL = "all others"


def reinforcement_table(
    scores: Scores,
    train: SampleTable,
    probe_languages: Sequence[str],
    k: int,
    sign: Sign = "positive",
    interval: Interval | None = None,
) -> pd.DataFrame:
    """How much of the top k from other languages is a translation of something in the own language's part of the top k.

    Args:
        scores: influence [train, probes].
        train: the train samples; those without an item are nobody's translation.
        probe_languages: of each probe.
        k: how many of the strongest train samples count.
        sign: proponents or opponents.
        interval: the bootstrap over probes.

    Returns:
        Columns `COLUMNS`. `reinforcing` is the mean over the probes that have such samples in their top k, `complementary` the
        rest to 1, `chance` what random ranks give (the part that has a translation in the own language, times the
        probability that this one stands in the top k too), `probes` how many probes counted, `samples` how many of their top
        samples. A probe language without train samples has no translations in its own language: its lines are 0 by construction.

    Raises:
        TracInError: no train sample has an item, an item occurs twice in a language, or k is out of range.
    """
    require_k(k, len(scores))
    _require_items(train)
    language, item = np.asarray(train.language), train.item
    place = {(language[index], name): index for index, name in enumerate(item) if name is not None}
    top = ranked(scores, sign)[:k].T  # [probes, k]
    rows = []
    for own in sorted(set(probe_languages)):
        translation = np.asarray([-1 if name is None else place.get((own, name), -1) for name in item])
        mine = [probe for probe, other in enumerate(probe_languages) if other == own]
        others = [ALL, *sorted(set(train.language) - {own})]
        shares, counts = _shares(top[mine], language, translation, own, others)
        expected = _chance(language, translation, own, others, k)
        for column, other in enumerate(others):
            counted = np.isfinite(shares[:, column])
            low, high = bootstrap_mean(shares[counted][:, [column]], interval or Interval())
            mean = float(shares[counted, column].mean()) if counted.any() else np.nan
            rows.append(
                (own, other, mean, 1 - mean, expected[column], low[0], high[0], int(counted.sum()), int(counts[:, column].sum()))
            )
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return table


def _shares(
    top: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    language: np.ndarray[tuple[int, ...], np.dtype[np.str_]],
    translation: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    own: str,
    others: Sequence[str],
) -> tuple[Floats, Floats]:
    """The reinforcing share (NaN where a probe has no such sample) and the number of samples: [probes, others] each."""
    shares, counts = np.full((len(top), len(others)), np.nan), np.zeros((len(top), len(others)))
    for probe, chosen in enumerate(top):
        again = np.isin(translation[chosen], chosen)  # -1 is no index
        for column, other in enumerate(others):
            here = (language[chosen] != own) if other == ALL else (language[chosen] == other)
            counts[probe, column] = here.sum()
            if here.any():
                shares[probe, column] = again[here].mean()
    return shares, counts


def _chance(
    language: np.ndarray[tuple[int, ...], np.dtype[np.str_]],
    translation: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    own: str,
    others: Sequence[str],
    k: int,
) -> list[float]:
    """What random ranks give: a sample in the top k leaves k - 1 of N - 1 places for its translation."""
    expected = []
    for other in others:
        here = (language != own) if other == ALL else (language == other)
        has = float((translation[here] >= 0).mean()) if here.any() else np.nan
        expected.append(has * (k - 1) / max(1, len(language) - 1))
    return expected


def _require_items(train: SampleTable) -> None:
    if all(name is None for name in train.item):
        raise TracInError(
            "No train sample has an item, so it is not known which samples are translations of each other; run the fit with "
            "`item_column=...`."
        )
    seen = set()
    for pair in zip(train.language, train.item, strict=True):
        if pair[1] is not None and pair in seen:
            raise TracInError(
                f"Item {pair[1]!r} occurs twice in {pair[0]!r}, so its translations are not one sample a language; give every "
                "sentence an item of its own."
            )
        seen.add(pair)
