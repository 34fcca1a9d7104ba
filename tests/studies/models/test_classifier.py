import dataclasses
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split, load_cldr
from lightning_tracin.studies.models.classifier import pretrained_model, small_model, tokenizer_and_model
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import pretrained_tokenizer, train_tokenizer

TEXTS = load_cldr(["en", "ru"], kinds=["territory"]).dataset["text"][:]
SIZES = FitSettings(hidden_size=16, layers=2, heads=2, max_length=12)


def test_a_small_model_takes_the_longest_sample() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = small_model(tokenizer, ["a", "b", "c"], SIZES).eval()
    longest = tokenizer(" ".join(TEXTS), truncation=True, max_length=SIZES.max_length, return_tensors="pt")
    assert longest["input_ids"].shape == (1, 12)
    assert model(**longest).logits.isfinite().all()


def test_padding_does_not_change_a_prediction() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = small_model(tokenizer, ["a", "b"], SIZES).eval()
    alone = model(**tokenizer(["Peru"], return_tensors="pt")).logits[0]
    beside = model(**tokenizer(["Peru", "Equatorial"], padding=True, return_tensors="pt")).logits[0]
    torch.testing.assert_close(alone, beside)


def test_a_model_of_a_local_folder_keeps_its_weights_and_gets_a_head_of_the_right_size(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    saved = small_model(tokenizer, ["a", "b"], SIZES)
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = pretrained_model(str(tmp_path), ["x", "y", "z"])
    torch.testing.assert_close(loaded.base_model.state_dict(), saved.base_model.state_dict(), rtol=0, atol=0)
    assert loaded.classifier.out_proj.out_features == 3
    assert loaded.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert pretrained_tokenizer(str(tmp_path))("Peru")["input_ids"] == tokenizer("Peru")["input_ids"]


@pytest.mark.parametrize("frozen", [False, True])
def test_embeddings_of_word_pieces_can_keep_their_values(frozen: bool) -> None:
    samples = Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)}).cast_column("label", ClassLabel(names=["a", "b"]))
    options = dataclasses.replace(SIZES, freeze_embeddings=frozen, vocabulary_size=300)
    _, model = tokenizer_and_model(options, Split(samples, samples, samples))
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == (["roberta.embeddings.word_embeddings.weight"] if frozen else [])


def test_a_model_of_a_local_folder_is_trained_with_dropout(tmp_path: Path) -> None:
    small_model(train_tokenizer(TEXTS, 300), ["a", "b"], SIZES).eval().save_pretrained(tmp_path)
    model = pretrained_model(str(tmp_path), ["a", "b"])
    assert [name for name, part in model.named_modules() if not part.training] == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("load", [pretrained_tokenizer, lambda name: pretrained_model(name, ["a", "b"])])
def test_without_a_network_the_message_says_what_to_do(load: object) -> None:
    with pytest.raises(TracInError) as caught:
        load("xlm-roberta-base")  # type: ignore[operator]
    for part in ("'xlm-roberta-base'", "without a network", "copy the folder and give its path as --model", "--model small"):
        assert part in str(caught.value)
