"""Correlations of influence with distance, and their p, against loops over all permutations and closed forms."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lightning_tracin import TracInError
from lightning_tracin.analysis.contrast import contrast_of
from lightning_tracin.analysis.influence_by_distance import influence_by_distance, influence_by_known_distance
from lightning_tracin.analysis.language_distances import DISTANCES

NAMES = ("da", "fi", "ko", "ru", "sv")


def long(grids: dict[str, np.ndarray], probes: tuple[str, ...] = NAMES, trains: tuple[str, ...] = NAMES) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([probes, trains], names=["probe_language", "train_language"])
    return pd.DataFrame({name: cells.ravel() for name, cells in grids.items()}, index).reset_index()


def drawn(count: int = len(NAMES), seed: int = 0) -> dict[str, np.ndarray]:
    """Symmetric distances of all kinds."""
    generator = np.random.default_rng(seed)
    made = {}
    for name in DISTANCES:
        half = np.triu(generator.uniform(0.2, 1.0, (count, count)), 1)
        made[name] = half + half.T
    return made


def test_p_is_the_part_of_all_permutations_that_correlate_as_much() -> None:
    apart, influence = drawn(), np.random.default_rng(1).normal(size=(5, 5))
    influence -= 2 * apart["genealogical"]
    found = influence_by_distance(long({"value": influence}), long(apart)).set_index(["of", "distance"])
    others = ~np.eye(5, dtype=bool)
    for kind, cells in (("others", influence), ("contrast", contrast_of(influence, np.eye(5, dtype=bool)))):
        for name in DISTANCES:
            row = found.loc[(kind, name)]
            assert row["cells"] == 20
            for column, correlate in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
                value = correlate(cells[others], apart[name][others])[0]
                assert row[column] == pytest.approx(value)
                as_much = [
                    abs(correlate(cells[others], apart[name][np.ix_(order, order)][others])[0]) >= abs(value) - 1e-9
                    for order in map(list, permutations(range(5)))
                ]
                assert row[f"{column}_p"] == pytest.approx(np.mean(as_much))


def test_the_regression_is_least_squares_on_all_distances_but_the_family() -> None:
    apart, influence = drawn(seed=2), np.random.default_rng(3).normal(size=(5, 5))
    influence += apart["kilometres"] - 3 * apart["genealogical"]
    found = influence_by_distance(long({"value": influence}), long(apart)).query("of == 'others'").set_index("distance")
    others = ~np.eye(5, dtype=bool)
    used = ["genealogical", "kilometres", "same_script"]

    def fit(order: list[int]) -> tuple[np.ndarray, float]:
        design = np.column_stack([np.ones(20), *(stats.zscore(apart[name][np.ix_(order, order)][others]) for name in used)])
        wanted = stats.zscore(influence[others])
        solved = np.linalg.solve(design.T @ design, design.T @ wanted)
        left = np.square(wanted - design @ solved).sum() / (20 - 4)
        return solved[1:], 1 - left / np.var(wanted, ddof=1)

    beta, r2 = fit([0, 1, 2, 3, 4])
    np.testing.assert_allclose(found.loc[used, "beta"], beta)
    assert np.isnan(found.loc["same_family", "beta"])
    assert found["r2"].tolist() == pytest.approx([r2] * 4)
    every = [fit(list(order))[1] for order in permutations(range(5))]
    assert found["r2_p"].tolist() == pytest.approx([np.mean(np.asarray(every) >= r2 - 1e-9)] * 4)


def test_a_probe_language_by_another_name_and_zero_shot_ones_keep_their_place() -> None:
    apart = drawn(seed=4)
    probes, trains = ("danish", "fi", "ko", "sv"), ("da", "ko", "ru", "sv")  # Finnish is only probed, Russian only trained on
    rows, columns = [0, 1, 2, 4], [0, 2, 3, 4]
    cells = -apart["genealogical"][np.ix_(rows, columns)]
    found = influence_by_distance(long({"value": cells}, probes, trains), long(apart)).set_index(["of", "distance"])
    row = found.loc[("others", "genealogical")]
    assert row["cells"] == 16 - 3
    assert row["pearson"] == pytest.approx(-1)
    assert row["pearson_p"] == pytest.approx(1 / 120)  # no other permutation does as well


def test_random_permutations_count_the_data_itself() -> None:
    names = tuple("abcdefgh")
    apart = drawn(8, seed=5)
    table = long({"value": -apart["kilometres"]}, names, names)
    found = influence_by_distance(table, long(apart, names, names), permutations=99).set_index(["of", "distance"])
    assert found.loc[("others", "kilometres"), "pearson_p"] == pytest.approx(1 / 100)
    assert 0.05 < found.loc[("others", "same_script"), "pearson_p"] <= 1


def test_a_distance_that_does_not_vary_says_nothing() -> None:
    apart = drawn(seed=6) | {"same_script": np.ones((5, 5))}
    found = influence_by_distance(long({"value": np.random.default_rng(7).normal(size=(5, 5))}), long(apart))
    mine = found[found["distance"] == "same_script"]
    assert mine[["pearson", "pearson_p", "spearman", "beta", "beta_p"]].isna().all(axis=None)
    assert found[found["distance"] == "genealogical"][["pearson", "beta", "r2"]].notna().all(axis=None)


def test_too_few_languages_and_unknown_distances_are_errors() -> None:
    with pytest.raises(TracInError, match=r"^There are 3 languages; exchanging them says something of 4 or more\.$"):
        influence_by_distance(long({"value": np.ones((3, 3))}, NAMES[:3], NAMES[:3]), long(drawn()))
    apart = drawn()
    apart["kilometres"][1, 0] = apart["kilometres"][0, 1] = np.nan
    with pytest.raises(TracInError, match=r"^kilometres is not known of 'da', 'fi'; leave these languages out of both tables\.$"):
        influence_by_distance(long({"value": np.ones((5, 5))}), long(apart))


def test_languages_without_distances_are_left_out_and_named() -> None:
    names = (*NAMES, "klingon-x")
    values = np.random.default_rng(8).normal(size=(6, 6))
    with pytest.warns(UserWarning, match=r"The family or place of 'klingon-x' is not known, .* with distance without it\."):
        found = influence_by_known_distance(long({"value": values}, names, names))
    assert found.attrs["left_out"] == ["klingon-x"]
    assert set(found["cells"]) == {20}
