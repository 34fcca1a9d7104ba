"""Per-token scores against a loop of `autograd.grad` over the loss of each position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from tests.support import fits
from tests.support.token_fits import LATER, Module, Step, Tokens, collate, fitted, loaders, loop, tagger, writer


@pytest.mark.long
@pytest.mark.parametrize("is_causal", [False, True], ids=["token classification", "causal"])
def test_a_tokens_score_is_that_of_the_gradient_of_its_loss(is_causal: bool, tmp_path: Path) -> None:
    classes, model = (None, writer()) if is_causal else (3, tagger())
    module = Module(model)
    run = fitted(module, classes, tmp_path)
    found = run.per_token(module, *loaders(classes), probes=[3, 0], similarity="dot")
    for probe in (3, 0):
        mine = found.values[:, found.probe.values == probe]
        wanted = loop(Module(tagger() if classes else writer()), run, is_causal, probe)
        assert found.position.values[found.probe.values == probe].tolist() == list(wanted)
        scale = np.abs(run.influence("dot").values).max()
        np.testing.assert_allclose(mine, np.stack(list(wanted.values()), 1), atol=1e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "relatif"])
@pytest.mark.parametrize("unit", ["sample", "token"])
def test_tokens_add_up_to_their_probes_influence(similarity: Any, unit: str, tmp_path: Path) -> None:
    module = Module(writer())
    run = fitted(module, None, tmp_path, loss_unit=unit)
    scoring: Any = {"similarity": similarity, "weighting": "learning_rate"}
    found = run.per_token(module, *loaders(None), probes=range(5), train=[6, 2], snapshots=[1], **scoring)
    whole = run.influence(**scoring, snapshots=[1]).values[[6, 2]]
    sums = found.groupby("probe").sum("token").transpose("train", "probe").values
    np.testing.assert_allclose(sums, whole, atol=1e-6 * np.abs(whole).max())
    assert found.train.values.tolist() == [6, 2]


def slots_and_intent(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    slots = F.cross_entropy(logits.transpose(1, 2), batch["labels"])
    return slots + 0.5 * F.cross_entropy(logits[:, 0], batch["input_ids"][:, 0] % 3)


def picked(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, live = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"] != -100
    return F.cross_entropy(logits[live], batch["labels"][live])


def by_hand(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, labels = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return losses.sum() / (labels != -100).sum()


def weighted_and_smooth(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    weight = torch.tensor([1.0, 3.0, 0.5], dtype=logits.dtype)
    return F.cross_entropy(logits.reshape(-1, 3), batch["labels"].reshape(-1), weight, label_smoothing=0.1)


def mean_of_means(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, labels = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (losses / (labels != -100).sum(1, keepdim=True)).sum(1).mean()


@pytest.mark.parametrize("step", [slots_and_intent, picked, by_hand, weighted_and_smooth], ids=lambda one: one.__name__)
def test_tokens_of_losses_by_hand_add_up(step: Step, tmp_path: Path) -> None:
    assert_tokens_add_up(Module(tagger(), step), 3, tmp_path)


def assert_tokens_add_up(module: Module, classes: int | None, path: Path, **options: Any) -> None:
    run = fitted(module, classes, path, **options)
    found = run.per_token(module, *loaders(classes), probes=[1, 4], similarity="dot")
    sums = found.groupby("probe").sum("token").transpose("train", "probe").values
    whole = run.influence("dot").values[:, [1, 4]]
    np.testing.assert_allclose(sums, whole, atol=1e-6 * np.abs(whole).max())


class Split(Module):
    """Says itself what each token adds to the loss of its sample."""

    times = 1.0

    def per_token_loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits, labels = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return self.times * losses / (labels != -100).sum(1, keepdim=True)


class SplitSamples(Split):
    """With one loss for each sample, so that tokens cannot be seen."""

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return Split.per_token_loss(self, batch).sum(1)


@pytest.mark.parametrize("kind", [Split, SplitSamples])
def test_a_module_may_say_what_each_token_adds(kind: type[Split], tmp_path: Path) -> None:
    assert_tokens_add_up(kind(tagger(), mean_of_means), 3, tmp_path)


def test_what_a_module_says_of_tokens_has_to_add_up(tmp_path: Path) -> None:
    module = Split(tagger(), mean_of_means)
    run = fitted(module, 3, tmp_path, **LATER)
    module.times = 2.0
    with pytest.raises(TracInError, match=r"The losses of a sample's tokens add up to \S+, but its own loss is \S+; return from"):
        run.per_token(module, *loaders(3), probes=[0])


class OneForEach(Module):
    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return SplitSamples.per_sample_loss(self, batch)

    times = 1.0


def first_token(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits[:, 0], batch["input_ids"][:, 0] % 3)


def several_labels(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    return F.binary_cross_entropy_with_logits(logits, (logits > 0).to(logits.dtype))


def unseen(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    return torch.stack([one[0].square() for one in logits]).div(len(logits)).cumsum(0)[-1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Module(tagger(), first_token), "what is seen of the loss has a single value for a sample. Let `training_step`"),
        (
            lambda: Module(tagger(), several_labels),
            "what is seen of the loss has a single value for a sample. Let `training_step`",
        ),
        (
            lambda: Module(tagger(), mean_of_means),
            "what is seen of the loss has a single value for a sample. Let `training_step`",
        ),
        (lambda: Module(tagger(), unseen), "`training_step` computes it in a way that is not seen. Let `training_step` end in"),
        (
            lambda: OneForEach(tagger(), mean_of_means),
            "`per_sample_loss` returns one value for a sample. Let `training_step` end",
        ),
    ],
    ids=["one token", "labels", "means of samples", "unseen", "per_sample_loss"],
)
def test_a_loss_whose_tokens_are_not_seen_is_refused(module: Callable[[], Module], message: str, tmp_path: Path) -> None:
    made = module()
    run = fitted(made, 3, tmp_path, **LATER)
    with pytest.raises(TracInError, match="Per-token scores need to see the loss of each token") as error:
        run.per_token(made, *loaders(3), probes=[0])
    assert message in str(error.value)


def test_a_probe_without_a_label_that_counts_has_no_tokens(tmp_path: Path) -> None:
    module, (train, probes) = Module(tagger()), loaders(3)
    probes.dataset.rows[2]["labels"][:] = -100
    fits.trainer(tmp_path, [TracInCallback(tmp_path, top_k=3)], max_epochs=1).fit(module, train, probes)
    run = TracInRun.open(tmp_path)
    assert set(run.per_token(module, train, probes, probes=[2, 1]).probe.values) == {1}
    assert not run.influence("dot").values[:, 2].any()
    with pytest.raises(TracInError, match=r"^No token of these probes counts in their loss"):
        run.per_token(module, train, probes, probes=[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"probes": [5]}, "There is no probe 5; the fit had 5, numbered from 0."),
        ({"probes": [0], "train": [-1]}, "There is no train sample -1; the fit had 9, numbered from 0."),
        ({"probes": []}, "Per-token scores need at least one probe; give its index."),
    ],
)
def test_indices_are_checked(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    module = Module(tagger())
    with pytest.raises(TracInError, match="^" + message.replace(".", r"\.") + "$"):
        fitted(module, 3, tmp_path, **LATER).per_token(module, *loaders(3), **given)


class Adam(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    "options", [{"preconditioner": "adam"}, {"memory_budget": 1}, {"batch_size": 1}, {"parameters": ["*classifier*"]}], ids=str
)
def test_tokens_add_up_with_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    assert_tokens_add_up(Adam(tagger()), 3, tmp_path, **options)


@pytest.mark.parametrize("options", [{"language_means": True}, {"projection_dim": 512}], ids=str)
def test_runs_without_products_of_pairs_have_exact_tokens(options: dict[str, Any], tmp_path: Path) -> None:
    exact = fitted(Module(tagger()), 3, tmp_path / "exact")
    module = Module(tagger())
    run = fitted(module, 3, tmp_path / "other", **options)
    found = run.per_token(module, *loaders(3), probes=[1], similarity="dot")
    whole = exact.influence("dot").values[:, 1]
    np.testing.assert_allclose(found.sum("token").values, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(("made", "instead"), [("fisher", "none"), ("adam-fisher", "adam")])
def test_whitened_scores_are_refused(tmp_path: Path, made: Any, instead: Any) -> None:
    module = Adam(tagger())
    run = fitted(module, 3, tmp_path, projection_dim=512, preconditioner=made, **LATER)
    with pytest.raises(TracInError, match=rf"Per-token scores are not whitened; take `preconditioner='{instead}'`\."):
        run.per_token(module, *loaders(3), probes=[1])
    found = run.per_token(module, *loaders(3), probes=[1], train=[0], preconditioner=instead)
    assert found.sizes["token"] > 1


class Pieces:
    """A tokenizer of 60 pieces, some of which are hostile."""

    def __len__(self) -> int:
        return 60

    def convert_ids_to_tokens(self, number: int) -> str:
        return "▁<b>&" if number % 2 else f"_{number}"

    def convert_tokens_to_string(self, pieces: list[str]) -> str:
        return "".join(pieces)


@pytest.mark.results
@pytest.mark.parametrize("classes", [3, None], ids=["token classification", "causal"])
def test_the_report_shows_the_tokens_of_the_strongest_pairs(classes: int | None, tmp_path: Path) -> None:
    module = Module(writer() if classes is None else tagger())
    module.tokenizer = Pieces()
    fitted(module, classes, tmp_path, per_token=True, similarity="relatif")
    top, tokens = (pd.read_csv(tmp_path / "results" / f"{name}.csv") for name in ("top", "tokens"))
    sums = tokens.groupby(["probe", "train"])["score"].sum()
    assert set(sums.index) == set(zip(top["probe"], top["train"], strict=True))
    for line in top.itertuples():
        assert sums[line.probe, line.train] == pytest.approx(line.score, rel=1e-4, abs=1e-6)
    ids = [row["input_ids"] for row in loaders(classes)[1].dataset.rows]
    for line in tokens.itertuples():
        piece = Pieces().convert_ids_to_tokens(int(ids[line.probe][line.position]))
        assert line.text == piece.replace("▁", " ")
    places = [(probe, place) for probe, row in enumerate(loaders(classes)[1].dataset.rows) for place in range(len(row["labels"]))]
    assert {(line.probe, line.position) for line in tokens.itertuples()} == set(places)
    page = (tmp_path / "results" / "report.html").read_text("utf-8")
    assert page.count("<span style=") == len(tokens)
    assert "&lt;b&gt;&amp;</span>" in page
    assert "<b>" not in page
    scored = tokens.dropna().iloc[0]
    assert f'title="position {scored.position}: {scored.score:+.3g}"' in page
    assert "not in the loss" in page


def test_a_loss_without_tokens_is_refused_before_the_fit(tmp_path: Path) -> None:
    module = Module(tagger(), first_token)
    with pytest.raises(TracInError, match="Per-token scores need to see the loss of each token"):
        fitted(module, 3, tmp_path, per_token=True)
    assert module.global_step == 0


def test_tokens_need_snapshots_and_pairs() -> None:
    with pytest.raises(TracInError, match=r"^per_token=True splits the scores of pairs at every snapshot; leave"):
        TracInCallback("runs/none", per_token=True, language_means=True)


class Mixed(Tokens):
    """Tokens with an even id are Hindi, the others English, and the first is special."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {**row, "languages": [None, *(("hi", "en")[number % 2] for number in row["input_ids"][1:].tolist())]}


