"""Lines whose samples no shape tells: routed, sorted, time first, several rows for a sample. All exact, batch by batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.owners import marks
from tests.gradients.test_general import WIDTH, Body, built, loss_of, of_length
from tests.support.exactness import assert_exact
from tests.support.models import padded, ragged_samples


class Routed(Body):
    """Experts for tokens; the last one is for rare words alone."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)) for _ in range(3))

    def routes(self, x: Tensor) -> Tensor:
        score = x.detach().sum(-1)
        return (score > 0).long() + (score > 3.5).long()

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        routes = self.routes(x).masked_fill(~mask[..., 0], -1)
        out = x.clone()
        for number, expert in enumerate(self.experts):
            if bool((routes == number).any()):
                out[routes == number] = expert(x[routes == number])
        return out


class Chosen(Routed):
    """Each token has two experts: an expert gets all first choices, then all second choices."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        first = self.routes(flat) % 2
        out = torch.zeros_like(flat)
        for number in (0, 1):
            chosen = torch.stack([first == number, first != number], 1)  # [tokens, choice]
            choice, token = torch.where(chosen.T)
            out = out.index_add(0, token, self.experts[number](flat[token]) * (1 + choice)[:, None])
        return self.experts[2](out).view_as(x)


class Capacity(Routed):
    """An expert takes the three tokens of each sample that want it most."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        out = x.clone()
        for sample in range(len(x)):
            chosen = x[sample].detach().sum(-1).masked_fill(~mask[sample, :, 0], -1e9).topk(min(3, x.shape[1])).indices
            out[sample, chosen] = out[sample, chosen] + self.experts[0](x[sample, chosen])
        return out


class OfSamples(Routed):
    """An adapter for each of three languages, which sees whole samples."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x * mask).sum(1) / mask.sum(1)
        which = (mean.detach()[:, 0] * 10).long() % 3
        out = x.clone()
        for number in range(3):
            if bool((which == number).any()):
                out[which == number] = self.experts[number](x[which == number])
        return out


class Heads(OfSamples):
    """The same on one vector for each sample: heads for selected samples."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x * mask).sum(1) / mask.sum(1)
        which = (mean.detach()[:, 0] * 10).long() % 2
        out = torch.zeros_like(mean)
        for number in range(2):
            out = out.masked_scatter((which == number)[:, None], self.experts[number](mean[which == number]))
        return x + out[:, None]


class Sorted(Routed):
    """Sorts its samples, runs layers, and puts them back."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        order = x.detach()[:, 0, 0].argsort()
        return self.experts[0](x[order])[order.argsort()]


class TimeFirst(Routed):
    """Layers on [positions, samples, width]."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.experts[0](x.transpose(0, 1)).transpose(0, 1)


class Thrice(Routed):
    """Each sample three times, one after the other for the whole batch: anchor, positive, negative."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        anchor, positive, negative = self.experts[0](torch.cat([x, x.flip(2), 2 * x])).chunk(3)
        return anchor * positive - negative


KINDS = [Routed, Chosen, Capacity, OfSamples, Heads, Sorted, TimeFirst, Thrice]


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_owners_are_read_from_gradients(kind: type[nn.Module], batch_size: int) -> None:
    model, samples = built(kind), ragged_samples(19, seed=31)
    coverage = assert_exact(model, loss_of(model), padded, samples[:14], samples[14:], batch_size, verified=True)
    assert not coverage.decisions.one_by_one
    assert not coverage.decisions.replayed


@pytest.mark.parametrize("kind", KINDS)
def test_counts_that_fit_by_accident(kind: type[nn.Module]) -> None:
    """Batches in which the lines of an expert are as many as the samples, or a multiple of them."""
    model = built(kind)
    train = [*of_length(5, 3), *of_length(4, 4), *of_length(4, 2), *of_length(4, 6), *of_length(4, 1)]
    assert_exact(model, loss_of(model), padded, train, [*of_length(4, 2), *of_length(4, 3)], 4, verified=True)


@pytest.mark.parametrize("kind", [Routed, Chosen, Heads])
def test_sums_of_losses_alone_are_enough(kind: type[nn.Module]) -> None:
    """Without the samples' losses in a batch, what they would tell is computed from single samples."""
    model, samples = built(kind), ragged_samples(13, seed=31)
    each = loss_of(model)
    assert_exact(model, lambda batch: each(batch).sum(), padded, samples[:9], samples[9:], 4, verified=True)


class Late(Body):
    """Uses all its layers only for samples that begin with a certain word, which the batch that is verified has none of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH))
        self.convolution, self.recurrent = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GRU(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        self.is_late = ids[:, 0] == 59
        return super().forward(ids)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        if not bool(self.is_late.any()):
            return x
        late = torch.tanh(self.layer((x * mask).transpose(0, 1)).transpose(0, 1)) * self.scale
        late = self.convolution((late * mask).transpose(1, 2)).transpose(1, 2)
        late = late + self.recurrent((late * mask).transpose(0, 1))[0].transpose(0, 1)
        return torch.where(self.is_late[:, None, None], late, x)


def beginning(samples: list[dict[str, Any]], word: int) -> list[dict[str, Any]]:
    return [{**sample, "input_ids": [word, *sample["input_ids"][1:]]} for sample in samples]


def test_layers_that_no_verified_batch_has_reached() -> None:
    model = built(Late)
    train = [*beginning(of_length(5, 4), 7), *beginning(of_length(4, 4), 59), *beginning(of_length(4, 6), 59)]
    probes = [*beginning(of_length(2, 4), 59), *beginning(of_length(4, 5), 8)]
    assert_exact(model, loss_of(model), padded, train, probes, 4, verified=True)


def test_a_line_that_mixes_samples_is_not_given_to_one_of_them() -> None:
    class Mean(Routed):
        """A layer on the mean of the batch, whose effect on the loss cancels except for its gradient."""

        def middle(self, x: Tensor, mask: Tensor) -> Tensor:
            mixed = self.experts[0](x.mean((0, 1))[None])
            return x + (mixed - mixed.detach()) * 0.1

    model, samples = built(Mean), ragged_samples(9, seed=3)
    with pytest.raises(TracInError, match="not the sum of its samples' own gradients"):
        assert_exact(model, loss_of(model), padded, samples[:5], samples[5:], 4, verified=True)


def test_weights_of_samples_are_told_apart_for_large_batches() -> None:
    for samples in (2, 64, 1024):
        weights = marks(samples, torch.empty(0))
        assert float(weights.diff().min()) > 0.5 / samples
        assert float(weights.min()) >= 1
        assert float(weights.max()) < 2
