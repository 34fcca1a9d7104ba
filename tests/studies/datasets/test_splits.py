import pytest
from datasets import Dataset

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split, SplitPlan, repeated_texts, split_by_item, split_two
from tests.support.rows import items

LANGUAGES = ("en", "de", "fr")


def parallel(count: int, languages: tuple[str, ...] = LANGUAGES, prefix: str = "") -> Dataset:
    rows = [
        {"language": language, "item": f"{prefix}{i}", "text": f"{language} {i}"} for i in range(count) for language in languages
    ]
    return Dataset.from_list(rows)


def plan(**changes: object) -> SplitPlan:
    settings = {"train_languages": ["en", "de"], "probe_languages": ["en", "de", "fr"], "train_per_language": 10}
    return SplitPlan(**{**settings, "probes_per_language": 4, **changes})  # type: ignore[arg-type]


def test_no_translation_of_a_probe_is_trained_on() -> None:
    split = split_by_item(parallel(20), plan())
    assert set(split.probes["item"]).isdisjoint(split.train["item"])


def test_every_language_gets_the_same_items() -> None:
    split = split_by_item(parallel(20), plan())
    assert items(split.train, "en") == items(split.train, "de")
    assert items(split.probes, "en") == items(split.probes, "de") == items(split.probes, "fr")


@pytest.mark.parametrize("extra", [0, 2])
def test_different_items_leave_no_translation_among_the_train_samples(extra: int) -> None:
    asked = plan(different_items=True, extra_per_language=extra)
    for split in (split_by_item(parallel(40), asked), split_two(parallel(40), parallel(14, prefix="probe:"), asked)):
        trained = [*split.train["item"], *split.extra["item"]]
        assert len(trained) == len(set(trained)) == 2 * (10 + extra)
        assert set(trained).isdisjoint([*split.probes["item"], *split.test["item"]])
        assert items(split.probes, "en") == items(split.probes, "de") == items(split.probes, "fr")


def test_too_few_different_items_are_counted() -> None:
    with pytest.raises(TracInError, match="Language 'de' has 6 items to choose train samples from, but 10 are needed"):
        split_by_item(parallel(20), plan(different_items=True))


def test_every_language_gets_as_many_as_asked_for() -> None:
    split = split_by_item(parallel(20), plan())
    assert {language: len(set(items(split.train, language))) for language in LANGUAGES} == {"en": 10, "de": 10, "fr": 0}
    assert {language: len(set(items(split.probes, language))) for language in LANGUAGES} == dict.fromkeys(LANGUAGES, 4)


def test_what_is_left_is_for_testing() -> None:
    split = split_by_item(parallel(20), plan())
    used = {*split.train["item"], *split.probes["item"]}
    assert {language: set(items(split.test, language)) for language in LANGUAGES} == dict.fromkeys(
        LANGUAGES, {str(i) for i in range(20)} - used
    )


def test_the_test_samples_can_be_limited() -> None:
    assert len(split_by_item(parallel(20), plan(test_per_language=2)).test) == 2 * 3


def test_samples_are_whole_rows() -> None:
    split = split_by_item(parallel(20), plan())
    for part in (split.train, split.probes, split.test):
        assert part["text"][:] == [f"{row['language']} {row['item']}" for row in part]


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    data = parallel(20)
    other_order = data.select(list(reversed(range(len(data)))))
    chosen = items(split_by_item(data, plan()).probes, "fr")
    assert items(split_by_item(other_order, plan()).probes, "fr") == chosen
    assert items(split_by_item(data, plan(seed=1)).probes, "fr") != chosen


def test_data_that_are_not_parallel_are_split_too() -> None:
    rows = [{"language": language, "item": f"{language}:{i}"} for i in range(20) for language in LANGUAGES]
    split = split_by_item(Dataset.from_list(rows), plan())
    assert len(items(split.train, "en")) == len(items(split.train, "de")) == 10
    assert set(split.probes["item"]).isdisjoint(split.train["item"])


def test_a_hidden_column_does_not_hinder() -> None:
    data = parallel(20)
    data.set_format(columns=["text"])
    assert len(split_by_item(data, plan()).train) == 20