def test_a_probes_tokens_by_language(tmp_path: Path) -> None:
    module = Module(writer())
    run = fitted(module, None, tmp_path)
    train, _ = loaders(None)
    mixed = DataLoader(Mixed(5, 2, None), batch_size=4, collate_fn=collate)
    found = run.per_token(module, train, mixed, probes=[3, 0], token_language_column="languages", similarity="dot")
    rows = {probe: Mixed(5, 2, None)[probe] for probe in (3, 0)}
    wanted = [
        rows[probe]["languages"][place] or "" for probe, place in zip(found.probe.values, found.position.values, strict=True)
    ]
    assert set(wanted) >= {"hi", "en"}
    assert found.token_language.values.tolist() == wanted
    by_language = found.groupby("token_language").sum("token").transpose("train", "token_language")
    np.testing.assert_allclose(by_language.sum("token_language"), found.sum("token"))


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (None, r"The probes have no column 'languages' with the languages of their tokens \(columns: .*input_ids"),
        (7, r"The column 'languages' of probe 3 is 7; it should be a list with a language for each of its token ids\."),
        (["hi"], r"Probe 3 has 1 languages in 'languages', but a token at position \d \(from 0\): give one for each of its"),
    ],
)
def test_languages_of_tokens_that_do_not_fit(languages: Any, message: str, tmp_path: Path) -> None:
    module = Module(writer())
    run = fitted(module, None, tmp_path)
    train, probes = loaders(None)
    if languages is not None:
        for row in probes.dataset.rows:
            row["languages"] = languages
    with pytest.raises(TracInError, match=message):
        run.per_token(module, train, probes, probes=[3], token_language_column="languages")
