import pandas as pd
import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.corpus import build_corpus
from tests.support.rows import dropped, labels


def table(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["language", "item", "text", "label"])


def test_labels_that_are_numbers_are_in_their_order() -> None:
    corpus = build_corpus(table(("en", "1", "a", "10"), ("en", "2", "b", "9"), ("en", "3", "c", "-1")), source="x", parallel=True)
    assert corpus.dataset.features["label"].names == ["-1", "9", "10"]


def test_labels_that_are_words_are_in_alphabetical_order() -> None:
    corpus = build_corpus(table(("en", "1", "a", "pos"), ("en", "2", "b", "neg")), source="x", parallel=True)
    assert corpus.dataset.features["label"].names == ["neg", "pos"]
    assert corpus.dataset["label"][:] == [1, 0]


def test_given_label_names_fix_the_numbers() -> None:
    rows = table(("en", "1", "a", "pos"))
    corpus = build_corpus(rows, source="x", parallel=True, label_names=["neutral", "pos", "neg"])
    assert corpus.dataset["label"][:] == [1]


def test_a_row_without_a_label_is_dropped_and_counted() -> None:
    corpus = build_corpus(table(("en", "1", "a", ""), ("en", "2", "b", "x")), source="x", parallel=True)
    assert corpus.dataset["text"][:] == ["b"]
    assert dropped(corpus) == {("en", "without a label"): 1}


def test_a_placeholder_is_the_whole_text() -> None:
    rows = table(("en", "1", " NS ", "x"), ("en", "2", "NS is a text", "x"))
    assert build_corpus(rows, source="x", parallel=True, drop_texts=["NS"]).dataset["text"][:] == ["NS is a text"]


def test_a_placeholder_may_stand_in_the_second_text() -> None:
    rows = table(("en", "1", "a", "x"), ("en", "2", "b", "x")).assign(text_pair=["NS", "c"])
    corpus = build_corpus(rows, source="x", parallel=True, drop_texts=["NS"])
    assert corpus.dataset["text_pair"][:] == ["c"]


def test_samples_keep_their_order() -> None:
    rows = table(("en", "2", "b", "x"), ("de", "2", "zwei", "x"), ("en", "1", "a", "y"), ("de", "1", "eins", "y"))
    dataset = build_corpus(rows, source="x", parallel=True).dataset
    assert list(zip(dataset["text"], labels(dataset), strict=True)) == [("b", "x"), ("zwei", "x"), ("a", "y"), ("eins", "y")]


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(TracInError, match=r"the data has the label 'maybe', but the labels are \['no', 'yes'\]: correct it"):
        build_corpus(table(("en", "1", "a", "maybe")), source="the data", parallel=True, label_names=["no", "yes"])


def test_a_blank_text_is_named() -> None:
    with pytest.raises(TracInError, match=r"1 rows without a text; the first is item '2' in language 'en': .*add '' to drop"):
        build_corpus(table(("en", "1", "a", "x"), ("en", "2", " ", "x")), source="x", parallel=True)


def test_blank_texts_can_be_dropped() -> None:
    corpus = build_corpus(table(("en", "1", "a", "x"), ("en", "2", " ", "x")), source="x", parallel=True, drop_texts=[""])
    assert dropped(corpus) == {("en", "with a placeholder for a text"): 1}


def test_an_item_that_stands_twice_is_named() -> None:
    with pytest.raises(TracInError, match=r"item '1' more than once in language 'de': name a column as item"):
        build_corpus(table(("en", "1", "a", "x"), ("de", "1", "b", "x"), ("de", "1", "c", "x")), source="x", parallel=True)


def test_a_language_without_samples_is_named() -> None:
    rows = table(("en", "1", "a", "x"), ("de", "1", "NS", "x"))
    with pytest.raises(TracInError, match=r"x has no sample left in language 'de' \(of \['en', 'de'\]\): leave out that"):
        build_corpus(rows, source="x", parallel=False, drop_texts=["NS"])


