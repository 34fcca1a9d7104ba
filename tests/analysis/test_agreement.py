"""Agreement of tables with measured changes, against sums written out, enumerated permutations and simulated languages."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from lightning_tracin import TracInError
from lightning_tracin.analysis.agreement import (
    KINDS,
    Prediction,
    agreement_tables,
    correlations,
    jackknifed,
    reliability,
    slope,
)
from lightning_tracin.analysis.jackknife import Jackknifed
from lightning_tracin.analysis.leave_one_out import Changes, singles

Floats = npt.NDArray[np.float64]

TRAINED = ["de", "en", "es", "ko", "ru"]
PROBED = sorted([*TRAINED, "fr", "ja", "nl", "uk"])
OWN = np.asarray([[probe == train for train in TRAINED] for probe in PROBED])


def changes_from(values: Floats) -> Changes:
    return Changes(values, tuple(PROBED), tuple((name,) for name in TRAINED), (40,) * len(PROBED))


def random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((*shape, len(PROBED), len(TRAINED)))


def residuals(table: Floats, own: npt.NDArray[np.bool_] = OWN) -> Floats:
    """Of the best row and column effects of the cells of other languages, by least squares."""
    cells = [(i, j) for i, j in np.ndindex(own.shape) if not own[i, j]]
    design = np.asarray([[i == r for r in range(own.shape[0])] + [j == c for c in range(own.shape[1])] for i, j in cells], float)
    values = np.asarray([table[cell] for cell in cells])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def test_each_correlation_is_of_the_cells_that_it_says() -> None:
    one, other = random(0), random(1)
    found = correlations(one, other, OWN)
    assert found["others"] == pytest.approx(np.corrcoef(one[~OWN], other[~OWN])[0, 1])
    assert found["contrast"] == pytest.approx(np.corrcoef(residuals(one), residuals(other))[0, 1])
    by_row = [np.corrcoef(a[~own], b[~own])[0, 1] for a, b, own in zip(one, other, OWN, strict=True)]
    assert found["within"] == pytest.approx(np.mean(by_row))
    assert found["all"] == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_contrast_knows_nothing_of_row_and_column_effects_and_others_nothing_of_own_cells() -> None:
    signal, other = random(0), random(1)
    effects = 10 * random(2)[:, :1] + 10 * random(3)[:1]
    found = correlations(signal + effects + 99 * OWN, signal - effects, OWN)
    assert found["contrast"] == pytest.approx(1)
    assert found["others"] < 0
    same = correlations(other + 7 * OWN, signal, OWN)
    assert same["others"] == pytest.approx(float(correlations(other, signal, OWN)["others"]))


def test_identity_agrees_over_all_cells_and_says_nothing_of_other_languages() -> None:
    change = random(0) + 9 * OWN
    found = correlations(OWN.astype(float), change, OWN)
    assert found["all"] > 0.9
    assert all(np.isnan(found[kind]) for kind in ("others", "contrast", "within"))


def test_a_contrast_of_one_free_cell_is_no_agreement() -> None:
    own = np.eye(3, dtype=np.bool_)  # six other cells, five effects
    assert np.isnan(correlations(random(0)[:3, :3], random(1)[:3, :3], own)["contrast"])


def test_slope_is_that_of_a_regression() -> None:
    one, other = random(0), random(1)
    assert slope(one, other, ~OWN) == pytest.approx(stats.linregress(one[~OWN], other[~OWN]).slope)


def test_reliability_is_what_other_seeds_show() -> None:
    """Oracle: the correlation of the mean of six seeds with the mean of six others, for the same languages."""
    truth, spread = random(0), 1.5
    found, again = [], []
    for draw in range(60):
        noise = spread * random(100 + draw, 12)
        found.append(reliability(changes_from(truth + noise[:6])))
        again.append(correlations(*((truth + noise[half]).mean(0) for half in (slice(6), slice(6, None))), OWN))
    for kind in ("others", "contrast"):
        assert np.mean([each[kind] for each in found]) == pytest.approx(np.mean([each[kind] for each in again]), abs=0.03)
    assert np.isnan(reliability(changes_from(random(0, 1)))["others"])
    opposite = np.stack([truth, -truth])
    assert reliability(changes_from(opposite)) == {"others": 0.0, "contrast": 0.0}


def test_reliability_of_an_odd_number_of_seeds_is_stepped_up_to_all() -> None:
    values = random(0) + random(1, 3)
    pairs = [float(correlations(values[i], values[j], OWN)["others"]) for i, j in itertools.combinations(range(3), 2)]
    mean = np.mean(pairs)
    assert reliability(changes_from(values))["others"] == pytest.approx(3 * mean / (1 + 2 * mean))


def test_reliability_of_many_seeds_is_that_of_random_halves() -> None:
    """Oracle: all 6,435 divisions of 16 seeds."""
    values = random(0) + 4 * random(1, 16)
    halves = np.asarray([half for half in itertools.combinations(range(16), 8) if 0 in half])
    cells, total = values[:, ~OWN], values[:, ~OWN].sum(0)
    one = cells[halves].sum(1)
    centred = [each - each.mean(1, keepdims=True) for each in (one, total - one)]
    product, *squares = ((a * b).sum(1) for a, b in (centred, centred[:1] * 2, centred[1:] * 2))
    mean = float(np.mean(product / np.sqrt(squares[0] * squares[1])))
    assert reliability(changes_from(values))["others"] == pytest.approx(2 * mean / (1 + mean), abs=0.02)


def test_jackknife_leaves_out_seeds_languages_and_cells() -> None:
    changes, cells = changes_from(random(0, 4)), random(1, 4)
    (found,) = jackknifed(changes, [cells])
    assert found.seeds is not None
    without_seed = correlations(cells[[0, 1, 3]].mean(0), changes.values[[0, 1, 3]].mean(0), OWN)
    np.testing.assert_allclose(found.seeds[2, :4], [without_seed[kind] for kind in KINDS])
    trained, probed = found.languages
    assert (len(trained), len(probed)) == (5, 4)
    kept = np.ix_([PROBED.index(name) for name in PROBED if name != "en"], [0, 2, 3, 4])
    without_english = correlations(cells.mean(0)[kept], changes.values.mean(0)[kept], OWN[kept])
    np.testing.assert_allclose(trained[1, :4], [without_english[kind] for kind in KINDS])
    rows = [name != "nl" for name in PROBED]
    without_dutch = correlations(cells.mean(0)[rows], changes.values.mean(0)[rows], OWN[rows])
    np.testing.assert_allclose(probed[2, :4], [without_dutch[kind] for kind in KINDS])
    assert len(found.cells) == 45
    last = np.ones_like(OWN)
    last[-1, -1] = False
    one, other = cells.mean(0), changes.values.mean(0)
    assert found.cells[-1, 0] == pytest.approx(np.corrcoef(one[~OWN & last], other[~OWN & last])[0, 1])


def test_cells_belong_to_the_languages_of_the_probes_and_of_what_is_left_out() -> None:
    names = ("a", "b", "c")
    pairs = Changes(random(0, 1)[:, :3, :3], names, (("a", "b"), ("a", "c"), ("b", "c")), (1, 1, 1))
    (found,) = jackknifed(pairs, [random(1, 1)[:, :3, :3]])
    assert found.belongs.reshape(3, 3).tolist() == [[2, 2, 3], [2, 3, 2], [3, 2, 2]]
    (alone,) = jackknifed(changes_from(random(0, 1)), [random(1, 1)])
    assert (alone.belongs == np.where(OWN, 1, 2).ravel()).all()


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_the_variance_over_languages_is_that_of_other_languages(together: int, effect: float) -> None:
    """Of the mean of all cells, which are noise, with an effect of each language or without; oracle: other draws of both.

    Without an effect it is above the true one, because a language of 24 has an eighth of the pairs' cells.
    """
    count, generator = 24, np.random.default_rng(0)
    left = list(itertools.combinations(range(count), together))
    inside = np.asarray([[language in each for each in left] for language in range(count)])
    of_cell = (inside[:, None] | np.eye(count, dtype=bool)[:, :, None]).reshape(count, -1).astype(float)
    values, variances = [], []
    for _ in range(400):
        effects = effect * generator.normal(size=count)
        cells = (np.add.outer(effects, effects @ inside) + generator.normal(size=(count, len(left)))).ravel()
        without = ((cells.sum() - of_cell @ cells) / (cells.size - of_cell.sum(1)))[:, None]
        each = ((cells.sum() - cells) / (cells.size - 1))[:, None]
        found = Jackknifed(np.asarray([cells.mean()]), None, (without,), each, of_cell.sum(0))
        values.append(found.value)
        variances.append(found.variances()[1])
    assert 0.9 < np.mean(variances) / np.var(values) < 1.75


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("agreement", [0.0, pytest.param(0.8, marks=pytest.mark.long)])
def test_intervals_cover_what_other_seeds_and_languages_would_give(clustered: bool, agreement: float) -> None:
    generator = np.random.default_rng(0)

    def interactions() -> Floats:
        if not clustered:
            return generator.standard_normal(OWN.shape)
        rows, columns = generator.standard_normal((len(PROBED), 2)), generator.standard_normal((len(TRAINED), 2))
        return rows @ columns.T / np.sqrt(2)

    seeds, spread = 8, 0.5
    target = agreement / (1 + spread**2 / seeds)  # both tables have noise that the mean over seeds leaves
    hits, above = [], []
    for _ in range(100):
        shared, alone = interactions(), interactions()
        effects = generator.standard_normal((len(PROBED), 1)) + generator.standard_normal((1, len(TRAINED))) + 3 * OWN
        change = agreement * shared + np.sqrt(1 - agreement**2) * alone + effects
        noise = spread * generator.standard_normal((2, seeds, *OWN.shape))
        (found,) = jackknifed(changes_from(change + noise[0]), [shared + effects + noise[1]])
        low, high = (side[KINDS.index("contrast")] for side in found.on_z())
        hits.append(low <= target <= high)
        above.append(low > 0)
    assert np.mean(hits) >= 0.92
    if agreement == 0:
        assert np.mean(above) <= 0.05


def test_the_null_permutes_the_cells_of_other_languages_only() -> None:
    """Oracle: every permutation of three rows of two or three other cells, enumerated."""
    own = np.asarray([[True, False, False, False], [False, True, False, False], [False, False, False, True]])
    names = ("a", "b", "c", "d")
    one = np.asarray([[50.0, 1.0, 2.0, 4.0], [3.0, 60.0, 1.0, 7.0], [2.0, 5.0, 6.0, 70.0]])
    change = np.asarray([[9.0, 2.0, 1.0, 5.0], [2.0, 9.0, 1.0, 4.0], [3.0, 4.0, 4.0, 9.0]])
    rows = [list(itertools.permutations(row[~mine])) for row, mine in zip(one, own, strict=True)]
    target = np.concatenate([row[~mine] for row, mine in zip(change, own, strict=True)])
    observed = np.corrcoef(one[~own], target)[0, 1]
    every = [np.corrcoef(np.concatenate(chosen), target)[0, 1] for chosen in itertools.product(*rows)]
    exact = np.mean(np.asarray(every) >= observed - 1e-12)
    changes = Changes(change[None], ("a", "b", "d"), tuple((name,) for name in names), (1, 1, 1))
    table, _ = agreement_tables(changes, [Prediction("ours", "sum", one[None])], permutations=4000)
    line = table.iloc[0]
    assert line["others_p"] == pytest.approx(exact, abs=0.03)
    assert line["others_floor"] == pytest.approx(np.quantile(every, 0.95), abs=0.05)


def test_a_perfect_table_is_told_from_noise_and_from_identity() -> None:
    change = random(0) + 9 * OWN
    noise = random(2)
    changes = changes_from(change + 0.1 * random(1, 4))
    table, differences = agreement_tables(
        changes,
        [
            Prediction("ours", "sum", change[None] / 7),
            Prediction("noise", "sum", noise[None]),
            Prediction("identity", "table", OWN[None].astype(float), baseline=True),
        ],
        permutations=199,
    )
    rows = table.set_index("score")
    assert rows.loc["ours", "contrast"] > 0.99
    assert rows.loc["ours", "contrast_low"] > 0.95
    assert rows.loc["ours", "contrast_p"] == pytest.approx(1 / 200)
    assert rows.loc["ours", "slope"] == pytest.approx(7, rel=0.05)
    assert rows.loc["ours", "slope_low"] < 7 < rows.loc["ours", "slope_high"]
    assert rows.loc["ours", "others_corrected"] == pytest.approx(
        rows.loc["ours", "others"] / np.sqrt(reliability(changes)["others"])
    )
    assert rows.loc["noise", "contrast_p"] > 0.05
    assert rows.loc["identity", "all"] > 0.9
    assert np.isnan(rows.loc["identity", ["others", "others_low", "contrast", "slope"]].astype(float)).all()
    over = differences.set_index("score")
    assert list(differences["baseline"]) == ["identity", "identity"]
    assert over.loc["ours", "others"] == pytest.approx(rows.loc["ours", "others"])  # identity counts as 0 there
    assert over.loc["ours", "others_low"] > 0
    assert over.loc["ours", "all"] == pytest.approx(rows.loc["ours", "all"] - rows.loc["identity", "all"])
    assert over.loc["noise", "contrast_low"] < 0


def test_a_score_without_a_correlation_has_no_difference_to_a_baseline() -> None:
    """Three languages have one free cell, so contrasts say nothing; a score that is the same everywhere has no correlation."""
    names = ("a", "b", "c")
    changes = Changes(random(0, 4)[:, :3, :3], names, tuple((name,) for name in names), (1, 1, 1))
    predictions = [
        Prediction("ours", "sum", random(1, 1)[:, :3, :3]),
        Prediction("constant", "sum", np.ones((1, 3, 3))),
        Prediction("baseline", "table", random(2, 1)[:, :3, :3], baseline=True),
        Prediction("nothing", "table", np.ones((1, 3, 3)), baseline=True),
    ]
    table, differences = agreement_tables(changes, predictions, permutations=9)
    rows, over = table.set_index("score"), differences.set_index(["score", "baseline"])
    contrast = over[["contrast", "contrast_low", "contrast_high"]].astype(float)
    assert contrast.isna().all(axis=None)
    assert over.loc["constant", ["others", "all"]].isna().all(axis=None)
    assert over.loc[("ours", "nothing"), "others"] == pytest.approx(rows.loc["ours", "others"])
    assert over.loc[("ours", "baseline"), "others"] == pytest.approx(rows.loc["ours", "others"] - rows.loc["baseline", "others"])


def test_with_one_seed_the_interval_is_over_languages() -> None:
    table, _ = agreement_tables(changes_from(random(0, 1)), [Prediction("noise", "sum", random(1, 1))], permutations=9)
    line = table.iloc[0]
    assert line["others_low"] < line["others"] < line["others_high"]
    assert np.isnan(line["others_corrected"])


def test_bad_input() -> None:
    few = Changes(np.zeros((1, 2, 3)), ("de", "en"), (("de",), ("en",), ("es",)), (1, 1))
    with pytest.raises(TracInError, match=r"There are 2 probe languages and 3 columns .* needs at least three of each"):
        agreement_tables(few, [])
    with pytest.raises(
        TracInError, match=r"The table of 'ours' \(sum\) is \(2, 9, 5\), but should be .* \(4, 9, 5\) were measured"
    ):
        agreement_tables(changes_from(random(0, 4)), [Prediction("ours", "sum", random(1, 2))])


@pytest.mark.parametrize(("probed", "expected"), [("abcd", 12), ("abcdx", 16), ("abc", 9)])
def test_cells_are_those_of_other_languages(probed: str, expected: int) -> None:
    changes = Changes(np.zeros((1, len(probed), 4)), tuple(probed), tuple(singles(list("abcd"))), (5,) * len(probed))
    table, _ = agreement_tables(changes, [Prediction("nothing", "sum", changes.values)], permutations=1)
    assert table["cells"].tolist() == [expected]
