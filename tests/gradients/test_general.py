"""Parameters that no rule knows: exact all the same, and told apart by the right dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Coverage, plan_coverage
from tests.support.exactness import assert_exact, verified_coverage
from tests.support.models import PAD, padded, ragged_samples

WIDTH = 6


class Body(nn.Module):
    """Words, something in the middle that a test is about, and a head; padding does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(60, WIDTH), nn.Linear(WIDTH, 3)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != PAD)[..., None]
        return self.head((self.middle(self.words(ids), mask) * mask).sum(1))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


class Scaled(Body):
    """Layer scale, broadcast over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = parameter(WIDTH), parameter(1, 1, WIDTH)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + torch.tanh(x) * (1 + self.scale.float()) + self.shift


class ClassToken(Body):
    """A token put before the others, and a table of positions that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = parameter(1, 1, WIDTH), parameter(1, 32, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        both = torch.cat([self.token.expand(len(x), -1, -1), x * mask], 1) + self.positions[:, : x.shape[1] + 1]
        both = torch.tanh(self.mix(both))
        return both[:, 1:] * both[:, :1]


class RepeatedToken(ClassToken):
    """The same by `repeat`."""

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        both = torch.cat([self.token.repeat(x.shape[0], 2, 1), x * mask], 1)
        return torch.tanh(self.mix(both))[:, 2:] * both[:, :1] + self.positions[:, : x.shape[1]]


class ListedPositions(Body):
    """Positions without a dimension for the batch, through layers of their own before they meet it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.norm, self.mix = nn.Embedding(32, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        positions = self.mix(self.norm(self.positions(torch.arange(x.shape[1]))))
        return torch.tanh(x + positions) * torch.sigmoid(positions)


class ChangedPositions(ListedPositions):
    """The same, changed in place before they meet the batch, where a view of them sees it, too; and a scale that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = parameter(WIDTH)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        positions = self.mix(self.norm(self.positions(torch.arange(x.shape[1]))))
        turned = positions.view(-1, 2, WIDTH // 2).transpose(0, 1)
        turned /= 2
        positions *= self.scale
        return torch.tanh(x + positions) * torch.sigmoid(turned.transpose(0, 1).reshape(-1, WIDTH))


class Behind(Body):
    """A layer's weight used without the layer being called, and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.own, self.bias = nn.Linear(WIDTH, WIDTH), parameter(WIDTH, WIDTH), parameter(WIDTH)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        x = torch.tanh(F.linear(x, self.layer.weight, self.layer.bias))
        return F.linear(x, self.own, self.bias) + x @ self.own


class Contained(Body):
    """Parameters in containers that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ParameterList([parameter(WIDTH), parameter(WIDTH, WIDTH)])
        self.named = nn.ParameterDict({"a": parameter(WIDTH)})

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("ntw,vw->ntv", x, self.listed[1])) * self.listed[0] + self.named["a"]


class Attention(Body):
    """Torch's own attention, which takes its layers' weights for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_bias.normal_()

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=~mask[..., 0], need_weights=False)[0]


class PositionsFirst(Attention):
    """The same with positions first, which only the whole model's output puts right."""

    def __init__(self) -> None:
        super().__init__()
        self.attention.batch_first = False

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.attention(x, x, x, key_padding_mask=~mask[..., 0], need_weights=False)[0].transpose(0, 1)


class Recurrent(Body):
    """A recurrent network, whose weights are parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.recurrent(x)[0]


class Experts(Body):
    """Experts that each see the positions sent to them, wherever these come from."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.block = ExpertBlock(self.router, self.experts)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.block(x.flatten(0, 1)).view_as(x)


class ExpertBlock(nn.Module):
    def __init__(self, router: nn.Module, experts: nn.ModuleList) -> None:
        super().__init__()
        self.gate, self.parts = router, experts

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        chosen = weights.argmax(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.parts):
            lines = (chosen == i).nonzero()[:, 0]
            out = out.index_add(0, lines, expert(x[lines]) * weights[lines, i, None])
        return out


class OnlyExperts(Experts):
    def __init__(self) -> None:
        super().__init__()
        del self.router, self.experts
        self.block = ExpertBlock(nn.Linear(WIDTH, 3), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)))


