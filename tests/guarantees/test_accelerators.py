"""The stand-in for a CUDA device that tests run on (`tests.support.accelerators`) refuses and notes what CUDA would."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.accelerators import ACCELERATOR, Accelerated, Elsewhere

HERE, TWO = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda there: there + HERE,
        lambda there: there @ HERE,
        lambda there: torch.cat([there, HERE]),
        lambda there: torch.stack([there[0], TWO]),
        lambda there: HERE.clone().add_(there[0]),
        lambda there: there.index_add_(0, torch.tensor([0]), there[:1]),
        lambda there: HERE[torch.tensor([0], device=ACCELERATOR)],
        lambda there: there.new_zeros(3).scatter_(0, torch.tensor([1]), 1.0),
    ],
    ids=["add", "product", "cat", "stack", "write", "index_add", "index", "scatter"],
)
def test_tensors_of_two_devices_are_not_mixed(mixing: Callable[[Tensor], Tensor]) -> None:
    with Accelerated(), pytest.raises(RuntimeError, match="all tensors to be on the same device"):
        mixing(HERE.to(ACCELERATOR))


def test_a_number_of_the_cpu_takes_part() -> None:
    with Accelerated() as noted:
        there = HERE.to(ACCELERATOR)
        found = [there * TWO, there + 1, torch.where(there > TWO, there, TWO), there.clone().fill_(TWO)]
        assert all(one.device == ACCELERATOR for one in found)
        assert noted.waits == []
        assert [one.tolist() for one in found] == [[2.0, 4.0, 6.0], [2.0, 3.0, 4.0], [2.0, 2.0, 3.0], [2.0, 2.0, 2.0]]


def test_an_index_of_the_cpu_is_uploaded() -> None:
    with Accelerated() as noted:
        there = HERE.to(ACCELERATOR)
        assert there[torch.tensor([2, 0])].cpu().tolist() == [3.0, 1.0]
        assert [one.split(" at ")[0] for one in noted.uploads] == ["copy to the device", "index"]


@pytest.mark.parametrize(
    ("waiting", "operation"),
    [
        (lambda there: there[0].item(), "item"),
        (lambda there: bool((there > 0).all()), "item"),
        (lambda there: float(there.sum()), "item"),
        (lambda there: there.tolist(), "tolist"),
        (lambda there: there.cpu(), "copy to the CPU"),
        (lambda there: HERE.clone().copy_(there), "copy to the CPU"),
        (lambda there: there.nonzero(), "nonzero"),
        (lambda there: there[there > 1], "index by a mask"),
        (lambda there: there.unique(), "_unique2"),
        (lambda there: there.long().bincount(), "bincount"),
        (lambda there: there.repeat_interleave(there.long()), "repeat_interleave"),
        (lambda there: torch.equal(there, there), "equal"),
    ],
)
def test_what_waits_for_the_device_is_noted_once(waiting: Callable[[Tensor], object], operation: str) -> None:
    with Accelerated() as noted:
        waiting(HERE.to(ACCELERATOR))
        assert [one.operation for one in noted.waits] == [operation]
        assert noted.waits[0].line.startswith("test_accelerators.py:")


def test_what_does_not_wait_is_not_noted() -> None:
    with Accelerated() as noted:
        there = HERE.to(ACCELERATOR)
        torch.where(there > 1, there.sort().values, 0).cumsum(0).repeat_interleave(2).to(torch.float64).argmax()
        assert noted.waits == []


def test_tensors_are_made_there_with_their_numbers() -> None:
    with Accelerated():
        made = [torch.tensor([1, 2], device=ACCELERATOR), torch.arange(1, 3, device=ACCELERATOR)]
        made.append(made[0].new_tensor([1, 2]))
        made.append(made[0].new_ones(2).cumsum(0))
        assert {type(one) for one in made} == {Elsewhere}
        assert [one.tolist() for one in made] == [[1, 2]] * 4


def test_a_generator_of_the_cpu_does_not_draw_there() -> None:
    with Accelerated(), pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device=ACCELERATOR, generator=torch.Generator())


def test_numpy_takes_no_tensor_from_there() -> None:
    with Accelerated(), pytest.raises(TypeError, match=r"Use Tensor.cpu\(\) first"):
        HERE.to(ACCELERATOR).numpy()


def test_a_model_is_cast_there() -> None:
    layer = nn.Linear(3, 2)
    wanted = copy.deepcopy(layer).double()(HERE.double())
    with Accelerated():
        found = layer.to(ACCELERATOR).double()(HERE.double().to(ACCELERATOR)).detach().cpu()
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-15, atol=1e-15)


def test_a_model_trains_there_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    model, arrived = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)), []
    other = copy.deepcopy(model)
    tokens = torch.tensor([[1, 2], [3, 3]])
    with Accelerated():
        model.to(ACCELERATOR)
        twin = copy.deepcopy(model)
        assert all(isinstance(one, nn.Parameter) and one.device == ACCELERATOR for one in twin.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model[1].register_full_backward_hook(lambda *_: arrived.append("hook"))
        model(tokens.to(ACCELERATOR)).square().sum().backward()
        optimizer.step()
        model.cpu()
    plain = torch.optim.AdamW(other.parameters(), lr=0.1)
    other(tokens).square().sum().backward()
    plain.step()
    assert arrived == ["hook"]
    for one, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, wanted)
