"""Contrasts of tables whose row and column effects are known."""

from __future__ import annotations

import numpy as np

from lightning_tracin.analysis.contrast import contrast_of


def test_effects_are_taken_out_whole_and_what_is_added_to_a_cell_of_ones_own_stays() -> None:
    generator = np.random.default_rng(0)
    own = np.eye(5, 4, dtype=bool)  # the last probe language is zero-shot
    effects = generator.normal(size=(3, 5, 1)) + generator.normal(size=(3, 1, 4))
    extra = generator.normal(size=(3, 5, 4)) * own
    np.testing.assert_allclose(contrast_of(effects + extra, own), extra, atol=1e-12)


def test_other_contrasts_add_up_to_nothing_along_rows_and_columns() -> None:
    own = np.eye(5, 4, dtype=bool)
    contrast = np.where(own, 0.0, contrast_of(np.random.default_rng(1).normal(size=(5, 4)), own))
    np.testing.assert_allclose(contrast.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(contrast.sum(1), 0, atol=1e-12)
    assert np.abs(contrast).max() > 0.1


def test_an_effect_that_one_cell_alone_decides_leaves_nothing() -> None:
    own = np.ones((4, 4), dtype=bool)
    own[:3, :3] = np.eye(3, dtype=bool)
    own[0, 3] = False  # the only other cell of the last train language; the last probe language has none
    contrast = contrast_of(np.random.default_rng(2).normal(size=(4, 4)), own)
    assert np.isnan(contrast[0, 3])  # its column's effect follows from it
    assert np.isnan(contrast[3]).all()  # the row's effect is unknown
    assert np.isfinite(contrast[:3, :3]).all()


def test_a_cell_that_is_unknown_is_left_out_of_the_effects_and_alone_has_no_contrast() -> None:
    own = np.eye(5, dtype=bool)
    effects = np.arange(5.0)[:, None] + 10 * np.arange(5.0)
    missing = effects + 7 * own
    missing[0, 1] = np.nan
    missing[3, 3] = np.inf
    unknown = ~np.isfinite(missing)
    np.testing.assert_allclose(contrast_of(missing, own)[~unknown], (7.0 * own)[~unknown], atol=1e-12)
    np.testing.assert_array_equal(np.isnan(contrast_of(missing, own)), unknown)


def test_without_a_row_the_others_have_the_contrasts_of_the_table_without_it() -> None:
    own = np.eye(5, dtype=bool)
    tables = np.random.default_rng(3).normal(size=(2, 5, 5))
    tables[1, 2] = np.nan
    kept = [0, 1, 3, 4]
    contrast = contrast_of(tables, own)
    np.testing.assert_allclose(contrast[0], contrast_of(tables[0], own), atol=1e-12)
    np.testing.assert_allclose(contrast[1, kept], contrast_of(tables[1, kept], own[kept]), atol=1e-12)
    assert np.isnan(contrast[1, 2]).all()
