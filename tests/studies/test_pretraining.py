import dataclasses
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, XLMRobertaForMaskedLM

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split, load_cldr
from lightning_tracin.studies.models.classifier import pretrained_model, small_config
from lightning_tracin.studies.pretraining import MaskedLanguageModel, pretrain, with_encoder
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import pretrained_tokenizer, train_tokenizer

TEXTS = load_cldr(["en", "de"], kinds=["territory"]).dataset["text"][:120]
OPTIONS = FitSettings(
    vocabulary_size=200, hidden_size=16, layers=1, heads=2, max_length=12, pretraining_epochs=8, pretraining_learning_rate=5e-3
)


def test_it_learns_to_fill_gaps_and_is_read_as_any_other_model(tmp_path: Path) -> None:
    pretrain(TEXTS, OPTIONS, tmp_path / "encoder", progress=False)
    told = json.loads((tmp_path / "encoder" / "pretraining.json").read_text())
    assert told["texts"] == len(set(TEXTS))
    assert len(told["losses"]) == 8
    assert told["losses"][-1] < told["losses"][0] - 0.3
    tokenizer = pretrained_tokenizer(str(tmp_path / "encoder"))
    model = pretrained_model(str(tmp_path / "encoder"), ["a", "b"])
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == model.config.vocab_size - 1
    stored = pretrained_model(str(tmp_path / "encoder"), ["a", "b", "c"]).base_model.state_dict()
    torch.testing.assert_close(model.base_model.state_dict(), stored, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_bytes_and_another_run_does_not_overwrite(tmp_path: Path) -> None:
    few = dataclasses.replace(OPTIONS, pretraining_epochs=1)
    for name in ("one", "two"):
        pretrain(TEXTS, few, tmp_path / name, progress=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    pretrain(TEXTS[:50], few, tmp_path / "one", progress=False)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == weights[0]


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"The data have no text to pre-train on; name the column"):
        pretrain(["", " "], OPTIONS, tmp_path / "encoder", progress=False)
    assert not (tmp_path / "encoder").exists()


def test_its_loss_is_that_of_transformers() -> None:
    tokenizer = train_tokenizer(TEXTS, 200, masked=True)
    model = XLMRobertaForMaskedLM(small_config(tokenizer, OPTIONS)).eval()
    collate = DataCollatorForLanguageModeling(tokenizer)
    torch.manual_seed(0)
    batch = collate([{"input_ids": ids} for ids in tokenizer(TEXTS[:20])["input_ids"]])
    module = MaskedLanguageModel(model, learning_rate=1e-3)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    torch.testing.assert_close(module.training_step(batch, 0), model(**batch).loss)


def test_pretraining_is_for_a_small_model(tmp_path: Path) -> None:
    part = Dataset.from_dict({"text": TEXTS})
    split = Split(part, part, part)
    assert with_encoder(dataclasses.replace(OPTIONS, pretraining_epochs=0), split, tmp_path).model == "small"
    with pytest.raises(TracInError, match=r"pretraining_epochs=8 is for a small model, but model is 'xlm-roberta-base'"):
        with_encoder(dataclasses.replace(OPTIONS, model="xlm-roberta-base"), split, tmp_path)
    began = with_encoder(dataclasses.replace(OPTIONS, pretraining_epochs=1), split, tmp_path / "encoder", progress=False)
    assert (began.model, began.pretraining_epochs) == (str((tmp_path / "encoder").resolve()), 0)
    assert json.loads((tmp_path / "encoder" / "pretraining.json").read_text())["texts"] == len(set(TEXTS))
