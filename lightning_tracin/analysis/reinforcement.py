"""E5: do other languages reinforce or complement (Choenni et al. 2023)?

A sample from *another* language in a probe's top k reinforces if its translation into the probe's own language is in the top k
too. Otherwise it complements.

Chance keeps what makes translations meet without their being translations: a probe's strongest samples have its label, and many
are in its own language. So the own-language samples in the top k are exchanged for others with the same labels: a translation is
among them with as many chances as there are own-language samples of its label there, out of all that are trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.resampling import Floats, Integers, Interval, bootstrap_mean
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
        1 - `reinforcing`. `chance` is what `reinforcing` would be if the own-language samples in the top k were others with the
        same labels; NaN without such probes. `probes` and `samples` count the probes and top samples used. For a probe language
        without train samples, `reinforcing` and `chance` are 0 by construction.

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
    label = np.unique(np.asarray([str(one) for one in train.label]), return_inverse=True)[1]
    place = {(language[index], name): index for index, name in enumerate(item) if name is not None}
    top = ranked(scores, sign)[:k].T  # [probes, k]
    rows = []
    named = own_languages(probe_languages, train.language)
    for own in sorted(set(probe_languages)):
        trained = named.get(own, own)  # its name among the train languages
        translation = np.asarray([-1 if name is None else place.get((trained, name), -1) for name in item])
        mine = top[[probe for probe, other in enumerate(probe_languages) if other == own]]
        reinforces = np.stack([np.isin(translation[chosen], chosen) for chosen in mine])  # [probes, k]; -1 matches no index
        likely = np.stack([_chance(chosen, translation, label, language == trained) for chosen in mine])  # [probes, k]
        for other in (ALL, *sorted(set(train.language) - {trained})):
            group = (language != trained) if other == ALL else (language == other)
            counts = group[mine].sum(1)  # [probes]
            hits = (group[mine] & reinforces).sum(1)
            shares = hits[counts > 0] / counts[counts > 0]
            low, high = bootstrap_mean(shares[:, None], interval or Interval())
            mean = float(shares.mean()) if len(shares) else np.nan
            expected = (group[mine] * likely).sum(1)[counts > 0] / counts[counts > 0]
            chance = float(expected.mean()) if len(expected) else np.nan
            rows.append((own, other, mean, 1 - mean, chance, low[0], high[0], len(shares), int(counts.sum())))
    return table_from(rows, COLUMNS)


def _chance(chosen: Integers, translation: Integers, label: Integers, own: npt.NDArray[np.bool_]) -> Floats:
    """The probability that each top sample's translation is there, if the own-language ones are others with the same labels: [k].

    Args:
        chosen: the top samples, [k].
        translation: the own-language translation of each train sample, or -1: [train].
        label: number of each train sample's label: [train].
        own: which train samples are in the probe's own language: [train].
    """
    count = int(label.max()) + 1
    there, trained = (np.bincount(label[some], minlength=count) for some in (chosen[own[chosen]], np.flatnonzero(own)))
    part = np.divide(there, trained, out=np.zeros(count), where=trained > 0)
    meant = translation[chosen]
    found: Floats = np.where(meant >= 0, part[label[meant]], 0.0)
    return found


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
