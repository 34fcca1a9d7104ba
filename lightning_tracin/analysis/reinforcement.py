"""E5: do other languages reinforce or complement (Choenni et al. 2023)?

A sample from *another* language in a probe's top k reinforces if its translation into the probe's own language is in the top k
too. Otherwise it complements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lightning_tracin.analysis.reliance import Interval, bootstrap_mean
from lightning_tracin.analysis.scores import Scores, ranked, require_k
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.storage.sample_table import SampleTable

COLUMNS = ("probe_language", "train_language", "reinforcing", "complementary", "chance", "low", "high", "probes", "samples")

#: The `train_language` of rows over all languages except the probe's own.
ALL = "all others"


def reinforcement_table(
    scores: Scores,
    train: SampleTable,
    probe_languages: Sequence[str],
    k: int,
    sign: Sign = "positive",
    interval: Interval | None = None,
) -> pd.DataFrame:
    """Fraction of the other-language samples in the top k whose own-language translation is in the top k too.

    Args:
        scores: influence [train, probes].
        train: the train samples; samples without an item have no translations.
        probe_languages: language of each probe.
        k: number of strongest train samples to count.
        sign: proponents or opponents.
        interval: settings of the bootstrap over probes.

    Returns:
        Columns `COLUMNS`. `reinforcing` is the mean over the probes that have such samples in their top k, `complementary` is
        1 - `reinforcing`. `chance` is the value for random ranks: the fraction of samples with an own-language translation,
        times the probability that it is in the top k too. `probes` and `samples` count the probes and top samples used. For a
        probe language without train samples, `reinforcing` and `chance` are 0 by construction.

    Raises:
        TracInError: no train sample has an item, an item occurs twice in a language, or k is out of range.

    Example:
        >>> train = SampleTable(("de", "en", "en"), ("1", "1", "2"), ("Hund", "dog", "cat"), (None, None, None))
        >>> table = reinforcement_table(np.array([[3.0], [2.0], [1.0]]), train, ["de"], k=3)
        >>> table[["train_language", "reinforcing", "chance"]].values.tolist()  # only "dog" translates a top German sample
        [['all others', 0.5, 0.5], ['en', 0.5, 0.5]]
    """
    require_k(k, len(scores))
    _require_items(train)
    language, item = np.asarray(train.language), train.item
    place = {(language[index], name): index for index, name in enumerate(item) if name is not None}
    top = ranked(scores, sign)[:k].T  # [probes, k]
    rows = []
    named = own_languages(probe_languages, train.language)
    for own in sorted(set(probe_languages)):
        trained = named.get(own, own)  # its name among the train languages
        translation = np.asarray([-1 if name is None else place.get((trained, name), -1) for name in item])
        mine = top[[probe for probe, other in enumerate(probe_languages) if other == own]]
        reinforces = np.stack([np.isin(translation[chosen], chosen) for chosen in mine])  # [probes, k]; -1 matches no index
        for other in (ALL, *sorted(set(train.language) - {trained})):
            group = (language != trained) if other == ALL else (language == other)
            counts = group[mine].sum(1)  # [probes]
            hits = (group[mine] & reinforces).sum(1)
            shares = hits[counts > 0] / counts[counts > 0]
            low, high = bootstrap_mean(shares[:, None], interval or Interval())
            mean = float(shares.mean()) if len(shares) else np.nan
            translated = float((translation[group] >= 0).mean()) if group.any() else np.nan
            chance = translated * (k - 1) / max(1, len(language) - 1)  # the translation is another of the top k
            rows.append((own, other, mean, 1 - mean, chance, low[0], high[0], len(shares), int(counts.sum())))
    return table_from(rows, COLUMNS)


def _require_items(train: SampleTable) -> None:
    if all(name is None for name in train.item):
        raise TracInError(
            "No train sample has an item, so it is unknown which samples are translations of each other; run the fit with "
            "`item_column=...`."
        )
    for (language, item), count in Counter(zip(train.language, train.item, strict=True)).items():
        if item is not None and count > 1:
            raise TracInError(
                f"Item {item!r} occurs twice in {language!r}, so a translation is not a unique sample; give every "
                "sentence an item of its own."
            )
