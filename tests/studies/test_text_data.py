import unicodedata

import pytest
import torch
from datasets import Dataset

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split, load_cldr
from lightning_tracin.studies.text_data import TextDataModule, encode, train_tokenizer

TEXTS = load_cldr(["en", "ru", "ko"], kinds=["territory"]).dataset["text"][:]


def test_the_vocabulary_is_the_same_every_time() -> None:
    assert train_tokenizer(TEXTS, 600).get_vocab() == train_tokenizer(TEXTS, 600).get_vocab()


def test_special_tokens_have_xlmrs_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, 600)
    ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)


@pytest.mark.parametrize("text", ["Germany", "Российская Федерация", "대한민국"])
def test_pieces_make_up_the_text(text: str) -> None:
    pieces = train_tokenizer(TEXTS, 600).tokenize(text)
    assert "".join(pieces).replace("▁", " ").strip() == text


def test_a_character_that_was_not_trained_on_is_unknown() -> None:
    tokenizer = train_tokenizer(TEXTS, 600)
    assert tokenizer("ⴰ")["input_ids"][-2] == 3


def test_pairs_are_joined_as_xlmr_does() -> None:
    tokenizer = train_tokenizer(TEXTS, 600)
    one, two = (tokenizer(text)["input_ids"][1:-1] for text in ("Germany", "France"))
    assert tokenizer("Germany", "France")["input_ids"] == [0, *one, 2, 2, *two, 2]


def test_a_vocabulary_smaller_than_the_alphabet_is_named() -> None:
    characters = len(set(unicodedata.normalize("NFKC", "".join(TEXTS))))
    with pytest.raises(TracInError, match=rf"vocabulary_size=100 cannot hold the {characters} different characters"):
        train_tokenizer(TEXTS, 100)


def test_the_smallest_vocabulary_knows_every_character() -> None:
    characters = len(set(unicodedata.normalize("NFKC", "".join(TEXTS))))
    tokenizer = train_tokenizer(TEXTS, characters + 4)
    assert [text for text in TEXTS if 3 in tokenizer(text)["input_ids"]] == []


def test_encoding_hides_what_no_model_takes_and_keeps_it_readable() -> None:
    dataset = Dataset.from_dict({"text": ["Germany"], "label": [1], "language": ["en"], "item": ["territory:DE"]})
    encoded = encode(dataset, train_tokenizer(TEXTS, 600), 16)
    assert set(encoded[0]) == {"input_ids", "attention_mask", "label"}
    assert encoded.with_format(None)["language"][:] == ["en"]


def test_encoding_truncates() -> None:
    dataset = Dataset.from_dict({"text": ["Trinidad & Tobago " * 3], "text_pair": ["Россия " * 9], "label": [0]})
    assert len(encode(dataset, train_tokenizer(TEXTS, 600), 16)[0]["input_ids"]) == 16


def test_batches_are_padded_and_attend_to_no_padding() -> None:
    part = Dataset.from_dict({"text": ["Germany", "Trinidad & Tobago"], "label": [0, 1]})
    data = TextDataModule(Split(part, part, part), train_tokenizer(TEXTS, 600), batch_size=2, max_length=16)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == 1)
    assert (batch["attention_mask"][0] == 0).any()
    assert batch["labels"].tolist() == [0, 1]