def test_shared_items_put_every_probes_translations_into_the_train_data() -> None:
    split = split_by_item(parallel(30), plan(share_items=True, train_per_language=12))
    trained = {(row["language"], row["item"]) for row in split.train}
    for probe in split.probes:
        others = {"en", "de"} - {probe["language"]}
        assert {language for language in ("en", "de") if (language, probe["item"]) in trained} == others


def test_test_samples_share_no_item_even_if_probes_and_train_samples_do() -> None:
    split = split_by_item(parallel(30), plan(share_items=True, train_per_language=12))
    assert set(split.test["item"]).isdisjoint({*split.train["item"], *split.probes["item"]})


def test_probes_from_data_of_their_own() -> None:
    split = split_two(parallel(20), parallel(8, prefix="probe:"), plan())
    assert all(item.startswith("probe:") for item in [*split.probes["item"], *split.test["item"]])
    assert len(split.train) == 20
    assert len(split.test) == 3 * (8 - 4)


def test_probes_from_data_of_their_own_are_kept_out_of_the_train_data() -> None:
    split = split_two(parallel(14), parallel(20), plan())
    assert set(split.train["item"]).isdisjoint({*split.probes["item"], *split.test["item"]})


def test_probes_from_data_of_their_own_may_share_items() -> None:
    split = split_two(parallel(10), parallel(14), plan(share_items=True))
    assert set(split.train["item"]) == {str(i) for i in range(10)}


