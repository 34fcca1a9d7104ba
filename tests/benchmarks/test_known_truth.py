"""The known truth in small: clones of generated documents, fits of a tenth of a second, and the package's own callbacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.known_truth import judge
from benchmarks.known_truth.documents import Document
from benchmarks.known_truth.first_page import first_page
from benchmarks.known_truth.measure import Found, measured
from benchmarks.known_truth.model_page import write_model
from benchmarks.known_truth.networks import Encoded
from benchmarks.known_truth.page import HEADLINE, noisy_value, related
from benchmarks.known_truth.permuted_encoder import rows_of
from benchmarks.known_truth.plan import SMALL
from benchmarks.known_truth.product import watched
from benchmarks.known_truth.truth import Truth, batches_of, coalitions, probe_losses
from benchmarks.known_truth.worlds import Pool, worlds
from lightning_tracin import TracInError
from lightning_tracin.studies.datasets.clones import Clone, words
from lightning_tracin.studies.models.shipped_encoder import shipped_tokenizer, shipped_weights


def generated(count: int, labels: int = 3, seed: int = 0) -> list[Document]:
    """Documents of eight words, about half of which go with the label.

    Example:
        >>> [document.label for document in generated(4, labels=2)]
        ['label 0', 'label 1', 'label 0', 'label 1']
    """
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = number % labels
        topic = (f"topic{label}x{word}" for word in generator.integers(25, size=8))
        other = (f"word{word}" for word in generator.integers(60, size=8))
        choice = generator.random(8) < 0.5
        found.append(Document(str(number), " ".join(np.where(choice, [*topic], [*other])), f"label {label}"))
    return found


DOCUMENTS = generated(420)
#: The scores of one fit of each world; the truth of two seeds.
PLAN = replace(SMALL, parts=(0.0, 1.0), noise=(0.4,), seeds=2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Found]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("known_truth")
    return {arm: measured(arm, "mlp", DOCUMENTS, PLAN, folder) for arm in ("different", "noise")}


def values(world: Found, score: str, measure: str, column: str = "value") -> np.ndarray:
    return judge.grid(world.table(score, measure), column)


@pytest.mark.slow
def test_where_no_word_is_shared_nothing_claims_reliance(found: dict[str, list[Found]]) -> None:
    """Need of the own language is 0.83 nats or more, of others 0.02 or less. The intervals of shares end 0.08 below their null or
    lower, those of masses 0.06; no contrast is above 0. The signed mean itself does claim something (0.3 of the own language):
    what the head that all share is worth to the first order."""
    world = found["different"][0]
    assert np.diagonal(world.need).min() > 20 * np.abs(judge.others(world.need)).max()
    for score in ("cosine", "dot product x learning rate", HEADLINE[0], "Fisher-whitened dot product"):
        for measure in ("share", "mass"):
            table = world.table(score, measure)
            assert judge.part(judge.claimed(table, measure)) == 0
        assert judge.part(judge.contrast_claimed(world.table(score, "mean"))) == 0


@pytest.mark.slow
def test_what_others_are_worth_rises_with_the_shared_words(found: dict[str, list[Found]]) -> None:
    """In parts of the own language from 0.30 (headline), 0.28 (share) and 0.25 (contributions) to 1."""
    nothing, everything = found["different"]
    for row in (HEADLINE, ("cosine", "share"), ("contributions", "nats")):
        assert judge.other_over_own(values(nothing, *row)) < 0.6
        assert judge.other_over_own(values(everything, *row)) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_wrong_labels_do_harm_and_the_signed_values_say_so(found: dict[str, list[Found]]) -> None:
    """The need of the noisy language is -0.15 (standard error 0.007), in parts of a clean language -2.6; the headline says -0.94,
    the plain product -0.86, contributions -0.42, and they agree with need at 0.95 or more. The share says 0.56."""
    (world,) = found["noise"]
    assert noisy_value(world, world.need) < -1
    for row in (("dot product x learning rate", "mean"), HEADLINE, ("contributions", "nats")):
        assert noisy_value(world, values(world, *row)) < 0
        assert judge.agreement(values(world, *row), world.need).plain > 0.9
    assert noisy_value(world, values(world, "cosine", "share")) > 0  # a share cannot


@pytest.mark.slow
def test_models_and_arms_are_added_to_the_pages_without_the_others(found: dict[str, list[Found]], tmp_path: Path) -> None:
    first, source = tmp_path / "known.md", "generated: 420 documents"
    folder = tmp_path / "known"
    write_model("mlp", {"noise": found["noise"]}, {}, PLAN, source, first)
    of_noise = (folder / "mlp.md").read_text()
    assert "## different" not in of_noise
    write_model("mlp", {"different": found["different"]}, {}, PLAN, source, first)
    text, world = (folder / "mlp.md").read_text(), found["noise"][0]
    assert f"**need** | {noisy_value(world, world.need):.2f} |" in text
    assert "highest learning rate 0.005" in text
    assert of_noise[of_noise.index("## noise") :] == text[text.index("## noise") :]
    assert text.index("## different") < text.index("## noise")
    lines = pd.read_csv(folder / "mlp" / "noise.csv")
    mine = lines[(lines["score"] == HEADLINE[0]) & (lines["measure"] == "mean")]
    assert mine["pearson"].tolist() == pytest.approx([judge.agreement(values(world, *HEADLINE), world.need).plain])
    write_model("encoder", {"noise": found["noise"]}, {}, PLAN, source, first)
    page = first_page(first)
    by_model = [
        [line for line in (folder / f"{model}.md").read_text().splitlines() if line.startswith(f"- {model}")]
        for model in ("mlp", "encoder")
    ]
    assert [len(said) > 0 for said in by_model] == [True, True]
    assert [line for line in page.splitlines() if line.startswith(("- mlp", "- encoder"))] == [*by_model[0], *by_model[1]]
    assert "[known-truth/encoder.md](known-truth/encoder.md)" in page
    assert "xlmr.md" not in page
    with pytest.raises(TracInError, match="other settings"):
        write_model("mlp", {}, {}, replace(PLAN, seeds=3), source, first)


@pytest.mark.slow
def test_the_plain_loop_is_the_fit_that_the_callbacks_watch(tmp_path: Path) -> None:
    (world, _) = worlds("different", DOCUMENTS, PLAN)
    data = Encoded(world, PLAN)
    mine = probe_losses(data, "mlp", np.ones(len(data.train), dtype=np.bool_), 0, PLAN)
    np.testing.assert_array_equal(mine, watched(world, "mlp", 0, PLAN, tmp_path, ["cosine"]).losses)


def test_the_samples_of_a_language_are_left_out_of_the_same_batches() -> None:
    members = np.arange(90) % 3 != 0
    whole, some = (batches_of(90, chosen, 5, PLAN) for chosen in (np.ones(90, dtype=np.bool_), members))
    assert list(some) == [[index for index in batch if members[index]] for batch in whole]


def test_words_of_clones_have_rows_of_other_pieces() -> None:
    table = shipped_weights()["embeddings.weight"]
    clones = [Clone(number).text("dog") for number in (1, 2)]
    start, dog, unlike, unseen, *own = rows_of([None, "dog", "unlikeliest", "\u200b", *clones], table)
    torch.testing.assert_close(unseen, start)  # a word without pieces, as real texts have it
    ids = shipped_tokenizer()("unlikeliest", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    torch.testing.assert_close(unlike, table[ids].mean(0))
    torch.testing.assert_close(start, table[1])
    for row in own:
        assert (table == row).all(1).any()
        assert not torch.equal(row, dog)
    assert not torch.equal(*own)


def test_coalitions_and_shapley_values_of_a_game() -> None:
    """Two languages are worth 1 nat, alone or together; the third is worth 2 by itself."""
    losses = {
        one: np.full((2, 3), 5.0 - (1.0 if one & {"A", "B"} else 0.0) - (2.0 if "C" in one else 0.0)) for one in coalitions("ABC")
    }
    truth = Truth("ABC", losses)
    np.testing.assert_allclose(truth.need()[0], [0, 0, 2])
    np.testing.assert_allclose(truth.shapley()[1], [0.5, 0.5, 2])
    np.testing.assert_allclose(truth.pair("A", "B"), 1)


def test_languages_share_what_their_world_says() -> None:
    for world, part in zip(
        worlds("parallel", DOCUMENTS, replace(PLAN, parallel_parts=(0.0, 0.5, 1.0))), (0, 0.5, 1), strict=True
    ):
        known = {
            name: {
                word
                for language, text in zip(world.train.language, world.train.text, strict=True)
                if language == name
                for word in words(text)
            }
            for name in world.languages
        }
        assert len(known["A"] & known["D"]) / len(known["A"]) == pytest.approx(part, abs=0.12)
        assert set(world.probes.item).isdisjoint(world.train.item)
        assert len(set(world.train.item)) == PLAN.train
    (family,) = worlds("families", DOCUMENTS, PLAN)
    texts = (
        pd.Series(family.probes.text)
        .groupby(list(family.probes.language))
        .apply(lambda some: {word for text in some for word in words(text)})
    )
    shared = np.array([[len(texts[one] & texts[other]) for other in texts.index] for one in texts.index])
    np.testing.assert_array_equal(shared > 0, related(family.languages) | np.eye(6, dtype=bool))


def test_wrong_labels_are_in_one_language() -> None:
    clean, noisy = (next(iter(worlds("noise", DOCUMENTS, replace(PLAN, noise=(part,))))) for part in (0.0, 0.4))
    wrong = np.array(clean.train.label) != np.array(noisy.train.label)
    assert wrong.sum() == round(0.4 * PLAN.train)
    assert set(np.array(noisy.train.language)[wrong]) == {"D"}
    assert noisy.probes.label == clean.probes.label


def test_a_world_without_enough_documents() -> None:
    with pytest.raises(TracInError, match="Only 3 of 4 documents are left"):
        Pool(DOCUMENTS[:3], seed=0).take(4)


def test_claims_are_intervals_above_nothing() -> None:
    cells = [("A", "A"), ("A", "B"), ("B", "A"), ("B", "B")]
    table = pd.DataFrame(cells, columns=["probe_language", "train_language"])
    table = table.assign(value=0.5, low=[0.4, 0.1, -0.1, 0.4], null=[0.3, 0.2, -0.2, 0.3])
    assert judge.part(judge.claimed(table, "share")) == 0.5  # B for A is below its null, A for B above
    assert judge.part(judge.claimed(table, "mean")) == 0.5  # the other way round
    np.testing.assert_array_equal(judge.claimed(table, "share"), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(judge.claimed(table, "mean"), [[1, 1], [0, 1]])


def test_intervals_of_the_right_width_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(400, 30))
    assert judge.coverage(drawn, drawn - 1.96, drawn + 1.96) == pytest.approx(0.95, abs=0.01)
    assert judge.coverage(drawn, drawn - 0.5, drawn + 0.5) == pytest.approx(0.38, abs=0.03)


def test_reliability_is_the_correlation_of_two_such_truths() -> None:
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(12, 12))
    one, other = (signal + generator.normal(size=(8, 12, 12)) * 2 for _ in range(2))
    want = judge.correlation(judge.others(one.mean(0)), judge.others(other.mean(0)))
    assert judge.reliability(one) == pytest.approx(want, abs=0.1)
