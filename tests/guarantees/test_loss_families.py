"""A plain `return self.model(**batch).loss` of every kind of transformers' models is scored for certain, and exactly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from lightning_tracin import TracInError
from lightning_tracin.attribution.losses import Probed, find_loss
from lightning_tracin.config import LossUnit

PAD, VOCABULARY, IGNORED = 1, 40, -100
XLMR = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "type_vocab_size": 1,
    "pad_token_id": PAD,
    "num_labels": 3,
}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": PAD,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
}
CTC = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (6, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "pad_token_id": 0,
}

Sample = dict[str, Any]
Weigh = Callable[[Sample], float]


def tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(4, VOCABULARY) for _ in range(count)]


def text(generator: random.Random, labels: Callable[[random.Random, list[int]], Any], length: int | None = None) -> Sample:
    ids = [0, *tokens(generator, length or generator.randint(2, 9)), 2]
    return {"input_ids": ids, "labels": labels(generator, ids)}


def collated(samples: list[Sample]) -> dict[str, Tensor]:
    """Pads lists on the right: labels with -100, anything else with its own padding."""
    batch: dict[str, Tensor] = {}
    for name in samples[0]:
        values = [torch.as_tensor(sample[name]) for sample in samples]
        longest = max((len(one) for one in values if one.dim()), default=0)
        padding = IGNORED if "labels" in name else 0.0 if values[0].is_floating_point() else PAD
        batch[name] = torch.stack([F.pad(one, (0, longest - len(one)), value=padding) if one.dim() else one for one in values])
    if "input_ids" in batch:
        batch["attention_mask"] = (batch["input_ids"] != PAD).long()
    return batch


class Plain(nn.Module):
    """The step that everybody writes."""

    def __init__(self, model: nn.Module, **more: Any) -> None:
        super().__init__()
        self.model, self.more = model.double().eval(), more

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch, **self.more).loss


class Counted(Plain):
    """Divides by the number of labels, as accumulation over several batches does."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch, num_items_in_batch=(batch["labels"] != IGNORED).sum()).loss


class CountedShifted(Plain):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch, num_items_in_batch=int((batch["labels"][:, 1:] != IGNORED).sum())).loss


class CountedByCollate(Plain):
    """The collate function counts; nothing in the step shows what it has counted."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        counted = sum(label != IGNORED for row in batch["labels"].tolist() for label in row)
        return self.model(**batch, num_items_in_batch=counted).loss


class Selected(Plain):
    """Computes the head's loss on labelled tokens only."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        live = batch["labels"] != IGNORED
        return F.cross_entropy(logits[live], batch["labels"][live])


class SelectedByHand(Selected):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
        return losses[batch["labels"] != IGNORED].mean()


class Smoothed(Plain):
    """As transformers' own `LabelSmoother` does it."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        from transformers.trainer_pt_utils import LabelSmoother

        return LabelSmoother(0.1)({"logits": self.model(**batch).logits}, batch["labels"].clone())


class SmoothedByTorch(Plain):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(**batch).logits
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)


def made(kind: str, config: str, settings: dict[str, Any], **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**settings, **more}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, nn.Module)
    return model


def tags(generator: random.Random, ids: list[int]) -> list[int]:
    return [IGNORED, *(generator.choice([0, 1, 2, IGNORED]) for _ in ids[2:]), generator.randrange(3)]


def masked(generator: random.Random, ids: list[int]) -> list[int]:
    chosen = set(generator.sample(range(len(ids)), generator.randint(1, len(ids) - 1)))
    return [one if position in chosen else IGNORED for position, one in enumerate(ids)]


def span(generator: random.Random, length: int = 7) -> Sample:
    """All of one length, because transformers' models take padding for possible answers."""
    ids = [0, *tokens(generator, length), 2]
    return {"input_ids": ids, "start_positions": generator.randrange(length), "end_positions": generator.randrange(length)}


def speech(generator: random.Random) -> Sample:
    return {"input_values": [generator.gauss(0, 1) for _ in range(160)], "labels": tokens(generator, generator.randint(2, 5))}


def count(sample: Sample, skip: int = 0) -> float:
    return float(sum(label != IGNORED for label in sample["labels"][skip:]))


def one(_: Sample) -> float:
    return 1.0


Family = tuple[Callable[[], nn.Module], Callable[[random.Random], Sample], Weigh]

XLMR_TOKENS = ("XLMRobertaForTokenClassification", "XLMRobertaConfig", XLMR)
LLAMA_CAUSAL = ("LlamaForCausalLM", "LlamaConfig", LLAMA)


def causal(generator: random.Random, length: int | None = None) -> Sample:
    return text(generator, lambda _, ids: list(ids), length)


def prompted(generator: random.Random) -> Sample:
    return text(generator, lambda maker, ids: [*[IGNORED] * maker.randint(1, 2), *ids][: len(ids)])