def test_a_missing_language_is_named() -> None:
    with pytest.raises(TracInError, match=r"The data have no language 'xx'; they have \['de', 'en', 'fr'\]: choose from these"):
        split_by_item(parallel(20), plan(probe_languages=["xx"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_per_language": 17}, "Language 'en' has 16 items to choose train samples from, but 17 are needed: choose fewer"),
        ({"probes_per_language": 21}, "Language 'en' has 20 items to choose probes from, but 21 are needed: choose fewer"),
        ({"train_per_language": 16}, "Language 'en' has no item left to test on: choose fewer train samples or probes"),
    ],
)
def test_too_few_items_are_counted(changes: dict[str, int], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        split_by_item(parallel(20), plan(**changes))


def test_no_test_samples_may_be_left_if_none_are_wanted() -> None:
    assert len(split_by_item(parallel(20), plan(train_per_language=16, test_per_language=0)).test) == 0


def rows_of(dataset: Dataset) -> list[tuple[str, str]]:
    return [(row["language"], row["item"]) for row in dataset]


def test_no_extra_samples_unless_asked_for() -> None:
    split = split_by_item(parallel(20), plan())
    assert rows_of(split.extra) == []
    assert split.extra.features == split.train.features


@pytest.mark.parametrize("different_items", [False, True])
@pytest.mark.parametrize("share_items", [False, True])
def test_extra_samples_leave_train_samples_and_probes_as_they_are(share_items: bool, different_items: bool) -> None:
    asked = [plan(share_items=share_items, different_items=different_items, extra_per_language=n) for n in (0, 5)]
    by_item = [split_by_item(parallel(60), one) for one in asked]
    of_two = [split_two(parallel(60), parallel(14, prefix="probe:"), one) for one in asked]
    for without, with_extra in (by_item, of_two):
        assert len(with_extra.extra) == 10
        assert rows_of(with_extra.train) == rows_of(without.train)
        assert rows_of(with_extra.probes) == rows_of(without.probes)


def test_different_train_items_are_the_next_ones_of_the_order() -> None:
    split = split_by_item(parallel(60), plan(different_items=True, extra_per_language=5))
    whole = items(split_by_item(parallel(60), plan(train_languages=["en"], train_per_language=30)).train, "en")
    assert [items(part, language) for part in (split.train, split.extra) for language in ("en", "de")] == [
        whole[:10],
        whole[10:20],
        whole[20:25],
        whole[25:],
    ]


def test_extra_samples_are_the_next_ones_that_would_be_trained_on() -> None:
    longer = split_by_item(parallel(40), plan(train_per_language=15))
    split = split_by_item(parallel(40), plan(extra_per_language=5))
    for language in ("en", "de"):
        assert items(split.train, language) + items(split.extra, language) == items(longer.train, language)


def test_extra_samples_are_of_the_same_items_in_every_train_language() -> None:
    split = split_by_item(parallel(40), plan(extra_per_language=5))
    assert items(split.extra, "en") == items(split.extra, "de")
    assert len(set(items(split.extra, "en"))) == 5
    assert items(split.extra, "fr") == []


@pytest.mark.parametrize("share_items", [False, True])
def test_extra_samples_are_in_no_other_part(share_items: bool) -> None:
    split = split_by_item(parallel(40), plan(share_items=share_items, extra_per_language=5))
    others = {*rows_of(split.train), *rows_of(split.probes), *rows_of(split.test)}
    assert others.isdisjoint(rows_of(split.extra))
    assert set(split.extra["item"]).isdisjoint(split.test["item"])
    assert share_items or set(split.extra["item"]).isdisjoint(split.probes["item"])


def test_extra_samples_beside_probes_of_their_own() -> None:
    without, split = (split_two(parallel(30), parallel(20), plan(extra_per_language=n)) for n in (0, 5))
    assert (rows_of(split.train), rows_of(split.probes)) == (rows_of(without.train), rows_of(without.probes))
    assert items(split.extra, "en") == items(split.extra, "de")
    assert len(set(items(split.extra, "en"))) == 5
    assert set(split.extra["item"]).isdisjoint({*split.train["item"], *split.probes["item"], *split.test["item"]})


def test_extra_samples_of_data_that_are_not_parallel() -> None:
    rows = [{"language": language, "item": f"{language}:{i}"} for i in range(30) for language in LANGUAGES]
    split = split_by_item(Dataset.from_list(rows), plan(extra_per_language=5))
    assert len(set(items(split.extra, "en"))) == len(set(items(split.extra, "de"))) == 5
    assert set(split.extra["item"]).isdisjoint({*split.train["item"], *split.probes["item"], *split.test["item"]})


def test_too_few_items_for_extra_samples_are_counted() -> None:
    message = (
        "Language 'en' has 6 items to choose extra train samples from, but 7 are needed: choose fewer extra train samples, "
        "or provide more data"
    )
    with pytest.raises(TracInError, match=message):
        split_by_item(parallel(20), plan(extra_per_language=7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_per_language": 21}, "Language 'en' has 20 items to choose train samples from, but 21 are needed: choose fewer"),
        ({"extra_per_language": 11}, "Language 'en' has 10 items to choose extra train samples from, but 11 are needed"),
        (
            {"probes_per_language": 9},
            "Language 'en' has 8 items to choose probes from, but 9 are needed: choose fewer probes",
        ),
        (
            {"probes_per_language": 8},
            "Language 'en' has no item left to test on: choose fewer train samples or probes, or no test",
        ),
    ],
)
def test_too_few_items_in_data_of_their_own_are_counted(changes: dict[str, int], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        split_two(parallel(20), parallel(8, prefix="probe:"), plan(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_per_language": 0}, "SplitPlan.train_per_language should be at least 1, but got 0"),
        ({"probes_per_language": -1}, "SplitPlan.probes_per_language should be at least 1, but got -1"),
        ({"test_per_language": -1}, "SplitPlan.test_per_language should be at least 0, but got -1"),
        ({"extra_per_language": -1}, "SplitPlan.extra_per_language should be at least 0, but got -1"),
    ],
)
def test_counts_that_make_no_sense_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        plan(**changes)


def part(*rows: tuple[str, str, str, str]) -> Dataset:
    names = ("language", "item", "text", "text_pair")
    return Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def test_probes_with_the_text_of_a_train_sample_are_counted_by_language() -> None:
    train = part(("en", "1", "one", "a"), ("en", "2", "two", "b"), ("de", "1", "eins", "a"))
    probes = part(
        ("en", "7", " one ", "a"),  # but for blanks around it
        ("de", "7", "two", "b"),  # in another language
        ("de", "8", "eins", "b"),  # the pair is not the same
        ("de", "1", "one", "a"),  # a translation that is written the same
    )
    assert repeated_texts(Split(train, probes, probes)) == {"en": 1, "de": 1}


def test_a_probe_is_not_trained_on_under_another_name_of_its_language() -> None:
    data = parallel(20, ("en", "de", "english"))
    split = split_by_item(data, plan(probe_languages=["english", "de"], share_items=True))
    assert items(split.probes, "english")
    assert set(items(split.probes, "english")).isdisjoint(items(split.train, "en"))
    assert set(items(split.probes, "de")).isdisjoint(items(split.train, "de"))