class Convolved(Body):
    """Layers that have no rule at all."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(2, WIDTH)
        self.blend = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        x = (x * mask).transpose(1, 2)
        x = self.up(x).transpose(1, 2)
        return self.blend(x, self.norm(x.flatten(0, 1)).view_as(x))


class CausalConvolution(Body):
    """Convolutions as functions: causal by channel, as Mamba has them, and in groups over positions and width, with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.causal, self.flat = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH), parameter(WIDTH // 2, 1, 3, 2)
        self.bias = parameter(WIDTH // 2)

    def middle(self, x: Tensor, mask: Tensor) -> Tensor:
        x = (x * mask).transpose(1, 2)
        x = F.conv1d(x, self.causal.weight.squeeze(1).unsqueeze(1), self.causal.bias, padding=2, groups=WIDTH)[..., : x.shape[2]]
        x = F.silu(x).transpose(1, 2) * mask
        wide = F.conv2d(x[:, None], self.flat, bias=self.bias, padding=(1, 0), stride=(1, 2))
        return x + wide.mean(3).transpose(1, 2).repeat(1, 1, 2)


MODELS = [
    Scaled,
    ClassToken,
    RepeatedToken,
    ListedPositions,
    ChangedPositions,
    Behind,
    Contained,
    Attention,
    PositionsFirst,
    Recurrent,
    OnlyExperts,
    Convolved,
    CausalConvolution,
]


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: F.cross_entropy(model(batch["input_ids"]), batch["labels"], reduction="none")


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_parameters_that_no_rule_knows(kind: type[nn.Module], batch_size: int) -> None:
    model = built(kind)
    samples = ragged_samples(15, seed=21)
    assert_exact(model, loss_of(model), padded, samples[:10], samples[10:], batch_size, verified=True)


def of_length(count: int, length: int) -> list[dict[str, Any]]:
    return ragged_samples(count, seed=length, shortest=length, longest=length)


@pytest.mark.parametrize(
    "kind", [ListedPositions, ChangedPositions, ClassToken, OnlyExperts, PositionsFirst, Behind, CausalConvolution]
)
@pytest.mark.parametrize("first", [3, 4, 8])
def test_batches_with_as_many_positions_as_samples(kind: type[nn.Module], first: int) -> None:
    """Shapes that fit two readings, on the batch that is looked at first and on later ones."""
    model = built(kind)
    train = [*of_length(first, first), *of_length(4, 4), *of_length(4, 8), *of_length(4, 7)]
    probes = [*of_length(4, 4), *of_length(4, 8)]
    loss = loss_of(model)
    coverage = plan_coverage(model, frozenset(name for name, _ in model.named_parameters()))
    verified_coverage(model, loss, padded, train[:first], list(coverage.elements), coverage)
    assert_exact(model, loss, padded, train[first:], probes, batch_size=4, coverage=coverage)


def test_verification_refuses_a_loss_that_mixes_samples() -> None:
    class Mixed(Scaled):
        def middle(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().middle(x, mask) + x[:1].sum()

    model = built(Mixed)
    samples = ragged_samples(5, seed=3)
    loss = loss_of(model)
    coverage = plan_coverage(model, frozenset(name for name, _ in model.named_parameters()))
    with pytest.raises(TracInError, match=r"not the sum of its samples' own gradients.*other samples of its batch"):
        verified_coverage(model, loss, padded, samples, list(coverage.elements), coverage)


class Mixed(nn.Module):
    """Uses a weight in a way that nothing follows, and returns no line for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = parameter(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nw,vw->nv", x, self.mix).square().sum()


def test_what_cannot_be_told_apart_in_a_batch_is_computed_from_single_samples() -> None:
    torch.manual_seed(0)
    model, samples = Mixed(), [torch.randn(WIDTH) for _ in range(7)]
    coverage = assert_exact(model, model, torch.stack, samples[:5], samples[5:], batch_size=3, verified=True)
    assert coverage.decisions.one_by_one == {"mix"}
    assert coverage.by_rule.keys() == {"one sample at a time"}


def decided(coverage: Coverage) -> dict[str, str]:
    return coverage.decisions.replayed


def test_cheap_ways_are_taken_where_they_exist() -> None:
    """Scales, tokens and positions need no module to be computed again."""
    for kind in (Scaled, ClassToken, ListedPositions, ChangedPositions, Behind, CausalConvolution):
        model = built(kind)
        samples = ragged_samples(8, seed=2)
        coverage = assert_exact(model, loss_of(model), padded, samples[:5], samples[5:], batch_size=5, verified=True)
        assert decided(coverage) == {}, kind
