"""E8: one line for each language and amount added."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.imbalance import imbalance_table
from lightning_tracin.analysis.reliance import reliance_table


def test_own_share_beside_the_chance_that_grows_with_the_data() -> None:
    generator = np.random.default_rng(0)
    tables = {}
    for added, more in ((0.0, 0), (100.0, 20)):
        languages = ["en"] * (20 + more) + ["de"] * 20
        scores = generator.standard_normal((len(languages), 40))
        tables["en", added] = reliance_table(scores, languages, ["en"] * 20 + ["de"] * 20, k=10)
    found = imbalance_table(tables)
    assert found["added"].tolist() == [0, 100]
    np.testing.assert_allclose(found["chance"], [1 / 2, 2 / 3])
    np.testing.assert_allclose(found["over_chance"], found["share"] - found["chance"])
    own = tables["en", 100.0].query("probe_language == 'de' and train_language == 'de'")["value"].item()
    assert found["mean_cross_lingual_others"].iloc[1] == pytest.approx(1 - own)


def test_a_language_without_train_samples_is_an_error() -> None:
    table = reliance_table(np.eye(4), ["en", "en", "de", "de"], ["en", "ru", "en", "en"], k=1)
    with pytest.raises(TracInError, match=r"The run with 25 % more 'ru' has no probes or no train samples"):
        imbalance_table({("ru", 25.0): table})


def test_a_language_is_known_by_either_of_its_names() -> None:
    languages, scores = ["en"] * 20 + ["de"] * 20, np.random.default_rng(0).standard_normal((40, 40))
    alike = reliance_table(scores, languages, ["en"] * 20 + ["de"] * 20, k=10)
    other = reliance_table(scores, languages, ["english"] * 20 + ["de"] * 20, k=10)
    expected = imbalance_table({("en", 0.0): alike})
    for name in ("en", "english"):
        found = imbalance_table({(name, 0.0): other})
        columns = ["share", "chance", "over_chance", "mean_cross_lingual_others"]
        np.testing.assert_allclose(found[columns].to_numpy(), expected[columns].to_numpy())
    twice = reliance_table(scores, languages, ["english"] * 20 + ["eng"] * 20, k=10)
    with pytest.raises(TracInError, match="has probes by several names in 'en'"):
        imbalance_table({("en", 25.0): twice})
