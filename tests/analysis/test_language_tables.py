"""Tables of languages that need no influence, against counts written out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.language_tables import identity_table, mean_table, spelling_table
from lightning_tracin.analysis.relatedness import relatedness
from lightning_tracin.storage.sample_table import SampleTable


def table(**texts: list[str]) -> SampleTable:
    pairs = [(language, text) for language, some in texts.items() for text in some]
    count = len(pairs)
    return SampleTable(tuple(one for one, _ in pairs), (None,) * count, tuple(text for _, text in pairs), (None,) * count)


def test_identity_knows_a_language_by_another_name() -> None:
    assert identity_table(["english", "uk"], ["en", "ru"]).tolist() == [[1, 0], [0, 0]]


def test_spelling_is_the_cosine_of_trigram_counts() -> None:
    train, probes = table(en=["the cat", "The  hat"], ru=["кот"]), table(en=["the bat"], ko=[""])
    one = Counter(" the cat "[i : i + 3] for i in range(7)) + Counter(" the hat "[i : i + 3] for i in range(7))
    other = Counter(" the bat "[i : i + 3] for i in range(7))
    product = sum(one[gram] * other[gram] for gram in one)
    expected = product / np.sqrt(sum(n**2 for n in one.values()) * sum(n**2 for n in other.values()))
    found = spelling_table(train, probes, ["en", "ko"], ["en", "ru"])
    assert found.tolist() == [[pytest.approx(expected), 0.0], [0.0, 0.0]]


def test_the_mean_of_scores_is_over_samples_and_probes() -> None:
    train, probes = table(de=["a", "b"], en=["c"]), table(de=["d"], fr=["e", "f"])
    scores = np.arange(9.0).reshape(3, 3)
    found = mean_table(scores, train, probes, ["de", "fr"], ["de", "en"])
    assert found.tolist() == [[1.5, 6.0], [np.mean([1, 2, 4, 5]), 7.5]]


def test_relatives_share_more_branches() -> None:
    names = ["es", "pt", "fr", "it", "ro", "ru", "uk", "bg", "en", "de", "hi", "ko"]
    found = relatedness(names, names)
    np.testing.assert_array_equal(found, found.T)

    def of(one: str, other: str) -> float:
        return float(found[names.index(one), names.index(other)])

    assert of("es", "es") > of("es", "pt") > of("es", "fr") > of("es", "it") > of("es", "ro") > of("es", "de") > of("es", "ko")
    assert of("ru", "uk") == 1 + 4  # the script; Indo-European, Balto-Slavic, Slavic, East Slavic
    assert of("ru", "bg") == 1 + 3
    assert of("ru", "en") == 1
    assert of("hi", "ru") == 1
    assert of("ko", "en") == 0


def test_a_language_has_the_place_of_its_macrolanguage() -> None:
    names = ["arb_Arab", "zho_Hans", "swh_Latn", "deu_Latn", "rus_Cyrl"]
    assert relatedness(names, ["ar", "zh", "sw", "de", "ru"]).tolist() == relatedness(names, names).tolist()


def test_a_language_without_branches_is_named() -> None:
    with pytest.raises(
        TracInError, match=r"The family tree has no language 'klingon-x'; it has ace, ar, .* Leave the comparison"
    ):
        relatedness(["de"], ["klingon-x"])
