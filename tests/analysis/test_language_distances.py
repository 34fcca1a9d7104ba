"""Distances between languages, against paths in a tree and places written out."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.language_distances import (
    FARTHEST,
    distance_table,
    kilometres,
    typology_table,
    unknown_languages,
)
from lightning_tracin.analysis.language_facts import LanguageFacts, facts_of


def test_a_language_is_at_no_distance_from_itself_by_any_name() -> None:
    table = distance_table(["german", "zho_Hans"], ["de", "zh"]).set_index(["probe_language", "train_language"])
    for pair in (("german", "de"), ("zho_Hans", "zh")):
        assert table.loc[pair].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert table.loc[("german", "zh")].tolist()[0] == 1.0
    assert table.loc[("german", "zh")].tolist()[2:] == [0.0, 0.0]


def test_genealogical_distance_counts_the_steps_that_two_paths_share() -> None:
    facts = facts_of(["da", "sv"])
    one, other = (set(facts[name].path) for name in ("da", "sv"))  # type: ignore[union-attr]
    expected = 1 - 2 * len(one & other) / (len(one) + len(other))
    assert distance_table(["da"], ["sv"])["genealogical"].tolist() == [pytest.approx(expected)]
    near = distance_table(["sv"], ["da", "de", "ru", "ko"])["genealogical"].tolist()
    assert near == sorted(near)
    assert len(set(near)) == 4


def test_kilometres_are_on_a_great_circle() -> None:
    oslo, tokyo = (LanguageFacts((), ("x",), None, *place) for place in ((59.91, 10.75), (35.68, 139.69)))
    at = [
        np.array([np.cos(n) * np.cos(e), np.cos(n) * np.sin(e), np.sin(n)])
        for n, e in np.radians([[59.91, 10.75], [35.68, 139.69]])
    ]
    assert kilometres(oslo, tokyo) == pytest.approx(6371 * np.arccos(at[0] @ at[1]))
    assert np.isnan(kilometres(oslo, LanguageFacts((), ("y",))))


def test_scripts_are_those_that_names_mean() -> None:
    table = distance_table(["sr-Latn", "sr"], ["hr", "ru"]).set_index(["probe_language", "train_language"])["same_script"]
    assert table.to_dict() == {("sr-Latn", "hr"): 1, ("sr-Latn", "ru"): 0, ("sr", "hr"): 0, ("sr", "ru"): 1}


def test_typology_adds_up_tree_place_and_script() -> None:
    table = distance_table(["en", "ko"], ["de", "ja"])
    expected = (1 - table["genealogical"]) + (1 - table["kilometres"] / FARTHEST) + table["same_script"]
    np.testing.assert_allclose(typology_table(["en", "ko"], ["de", "ja"]).ravel(), expected)
    assert typology_table(["german"], ["de"]).tolist() == [[3.0]]


def test_languages_that_nothing_is_known_of_are_named() -> None:
    table = distance_table(["sv", "klingon-x"], ["da", "a"])
    assert unknown_languages(table) == ["a", "klingon-x"]
    expected = r"^The family or place of 'a', 'klingon-x' is not known; leave the comparison with typology out, or name the "
    with pytest.raises(TracInError, match=expected):
        typology_table(["sv", "klingon-x"], ["da", "a"])
