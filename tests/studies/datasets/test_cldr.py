from collections import Counter, defaultdict

import pytest
from babel import Locale

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Corpus, load_cldr
from tests.support.rows import dropped, labels

LANGUAGES = ("en", "de", "es", "ru", "ko", "nl", "fr", "uk")
SPECIAL_CODES = {  # "unknown", "none" and the like, by hand from CLDR's documentation of special codes
    "currency": {"XTS", "XXX"},
    "language": {"mis", "mul", "und", "zxx"},
    "script": {"Zinh", "Zmth", "Zsye", "Zsym", "Zxxx", "Zyyy", "Zzzz"},
    "territory": {"XA", "XB", "ZZ"},
    "unit": set(),
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_cldr(LANGUAGES)


def names_in(language: str) -> dict[str, dict[str, str]]:
    locale = Locale(language)
    return {
        "currency": dict(locale.currencies),
        "language": dict(locale.languages),
        "script": dict(locale.scripts),
        "territory": dict(locale.territories),
        "unit": {code: forms["long"] for code, forms in locale.unit_display_names.items() if "long" in forms},
    }


@pytest.mark.parametrize(
    ("language", "item", "name"),
    [
        ("en", "territory:DE", "Germany"),
        ("de", "territory:DE", "Deutschland"),
        ("ru", "territory:DE", "Германия"),
        ("ko", "territory:DE", "독일"),
        ("uk", "territory:DE", "Німеччина"),
        ("fr", "language:de", "allemand"),
        ("es", "currency:JPY", "yen japonés"),
        ("de", "script:Cyrl", "Kyrillisch"),
        ("nl", "unit:length-light-year", "lichtjaar"),
    ],
)
def test_names_are_the_languages_own(corpus: Corpus, language: str, item: str, name: str) -> None:
    assert [row["text"] for row in corpus.dataset if (row["language"], row["item"]) == (language, item)] == [name]


def test_every_language_has_the_same_items(corpus: Corpus) -> None:
    languages_of_item = defaultdict(list)
    for row in corpus.dataset:
        languages_of_item[row["item"]].append(row["language"])
    assert {tuple(languages) for languages in languages_of_item.values()} == {LANGUAGES}


def test_the_label_is_the_kind_in_the_item(corpus: Corpus) -> None:
    assert labels(corpus.dataset) == [item.split(":")[0] for item in corpus.dataset["item"]]


def test_no_name_is_its_code(corpus: Corpus) -> None:
    assert [row for row in corpus.dataset if row["text"].lower() == row["item"].split(":")[1].lower()] == []


def test_no_name_stands_twice_in_a_language(corpus: Corpus) -> None:
    counts = Counter((row["language"], row["text"].lower()) for row in corpus.dataset)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("item", ["language:ar", "script:Arab"])
def test_a_name_of_two_kinds_is_no_question(corpus: Corpus, item: str) -> None:
    assert Locale("en").languages["ar"] == Locale("en").scripts["Arab"] == "Arabic"
    assert item not in corpus.dataset["item"]


@pytest.mark.parametrize("kind", SPECIAL_CODES)
def test_special_codes_are_left_out(corpus: Corpus, kind: str) -> None:
    codes = {item.split(":")[1] for item in corpus.dataset["item"] if item.startswith(f"{kind}:")}
    assert codes.isdisjoint(SPECIAL_CODES[kind])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_is_kept_or_accounted_for(corpus: Corpus, language: str) -> None:
    there = sum(len(set(names) - SPECIAL_CODES[kind]) for kind, names in names_in(language).items())
    kept = sum(row["language"] == language for row in corpus.dataset)
    assert kept + sum(count for (name, _), count in dropped(corpus).items() if name == language) == there


def test_no_kind_is_more_than_half_of_the_items(corpus: Corpus) -> None:
    counts = Counter(labels(corpus.dataset))
    assert set(counts) == set(SPECIAL_CODES)
    assert max(counts.values()) < 0.5 * len(corpus.dataset)


def test_kinds_can_be_chosen() -> None:
    corpus = load_cldr(["en", "de"], kinds=["territory", "currency"])
    assert corpus.dataset.features["label"].names == ["territory", "currency"]
    assert set(labels(corpus.dataset)) == {"territory", "currency"}


def test_a_regional_locale_inherits_its_languages_names_but_not_the_roots() -> None:
    corpus = load_cldr(["pt-PT"], kinds=["territory"])
    assert "territory:BR" not in Locale("root").territories
    assert [row["text"] for row in corpus.dataset if row["item"] == "territory:BR"] == ["Brasil"]


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(TracInError, match=r"CLDR has no language 'klingon': give a locale such as 'en', 'pt_BR'"):
        load_cldr(["en", "klingon"])


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(TracInError, match=r"CLDR names of kind 'planet' are not known: choose from \['currency', "):
        load_cldr(["en"], kinds=["planet"])


def test_no_language_at_all_is_an_error() -> None:
    with pytest.raises(TracInError, match="No language of CLDR is named: name at least one, such as 'en'"):
        load_cldr([])


def test_a_language_without_names_is_named() -> None:
    with pytest.raises(TracInError, match="CLDR has no currency name in language 'root': leave out the language, or the kind"):
        load_cldr(["en", "root"])
