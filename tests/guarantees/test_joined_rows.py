"""Samples packed without padding: the collate function joins them in one row, and each is still scored exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.attribution.losses import Probed, find_loss
from tests.support import fits
from tests.support.token_fits import Module, gradient
from tests.support.zoo import CAUSAL, unsettled


class Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """Token ids of different lengths."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(4, 9, (count,), generator=generator).tolist()
        self.rows = [{"input_ids": torch.randint(4, 60, (length,), generator=generator).tolist()} for length in lengths]
        self.language = [("de", "en")[index % 2] for index in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    collate = hf.DataCollatorWithFlattening()
    train, probes = Texts(11, seed=1), Texts(6, seed=2)
    return DataLoader(train, batch_size=3, collate_fn=collate), DataLoader(probes, batch_size=3, collate_fn=collate)


def module(use_cache: bool = False) -> Module:
    """With a cache, this version of transformers lets packed samples see each other."""
    torch.manual_seed(0)
    return Module(unsettled(hf.Qwen3ForCausalLM(hf.Qwen3Config(**CAUSAL, tie_word_embeddings=True, use_cache=use_cache))))


def alone(model: Module, ids: list[int]) -> Tensor:
    """The loss of one sample as such, not packed."""
    row = torch.tensor([ids])
    return model.model(input_ids=row, labels=row).loss


@pytest.mark.parametrize(
    "options", [{}, {"language_means": True}, {"projection_dim": 100_000}], ids=["exact", "means", "projected"]
)
def test_samples_in_one_row_are_scored_as_single_samples(options: dict[str, Any], tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path, top_k=3, dtype="float64", similarity="dot", preconditioner=None, **options)
    torch.manual_seed(0)
    fits.trainer(tmp_path, [callback], max_epochs=1).fit(module(), *loaders())
    run = TracInRun.open(tmp_path)
    assert run.record.loss == "training_step (mean, one sample at a time)"
    reference = module().double().eval()
    reference.load_state_dict(run.snapshots[0].state_dict(), strict=False)
    train, probes = (
        torch.stack([gradient(reference, alone(reference, row["input_ids"])) for row in loader.dataset]) for loader in loaders()
    )
    if "language_means" in options:
        probes = torch.stack([probes[0::2].mean(0), probes[1::2].mean(0)])  # de, en
    found, wanted = run.influence("dot").values, (train @ probes.T).numpy()
    scale = (train.norm(dim=1)[:, None] * probes.norm(dim=1)).numpy()
    assert (np.abs(found - wanted) / scale).max() <= (0.1 if "projection_dim" in options else 1e-6)


def test_samples_that_see_each_other_in_their_row_are_refused(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path, top_k=3, dtype="float64", preconditioner=None)
    with pytest.raises(TracInError, match="the loss changes when the same samples come in another order"):
        fits.trainer(tmp_path, [callback], max_epochs=1).fit(module(use_cache=True), *loaders())


def test_tokens_of_a_sample_in_a_row_add_up_to_its_score(tmp_path: Path) -> None:
    model = module()
    fits.trainer(tmp_path, [TracInCallback(tmp_path, top_k=3, dtype="float64", preconditioner=None)], max_epochs=1).fit(
        model, *loaders()
    )
    run = TracInRun.open(tmp_path)
    tokens = run.per_token(model, *loaders(), probes=[1, 2], similarity="dot")
    sums = tokens.groupby("probe").sum("token").transpose("train", "probe").values
    wanted = run.influence("dot").values[:, 1:3]
    np.testing.assert_allclose(sums, wanted, atol=1e-6 * np.abs(wanted).max())


def test_candidates_in_a_row_have_the_scores_of_train_samples(tmp_path: Path) -> None:
    model = module()
    fits.trainer(tmp_path, [TracInCallback(tmp_path, top_k=3, dtype="float64", preconditioner=None)], max_epochs=1).fit(
        model, *loaders()
    )
    run = TracInRun.open(tmp_path)
    scores = run.score(model, *loaders(), similarity="dot")
    wanted = run.influence("dot").values
    np.testing.assert_allclose(scores.values, wanted, atol=1e-6 * np.abs(wanted).max())


class Rows(torch.nn.Module):
    """A mean over the tokens of all samples in one row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = torch.nn.Embedding(30, 4), torch.nn.Linear(4, 30)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.head(self.table(batch[0].clamp(min=0))), batch[1])


def probed(*lengths: int, ignored: int | None = None) -> Probed:
    """A batch of samples in one row; all labels of one may be ignored."""
    generator = torch.Generator().manual_seed(sum(lengths))
    samples = [torch.randint(0, 30, (2, length), generator=generator) for length in lengths]
    if ignored is not None:
        samples[ignored][1] = -100
    return Probed(torch.cat(samples, 1), samples, "samples")


ONE_BY_ONE = "training_step (mean, one sample at a time)"


@pytest.mark.parametrize(
    ("batches", "known"),
    [
        ([probed(3, 7, 4), probed(3, 7, 4, ignored=1)], None),  # nothing in the loss of a sample: 0 / 0
        ([probed(4, 4, 4)], ONE_BY_ONE),  # here, a mean over samples is one over tokens
        ([probed(5)], ONE_BY_ONE),
    ],
)
def test_what_is_known_about_the_loss_holds_where_batches_do_not_tell(batches: list[Probed], known: str | None) -> None:
    assert find_loss(Rows().eval(), lambda: batches, known).name == ONE_BY_ONE
