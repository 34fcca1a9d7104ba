"""Leave one language out: changes by hand, and tables that are known to agree or not to."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.leave_one_out import agreement_table, change_in_loss, doubly_centred

LANGUAGES = ["de", "en", "es", "ko", "ru"]


def table(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], name: str) -> pd.DataFrame:
    pairs = itertools.product(LANGUAGES, LANGUAGES)
    return pd.DataFrame([(one, other) for one, other in pairs], columns=["probe_language", "train_language"]).assign(
        **{name: values.ravel()}
    )


def test_changes_by_hand() -> None:
    whole = [[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]]
    without = {"en": [[2.0, 3.0, 4.0], [4.0, 2.0, 2.0]]}
    found = change_in_loss(whole, without, ["en", "en", "de"]).set_index("probe_language")
    assert found.loc["en", "change"] == pytest.approx(1.5)  # 1 at the first seed, 2 at the second
    assert found.loc["en", "error"] == pytest.approx(0.5)
    assert found.loc["de", "change"] == 0
    assert found.loc["en", "probes"] == 2
    assert np.isnan(change_in_loss([[1.0]], {"en": [[2.0]]}, ["en"])["error"].item())


def test_centred_tables_have_no_row_or_column_means() -> None:
    values = doubly_centred(np.arange(6.0).reshape(2, 3) ** 2)
    np.testing.assert_allclose(values.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(values.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(doubly_centred([[1.0, 2.0], [3.0, 4.0]]), 0)  # a sum of row and column effects


def test_a_table_is_found_to_agree_under_strong_column_effects() -> None:
    generator = np.random.default_rng(0)
    signal = generator.standard_normal((5, 5))
    measured = table(signal + 10 * generator.standard_normal(5), "change")
    shares = signal + 20 * generator.standard_normal(5)
    found = agreement_table(
        measured, {"ours": table(shares, "share"), "noise": table(generator.standard_normal((5, 5)), "share")}
    ).set_index("score")
    assert found.loc["ours", "centred_pearson"] == pytest.approx(1)
    assert abs(found.loc["ours", "pearson"]) < 0.9
    assert found.loc["ours", "p"] == pytest.approx(1 / 1000)
    assert found.loc["noise", "centred_pearson"] < found.loc["noise", "floor"]
    assert found.loc["noise", "p"] > 0.05
    assert found.loc["ours", "cells"] == 25


def test_agreement_by_own_language_cells_alone_is_told_apart() -> None:
    generator = np.random.default_rng(1)
    own = 5 * np.eye(5)
    signal, other = generator.standard_normal((2, 5, 5))
    effects = generator.standard_normal(5) + generator.standard_normal((5, 1))
    tables = {"both": table(own + signal, "share"), "own only": table(own + 0.1 * other, "share")}
    found = agreement_table(table(2 * own + signal + effects, "change"), tables).set_index("score")
    assert found.loc["both", "others_pearson"] == pytest.approx(1)
    assert found.loc["own only", "centred_pearson"] > 0.8
    # the best row and column effects of 20 cells, by the normal equations worked out without the code under test
    cells = [(i, j) for i in range(5) for j in range(5) if i != j]
    design = np.asarray([[i == r for r in range(5)] + [j == c for c in range(5)] for i, j in cells], dtype=float)
    project = np.eye(20) - design @ np.linalg.pinv(design)
    one, two = (project @ np.asarray([values[cell] for cell in cells]) for values in (signal, other))
    assert found.loc["own only", "others_pearson"] == pytest.approx(one @ two / np.sqrt(one @ one * (two @ two)))


def test_a_probe_languages_own_train_language_is_known_by_another_name() -> None:
    generator = np.random.default_rng(2)
    names = {"de": "deu", "en": "english", "es": "es-Latn", "ko": "korean", "ru": "rus"}  # in the same order
    change, share = (table(generator.standard_normal((5, 5)), name) for name in ("change", "share"))
    alike = agreement_table(change, {"ours": share})
    change, share = (one.replace({"probe_language": names}) for one in (change, share))
    other = agreement_table(change, {"ours": share})
    pd.testing.assert_frame_equal(alike, other)


def test_a_table_that_does_not_vary_agrees_with_nothing() -> None:
    flat = table(np.full((5, 5), 0.2), "share")
    found = agreement_table(table(np.arange(25.0).reshape(5, 5) ** 2, "change"), {"flat": flat})
    assert np.isnan(found["centred_pearson"].item())
    assert np.isnan(found["p"].item())


def test_bad_input() -> None:
    measured = table(np.arange(25.0).reshape(5, 5), "change")
    with pytest.raises(TracInError, match="has no share for some"):
        agreement_table(measured, {"ours": table(np.ones((5, 5)), "share").iloc[:-1]})
    with pytest.raises(TracInError, match="take one snapshot"):
        agreement_table(measured, {"ours": pd.concat([table(np.ones((5, 5)), "share")] * 2)})
    with pytest.raises(TracInError, match="needs at least three of each"):
        agreement_table(measured[measured["probe_language"].isin(["de", "en"])], {})
    with pytest.raises(TracInError, match=r"Without 'en' there are \(1, 2\) losses"):
        change_in_loss([[1.0]], {"en": [[1.0, 2.0]]}, ["en"])
