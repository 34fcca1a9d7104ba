"""What tokens look like: texts and positions, where the batch and the loss show them."""

from __future__ import annotations

import types

import torch

from lightning_tracin.attribution.token_losses import Token
from lightning_tracin.attribution.token_texts import found_tokenizer, shift_of, texts_of, unscored_pieces


class Letters:
    """A tokenizer whose pieces are the letters of the alphabet; 0 is special."""

    all_special_ids = (0,)

    def __len__(self) -> int:
        return 26

    def convert_ids_to_tokens(self, number: int) -> str:
        return ("▁" if number % 5 == 0 else "") + chr(ord("a") + number)

    def convert_tokens_to_string(self, pieces: list[str]) -> str:
        return "".join(pieces)


LETTERS = Letters()


def tokens(targets: dict[int, int], classes: int, count: int) -> list[Token]:
    return [Token(place, 0, place, target, classes, count) for place, target in targets.items()]


def test_a_taggers_tokens_are_those_of_the_input() -> None:
    batch = {"input_ids": torch.tensor([[0, 5, 6, 7, 0]]), "labels": torch.tensor([[-100, 2, -100, 1, -100]])}
    tagged = tokens({1: 2, 3: 1}, classes=3, count=5)
    assert shift_of(tagged, batch) == 0
    assert texts_of(tagged, batch, LETTERS) == [" f", "h"]
    assert unscored_pieces(tagged, batch, LETTERS) == [(2, "g")]


def test_a_causal_models_tokens_are_the_ones_it_predicts() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, 6, 7]])}
    written = tokens({0: 6, 1: 7}, classes=26, count=3)
    assert shift_of(written, batch) == 1
    assert texts_of(written, batch, LETTERS) == ["g", "h"]
    assert unscored_pieces(written, batch, LETTERS) == [(0, " f")]


def test_a_translations_tokens_are_those_of_the_answer() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[8, 10]])}
    translated = tokens({0: 8, 1: 10}, classes=26, count=2)
    assert shift_of(translated, batch) == 0
    assert texts_of(translated, batch, LETTERS) == ["i", " k"]
    assert unscored_pieces(translated, batch, LETTERS) == []


def test_what_a_position_stands_for_is_not_guessed() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert texts_of(tokens({0: -1, 1: -1}, classes=0, count=2), batch, LETTERS) == ["", ""]
    assert unscored_pieces(tokens({0: -1, 1: -1}, classes=0, count=2), batch, LETTERS) == []
    assert texts_of(tokens({0: -1, 2: -1}, classes=0, count=3), batch, LETTERS) == [" f", "h"]


def test_without_a_tokenizer_or_a_dictionary_there_are_positions_only() -> None:
    tagged = tokens({0: 1}, classes=3, count=1)
    assert texts_of(tagged, {"input_ids": torch.tensor([[5]])}, None) == [""]
    assert texts_of(tagged, (torch.tensor([[5]]),), LETTERS) == [""]
    assert unscored_pieces(tagged, (torch.tensor([[5]]),), LETTERS) == []


def test_a_term_of_the_whole_sample_says_so() -> None:
    assert texts_of([Token(0, 1, -1, 2, 3, 1)], {"input_ids": torch.tensor([[5]])}, LETTERS) == ["(sample)"]


def test_the_first_tokenizer_counts() -> None:
    trainer = types.SimpleNamespace(processing_class=LETTERS)
    assert found_tokenizer(None, types.SimpleNamespace(tokenizer="a name"), trainer) is LETTERS
