import pytest
from datasets import Dataset

from lightning_tracin.datasets import SplitPlan, select_items, split_by_item, split_two
from lightning_tracin.errors import TracInError
from tests.datasets.rows import items

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


def test_selected_items_are_the_same_in_every_language() -> None:
    chosen = select_items(parallel(20), ["fr", "en"], 5, exclude=["3", "4"])
    assert chosen["language"][:] == ["fr"] * 5 + ["en"] * 5
    assert items(chosen, "fr") == items(chosen, "en")
    assert set(chosen["item"]).isdisjoint({"3", "4"})


def test_a_missing_language_is_named() -> None:
    with pytest.raises(TracInError, match=r"The data have no language 'xx'; they have \['de', 'en', 'fr'\]: choose among these"):
        split_by_item(parallel(20), plan(probe_languages=["xx"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_per_language": 17}, "Language 'en' has 16 items to choose train samples from, but 17 are asked for: ask for"),
        ({"probes_per_language": 21}, "Language 'en' has 20 items to choose probes from, but 21 are asked for: ask for fewer"),
        ({"train_per_language": 16}, "Language 'en' has no item left to test on: ask for fewer train samples or probes"),
    ],
)
def test_too_few_items_are_counted(changes: dict[str, int], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        split_by_item(parallel(20), plan(**changes))


def test_no_test_samples_may_be_left_if_none_are_wanted() -> None:
    assert len(split_by_item(parallel(20), plan(train_per_language=16, test_per_language=0)).test) == 0
