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
    own = tables["en", 100.0].query("probe_language == 'de' and train_language == 'de'")["share"].item()
    assert found["mean_cross_lingual_others"].iloc[1] == pytest.approx(1 - own)


def test_a_language_without_train_samples_is_an_error() -> None:
    table = reliance_table(np.eye(4), ["en", "en", "de", "de"], ["en", "ru", "en", "en"], k=1)
    with pytest.raises(TracInError, match=r"The run with 25 % more 'ru' has no probes or no train samples"):
        imbalance_table({("ru", 25.0): table})
