"""Clones of a language, on real names in several scripts: what is one-to-one, what is shared, and what is not."""

from __future__ import annotations

import re
import unicodedata

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.cldr import load_cldr
from lightning_tracin.studies.datasets.clones import MOST, Clone, words

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
TEXTS = [*load_cldr(["en", "ko", "ru", "hi"]).dataset["text"], "a  TAB\tand No. 7½, 100 %!", "ß ẞ ı ﬁ"]
TYPES = sorted({word for text in TEXTS for word in words(text)})


@pytest.mark.parametrize("shared", SHARES)
@pytest.mark.parametrize(("number", "family"), [(1, 0), (3, 2), (0, 0), (MOST, MOST)])
def test_words_are_mapped_one_to_one(shared: float, number: int, family: int) -> None:
    clone = Clone(number, shared, family)
    images = {word: clone.text(word) for word in TYPES}
    assert len({image.lower() for image in images.values()}) == len(TYPES) > 1_000
    assert all(len(words(image)) == 1 for word, image in images.items() if word.isalnum() or word.isascii())


@pytest.mark.parametrize("text", TEXTS[::97] + TEXTS[-2:])
def test_a_text_is_its_words_one_by_one(text: str) -> None:
    clone = Clone(2, 0.5)
    assert words(clone.text(text)) == [part.lower() for word in words(text) for part in words(clone.text(word))]
    want = re.sub(r"\w+|[^\w\s]", lambda match: clone.text(match.group()), text)
    assert clone.text(text) == want
    assert re.findall(r"\s", clone.text(text)) == re.findall(r"\s", text)


def test_all_words_shared_is_the_language_itself() -> None:
    assert [Clone(4, 1.0).text(text) for text in TEXTS] == TEXTS
    assert [Clone(0).text(text) for text in TEXTS] == TEXTS
    assert [Clone(4, 1.0, family=2).text(text) for text in TEXTS] == [Clone(2).text(text) for text in TEXTS]


def test_no_word_shared_is_no_word_and_no_letter() -> None:
    languages = [TEXTS, *([Clone(number).text(text) for text in TEXTS] for number in (1, 2, MOST))]
    letters = [{letter for text in texts for letter in text if not letter.isspace()} for texts in languages]
    assert all(not letters[i] & letters[j] for i in range(4) for j in range(i))


def test_the_letters_of_clones_are_letters_to_tokenizers() -> None:
    text = Clone(MOST).text("Isländische Krone")
    assert re.fullmatch(r"\w+ \w+", text)
    assert unicodedata.normalize("NFKC", text) == text
    assert text.lower() == text


@pytest.mark.parametrize("shared", SHARES)
def test_the_part_that_is_shared_is_the_part_of_the_words(shared: float) -> None:
    one, other = ({word: Clone(number, shared).text(word) for word in TYPES} for number in (1, 2))
    same = {word for word in TYPES if one[word] == other[word]}
    assert len(same) / len(TYPES) == pytest.approx(shared, abs=0.03)  # a standard error of 0.008
    assert same <= {word for word in TYPES if Clone(3, min(1.0, shared + 0.1)).text(word) == word}  # more share the same and more


def test_families_share_with_their_own() -> None:
    related = [{Clone(number, 0.5, family).text(word) for word in TYPES} for number, family in [(1, 9), (2, 9), (3, 8)]]
    assert len(related[0] & related[1]) / len(TYPES) == pytest.approx(0.5, abs=0.03)
    assert not related[0] & related[2]


def test_case_does_not_matter_to_what_a_word_is() -> None:
    assert Clone(1).text("DOG dog Dog").split() == [Clone(1).text("dog")] * 3


def test_a_text_in_the_letters_of_clones() -> None:
    with pytest.raises(TracInError, match=r"has the letter '𠀀'.*private area.*leave this text out"):
        Clone(1).text("so 𠀀")


def test_a_number_without_letters() -> None:
    with pytest.raises(TracInError, match=f"number of a clone should be between 0 and {MOST}, but is {MOST + 1}"):
        Clone(MOST + 1)
    with pytest.raises(TracInError, match="family of a clone should be between"):
        Clone(1, family=-1)


def test_a_part_out_of_range() -> None:
    with pytest.raises(TracInError, match=r"shared should be a part between 0 and 1, but is 1\.5"):
        Clone(1, 1.5)
