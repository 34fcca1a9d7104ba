"""In float64 rounding vanishes and a real difference stays; the model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from lightning_tracin import TracInError
from lightning_tracin.gradients import can_double, in_double, plan_coverage, verify_gradients


class Literal(nn.Module):
    """Tensors that are not parameters or buffers, steps that force float32, and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.weights = nn.Linear(4, 3), nn.BatchNorm1d(3), torch.tensor([1.0, 2.0, 3.0])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.layer(inputs).float().to(torch.float32))
        mixed = torch.zeros(len(inputs), 3, dtype=torch.float32)
        mixed += torch.einsum("bi,i->bi", hidden.softmax(-1, dtype=torch.float32), self.weights)
        mixed[:, 0] = mixed[:, 0].mul_(torch.tensor(0.5))
        return mixed


def test_everything_is_float64_inside_and_as_before_outside() -> None:
    model, inputs = Literal(), torch.randn(6, 4)
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    with in_double(model):
        found = model(inputs)
    want = Literal().double()
    want.weights = want.weights.double()
    assert found.dtype == torch.float64
    hidden = want.norm(want.layer(inputs.double()))
    expected = hidden.softmax(-1) * want.weights * torch.tensor([0.5, 1, 1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    after = model.state_dict(keep_vars=True)
    for name, (tensor, values) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, values)
        assert tensor.dtype == values.dtype
    assert torch.get_default_dtype() == torch.float32


def test_norms_and_rotary_embeddings_that_force_float32_are_float64() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1
    )
    model = LlamaForSequenceClassification(config).eval().double()
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    mask = (ids != 1).long()

    def apart() -> float:
        together = model(input_ids=ids, attention_mask=mask).logits
        return float((together[1] - model(input_ids=ids[1:, :3], attention_mask=mask[1:, :3]).logits[0]).abs().max())

    with in_double(model):
        assert apart() < 1e-14


def test_half_precision_cannot_be_looked_at() -> None:
    assert not can_double(nn.Linear(1, 1).half())


class Deep(nn.Module):
    """Layers that amplify differences: float32 loses digits by the dozen."""

    def __init__(self, layers: int = 30, gain: float = 2.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=gain / 8)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs))
        return inputs.square().mean(1)


def verified(model: nn.Module, extra: float = 0.0) -> float:
    """The largest deviation, with a term that depends on the batch."""
    inputs = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))

    def loss(batch: Tensor) -> Tensor:
        found = model(batch)
        return found.sum() + extra * (found.max() - found.mean()) * len(batch)

    names = frozenset(name for name, _ in model.named_parameters())
    alone = [lambda one=one: loss(one[None]) for one in inputs]
    return verify_gradients(model, plan_coverage(model, names), lambda: loss(inputs), alone)


def test_rounding_of_a_deep_model_is_no_error_and_a_term_that_depends_on_the_batch_is() -> None:
    assert 2e-5 < verified(Deep()) < 1e-3
    assert verified(Deep(layers=3)) < 2e-5
    with pytest.raises(TracInError, match="gradient of a batch is not the sum"):
        verified(Deep(layers=3), extra=1e-4)


def test_rounding_that_spoils_the_gradient_asks_for_float64() -> None:
    with pytest.raises(TracInError, match=r"rounding in float32 \(in float64 they agree\); use `dtype='float64'`"):
        verified(Deep(layers=40, gain=3.0))
