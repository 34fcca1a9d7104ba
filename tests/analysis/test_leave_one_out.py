"""Leave languages out: changes by hand, and which samples and cells are meant."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.leave_one_out import changes_of, grid, pairs, singles, without_languages


def test_changes_by_hand() -> None:
    losses = [
        [[1.0, 2.0, 4.0], [2.0, 3.0, 4.0]],  # the first seed: all samples, then without English
        [[1.0, 1.0, 2.0], [4.0, 2.0, 2.0]],
    ]
    changes = changes_of(losses, [("en",)], ["en", "en", "de"])
    assert changes.probe_languages == ("de", "en")
    assert changes.values.tolist() == [[[0.0], [1.0]], [[0.0], [2.0]]]
    found = changes.table().set_index("probe_language")
    assert found.loc["en", "change"] == pytest.approx(1.5)
    assert found.loc["en", "error"] == pytest.approx(0.5)
    assert found.loc["de", "change"] == 0
    assert found.loc["en", "probes"] == 2
    assert found.loc["en", "seeds"] == 2
    assert np.isnan(changes_of([[[1.0], [2.0]]], [("en",)], ["en"]).table()["error"].item())


def test_own_cells_are_those_that_leave_out_the_probe_languages_own_by_any_name() -> None:
    changes = changes_of(np.zeros((1, 4, 2)), pairs(["de", "en", "ru"]), ["english", "fr"])
    assert changes.left_out == (("de", "en"), ("de", "ru"), ("en", "ru"))
    assert changes.own.tolist() == [[True, False, True], [False, False, False]]
    assert changes.names() == {"english": "en", "fr": "fr"}
    assert changes.table()["train_language"].tolist()[:3] == ["de + en", "de + ru", "en + ru"]


def test_a_table_says_of_a_pair_the_sum_of_what_it_says_of_each() -> None:
    changes = changes_of(np.zeros((1, 4, 1)), pairs(["a", "b", "c"]), ["x"])
    assert changes.summed([[1.0, 10.0, 100.0]], ["a", "b", "c"]).tolist() == [[11.0, 101.0, 110.0]]
    alone = changes_of(np.zeros((1, 4, 1)), singles(["a", "b", "c"]), ["x"])
    assert alone.summed([[1.0, 10.0, 100.0]], ["a", "b", "c"]).tolist() == [[1.0, 10.0, 100.0]]
    assert alone.summed([[100.0, 1.0, 10.0]], ["c", "a", "b"]).tolist() == [[1.0, 10.0, 100.0]]


def test_an_unknown_language_leaves_the_pairs_without_it_known() -> None:
    changes = changes_of(np.zeros((1, 4, 1)), pairs(["a", "b", "c"]), ["x"])
    np.testing.assert_array_equal(changes.summed([[1.0, 10.0, np.nan]], ["a", "b", "c"]), [[11.0, np.nan, np.nan]])


def test_bad_input() -> None:
    with pytest.raises(TracInError, match=r"Losses \(1, 2, 2\) should be \[seeds, fits, probes\], with 2 fits .* and 1 probes"):
        changes_of(np.zeros((1, 2, 2)), [("en",)], ["en"])
    with pytest.raises(TracInError, match=r"The train samples are in de, en; 'de \+ en' cannot be left out of these"):
        without_languages(["de", "en"], [("de", "en")])
    with pytest.raises(TracInError, match="'fr' cannot be left out"):
        without_languages(["de", "en"], [("fr",)])
    table = pd.DataFrame({"probe_language": ["de", "de"], "train_language": ["en", "ru"], "value": [0.5, 0.25]})
    with pytest.raises(TracInError, match="The table has no value of value for de and ko; give one row for each pair"):
        grid(table, "value", ["de"], ["en", "ko"])
    with pytest.raises(TracInError, match="The table has several values of value for de and en"):
        grid(pd.concat([table, table.assign(value=1.0)]), "value", ["de"], ["en", "ru"])
