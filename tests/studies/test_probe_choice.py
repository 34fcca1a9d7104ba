import numpy as np
import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.probe_choice import choose_probes

LANGUAGES = ["de", "de", "de", "fr", "fr", "fr"]


def test_an_item_that_one_fit_gets_wrong_in_one_language_is_taken_in_none() -> None:
    right = np.ones((2, 6), dtype=bool)
    right[1, 3] = False  # item a in fr, second fit
    assert choose_probes(LANGUAGES, ["a", "b", "c", "a", "b", "c"], right, 2) == (1, 2, 4, 5)


def test_without_common_items_each_language_has_its_own() -> None:
    right = np.ones((1, 6), dtype=bool)
    right[0, 3] = False
    assert choose_probes(LANGUAGES, ["a", "b", "c", "d", "e", "f"], right, 2) == (0, 1, 4, 5)


def test_too_few_is_an_error_that_names_language_and_number() -> None:
    right = np.ones((2, 6), dtype=bool)
    right[0, 4:] = False
    with pytest.raises(
        TracInError, match=r"^All 2 fits classify only 1 of 3 candidates of language 'fr' correctly, but probes_per_language=2"
    ):
        choose_probes(LANGUAGES, ["a", "b", "c", "d", "e", "f"], right, 2)
    with pytest.raises(TracInError, match=r"only 1 of 3 candidates of language 'de' correctly in every language, but probes_per"):
        choose_probes(LANGUAGES, ["a", "b", "c", "a", "b", "c"], right, 2)