FAMILIES: dict[str, Family] = {
    "one label": (
        lambda: Plain(made("XLMRobertaForSequenceClassification", "XLMRobertaConfig", XLMR)),
        lambda maker: text(maker, lambda one, _: one.randrange(3)),
        one,
    ),
    "multi-label": (
        lambda: Plain(
            made(
                "XLMRobertaForSequenceClassification",
                "XLMRobertaConfig",
                XLMR,
                problem_type="multi_label_classification",
            )
        ),
        lambda maker: text(maker, lambda one, _: torch.tensor([float(one.randrange(2)) for _ in range(3)]).double()),
        one,
    ),
    "regression": (
        lambda: Plain(made("XLMRobertaForSequenceClassification", "XLMRobertaConfig", XLMR, num_labels=1)),
        lambda maker: text(maker, lambda one, _: torch.tensor(one.random()).double()),
        one,
    ),
    "tokens": (lambda: Plain(made(*XLMR_TOKENS)), lambda maker: text(maker, tags), count),
    "tokens, selected": (lambda: Selected(made(*XLMR_TOKENS)), lambda maker: text(maker, tags), count),
    "tokens, selected by hand": (lambda: SelectedByHand(made(*XLMR_TOKENS)), lambda maker: text(maker, tags), count),
    "tokens, smoothed": (lambda: Smoothed(made(*XLMR_TOKENS)), lambda maker: text(maker, tags), count),
    "tokens, smoothed by torch": (lambda: SmoothedByTorch(made(*XLMR_TOKENS)), lambda maker: text(maker, tags), count),
    "masked": (
        lambda: Plain(made("XLMRobertaForMaskedLM", "XLMRobertaConfig", XLMR)),
        lambda maker: text(maker, masked),
        count,
    ),
    "causal, padded": (lambda: Plain(made(*LLAMA_CAUSAL)), causal, lambda sample: count(sample, 1)),
    "causal, packed": (lambda: Plain(made(*LLAMA_CAUSAL)), lambda maker: causal(maker, 9), lambda sample: count(sample, 1)),
    "causal, prompted": (lambda: Plain(made(*LLAMA_CAUSAL)), prompted, lambda sample: count(sample, 1)),
    "causal, counted": (lambda: Counted(made(*LLAMA_CAUSAL)), prompted, count),
    "causal, counted shifted": (lambda: CountedShifted(made(*LLAMA_CAUSAL)), prompted, lambda sample: count(sample, 1)),
    "causal, counted by collate": (lambda: CountedByCollate(made(*LLAMA_CAUSAL)), causal, count),
    "seq2seq": (lambda: Plain(made("T5ForConditionalGeneration", "T5Config", T5)), causal, count),
    "questions": (
        lambda: Plain(made("XLMRobertaForQuestionAnswering", "XLMRobertaConfig", {**XLMR, "num_labels": 2})),
        span,
        one,
    ),
    "speech, mean": (
        lambda: Plain(made("Wav2Vec2ForCTC", "Wav2Vec2Config", CTC, ctc_loss_reduction="mean")),
        speech,
        one,
    ),
    "speech, sum": (lambda: Plain(made("Wav2Vec2ForCTC", "Wav2Vec2Config", CTC, ctc_loss_reduction="sum")), speech, one),
}


def samples_of(name: str, number: int, seed: int) -> list[Sample]:
    generator = random.Random(seed)
    samples = [FAMILIES[name][1](generator) for _ in range(number)]
    for sample in samples:
        if "input_values" in sample:
            sample["input_values"] = torch.tensor(sample["input_values"], dtype=torch.float64)
    return samples


def checks(name: str) -> list[Probed]:
    return [probed(samples_of(name, size, size)) for size in (5, 2, 8)]


def probed(samples: list[Sample]) -> Probed:
    return Probed(collated(samples), [collated([sample]) for sample in samples], "train samples")


def gradients(loss: Tensor, module: nn.Module) -> Tensor:
    parameters = [one for one in module.parameters() if one.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten().double() for p, g in zip(parameters, found, strict=True)]
    )