def test_parallel_data_without_a_common_item_are_an_error() -> None:
    with pytest.raises(
        TracInError, match=r"x has no sample left in language 'en' .*check the settings for placeholders, labels and items"
    ):
        build_corpus(table(("en", "1", "a", "x"), ("de", "2", "b", "x")), source="x", parallel=True)


def disputed() -> pd.DataFrame:
    """Two languages; item 2 has one label in English and another in German."""
    return table(
        *(("en", "1", "a", "x"), ("en", "2", "b", "x"), ("en", "3", "c", "y")),
        *(("de", "1", "A", "x"), ("de", "2", "B", "y"), ("de", "3", "C", "y")),
    )


def test_labels_that_differ_between_translations_are_named() -> None:
    message = (
        r"the data has 1 items whose translations differ in their label; the first is item '2': 'x' in language 'en', 'y' in "
        r"language 'de'; correct the labels, name the column that translations share as item, name placeholder texts as "
        r"drop_texts, or set differing_labels to 'drop' \(such items are left out in every language\) or 'keep'\."
    )
    with pytest.raises(TracInError, match=f"^{message}$"):
        build_corpus(disputed(), source="the data", parallel=True)


def test_items_with_differing_labels_can_be_dropped_in_every_language_and_are_counted() -> None:
    corpus = build_corpus(disputed(), source="x", parallel=True, differing_labels="drop")
    assert corpus.dataset["text"][:] == ["a", "c", "A", "C"]
    reason = "with labels that differ between translations"
    assert dropped(corpus) == {("en", reason): 1, ("de", reason): 1}
    assert corpus.summary().splitlines()[0] == "en: 2 samples; dropped 1 with labels that differ between translations"


def test_items_with_differing_labels_can_be_kept() -> None:
    corpus = build_corpus(disputed(), source="x", parallel=True, differing_labels="keep")
    assert labels(corpus.dataset) == ["x", "x", "y", "x", "y", "y"]
    assert corpus.dropped == ()


def test_labels_are_compared_as_they_are_used() -> None:
    corpus = build_corpus(disputed(), source="x", parallel=True, merge_labels={"y": "x"})
    assert labels(corpus.dataset) == ["x"] * 6


def test_labels_of_an_item_that_is_left_out_anyway_are_not_compared() -> None:
    rows = pd.concat([disputed(), table(("fr", "1", "un", "x"), ("fr", "3", "trois", "y"))], ignore_index=True)
    corpus = build_corpus(rows, source="x", parallel=True)
    assert {reason for _, reason in dropped(corpus)} == {"missing in another language"}


def test_samples_that_are_no_translations_may_differ_in_their_label() -> None:
    assert len(build_corpus(disputed(), source="x", parallel=False).dataset) == 6


def test_a_language_that_loses_all_its_items_to_differing_labels_is_named() -> None:
    rows = table(("en", "1", "a", "x"), ("de", "1", "A", "y"))
    with pytest.raises(TracInError, match=r"x has no sample left in language 'en' \(of \['en', 'de'\]\)"):
        build_corpus(rows, source="x", parallel=True, differing_labels="drop")


def test_an_unknown_way_with_differing_labels_is_named() -> None:
    with pytest.raises(TracInError, match=r"differing_labels should be one of \['error', 'drop', 'keep'\], but got 'ask'"):
        build_corpus(disputed(), source="x", parallel=True, differing_labels="ask")  # type: ignore[arg-type]


def test_items_of_data_that_are_not_parallel_mean_nothing_across_languages() -> None:
    rows = pd.DataFrame(
        {"text": ["a", "b", "c"], "label": ["x", "y", "x"], "language": ["en", "de", "de"], "item": ["0", "0", "1"]}
    )
    assert build_corpus(rows, source="s", parallel=False).dataset["item"][:] == ["en:0", "de:0", "de:1"]
    apart = rows.assign(item=["0", "1", "2"])
    assert build_corpus(apart, source="s", parallel=False).dataset["item"][:] == ["0", "1", "2"]
