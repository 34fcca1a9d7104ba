import pandas as pd
import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.label_spelling import check_spelling


def table(**labels: list[str]) -> pd.DataFrame:
    return pd.DataFrame([(label, language) for language, own in labels.items() for label in own], columns=["label", "language"])


@pytest.mark.parametrize(
    ("de", "en"), [("1", "1.0"), ("1", "1."), ("1", "True"), ("false", "0"), ("True", "TRUE"), ("10", "1e1")]
)
def test_a_label_in_two_spellings_is_refused(de: str, en: str) -> None:
    with pytest.raises(TracInError, match=rf"the labels '{de}' \(language 'de'\) and '{en}' \(language 'en'\), which are"):
        check_spelling(table(de=[de, "9"], en=[en, "9"]), "x")


def test_numbers_in_one_language_and_words_in_another_are_refused() -> None:
    with pytest.raises(TracInError, match=r"numbers as labels in language 'de' \(\['1', '2'\]\), but words in language 'en'"):
        check_spelling(table(de=["2", "1"], en=["neg", "pos"]), "x")


@pytest.mark.parametrize(
    "labels",
    [["01", "1", "001"], ["1_0", "10"], ["nan", "NA", "null"], ["1", "2", "n/a"], ["0.5", "0.25"], ["e1", "1e"]],
)
def test_labels_that_differ_are_accepted(labels: list[str]) -> None:
    check_spelling(table(de=labels, en=labels), "x")