def close(got: Tensor, want: Tensor) -> None:
    assert float((got - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_sum_is_certain_and_that_of_a_loop(name: str, unit: LossUnit) -> None:
    module, _, weigh = FAMILIES[name][0](), *FAMILIES[name][1:]
    loss = find_loss(module, lambda: checks(name), unit=unit)
    samples = samples_of(name, 7, 100)
    summed = loss.summed(collated(samples), len(samples))
    assert summed.is_certain
    wanted = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        own = module.training_step(collated([sample]), 0) * (weigh(sample) if unit == "token" else 1)  # type: ignore[operator]
        wanted = wanted + own
        torch.testing.assert_close(loss(collated([sample]), 1).double(), own.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(summed.total.double(), wanted.double(), rtol=1e-6, atol=1e-9)
    close(gradients(summed.total, module), gradients(wanted, module))


def test_padding_that_counts_as_an_answer_is_refused() -> None:
    module = FAMILIES["questions"][0]()
    generator = random.Random(0)
    batches = [probed([span(generator, length) for length in (3, 9, 5)]), probed([span(generator, 4), span(generator, 8)])]
    with pytest.raises(TracInError, match="neither the mean nor the sum"):
        find_loss(module, lambda: batches)


def test_answers_beyond_the_text_are_ignored_and_a_sample_without_an_answer_has_no_loss() -> None:
    module = FAMILIES["questions"][0]()
    samples = samples_of("questions", 8, 1)
    samples[0]["start_positions"] = samples[1]["end_positions"] = samples[2]["start_positions"] = samples[2]["end_positions"] = 90
    loss = find_loss(module, lambda: [*checks("questions"), probed(samples[:5])])
    summed = loss.summed(collated(samples), len(samples))
    assert summed.is_certain
    wanted = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        output = module.model(**collated([sample]))  # type: ignore[operator]
        found = torch.zeros((), dtype=torch.float64)
        for logits, position in ((output.start_logits, "start_positions"), (output.end_logits, "end_positions")):
            if sample[position] < 90:
                found = found + F.cross_entropy(logits, torch.tensor([sample[position]])) / 2
        torch.testing.assert_close(loss(collated([sample]), 1), found)
        wanted = wanted + found
    torch.testing.assert_close(summed.total, wanted)
    close(gradients(summed.total, module), gradients(wanted, module))


@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("name", ["tokens", "tokens, selected", "causal, prompted", "causal, counted", "seq2seq", "masked"])
def test_a_sample_without_labels_has_no_loss(name: str, unit: LossUnit) -> None:
    module, _, weigh = FAMILIES[name][0](), *FAMILIES[name][1:]
    samples = samples_of(name, 6, 50)
    samples[2]["labels"] = [IGNORED] * len(samples[2]["labels"])
    loss = find_loss(module, lambda: [*checks(name), probed(samples)], unit=unit)
    assert float(loss(collated([samples[2]]), 1).detach()) == 0
    summed = loss.summed(collated(samples), 6)
    own = {i: module.training_step(collated([one]), 0) for i, one in enumerate(samples) if i != 2}  # type: ignore[operator]
    wanted = torch.stack([one * (weigh(samples[i]) if unit == "token" else 1) for i, one in own.items()]).sum()
    assert summed.is_certain
    close(gradients(summed.total, module), gradients(wanted, module))
    nothing = loss.summed(collated([samples[2], samples[2]]), 2)
    assert float(nothing.total.detach()) == 0
    assert float(gradients(nothing.total, module).abs().max()) == 0


def test_a_loss_that_is_not_finite_for_another_reason_stays_so() -> None:
    module = FAMILIES["tokens"][0]()
    loss = find_loss(module, lambda: checks("tokens"))
    with torch.no_grad():
        module.model.classifier.bias.fill_(float("nan"))  # type: ignore[union-attr, operator, index]
    assert not bool(torch.isfinite(loss(collated(samples_of("tokens", 1, 3)), 1)))


class Weighted(Plain):
    """Class weights, by torch and by hand."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), torch.tensor([1.0, 4.0, 20.0]).double())


def test_class_weights_count_in_a_token() -> None:
    module = Weighted(made(*XLMR_TOKENS))
    heavy = {IGNORED: 0.0, 0: 1.0, 1: 4.0, 2: 20.0}
    loss = find_loss(module, lambda: checks("tokens"), unit="token")
    samples = samples_of("tokens", 7, 100)
    wanted = sum(
        (module.training_step(collated([one]), 0) * sum(heavy[label] for label in one["labels"]) for one in samples),
        torch.zeros((), dtype=torch.float64),
    )
    close(gradients(loss(collated(samples), 7), module), gradients(wanted, module))


class Joint(Plain):
    """Intents and slots: two means, over sentences and over tokens."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits[:, 0], batch["input_ids"][:, 1] % 3) + F.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten()
        )


class OfItsOwn(Plain):
    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none").sum(1)


def test_tokens_that_weigh_nothing_definite_are_refused() -> None:
    assert find_loss(Joint(made(*XLMR_TOKENS)), lambda: checks("tokens")).name == "training_step (mean)"
    with pytest.raises(TracInError, match=r"loss_unit='token' needs one weight for a token, .* adds up 2 means"):
        find_loss(Joint(made(*XLMR_TOKENS)), lambda: checks("tokens"), unit="token")
    with pytest.raises(TracInError, match=r"but the module has `per_sample_loss`"):
        find_loss(OfItsOwn(made(*XLMR_TOKENS)), lambda: checks("tokens"), unit="token")
