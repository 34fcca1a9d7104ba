"""Each source's part of every update, against a plain loop: one backward pass a sample, and optimizers written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as FairseqAdafactor

from lightning_tracin.attribution.accounts import DECAY, Account
from lightning_tracin.gradients.group_split import GroupSplit, Ways
from lightning_tracin.gradients.group_vectors import TOTAL
from tests.support import plain_optimizers as plain

_LANGUAGES = [torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 2]), torch.tensor([2, 2, 2, 2]), torch.tensor([0, 0, 1, 2])]


class Small(nn.Module):
    """An embedding, a LayerNorm and two Linear layers, of which the first has a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(11, 4), nn.LayerNorm(4)
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.norm(self.table(tokens)))).mean(1))


def losses(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens), labels, reduction="none")


def batches(steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(11, (4, 5), generator=generator), torch.randint(3, (4,), generator=generator), _LANGUAGES[step % 4])
        for step in range(steps)
    ]


def split_gradients(model: nn.Module, tokens: Tensor, labels: Tensor, languages: Tensor) -> dict[str, dict[object, Tensor]]:
    """Of each parameter, what the samples of each language add to the gradient of the mean loss."""
    found: dict[str, dict[object, Tensor]] = {name: {} for name, _ in model.named_parameters()}
    for index, language in enumerate(languages.tolist()):
        loss = losses(model, tokens[index : index + 1], labels[index : index + 1])[0] / len(labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            found[name][language] = found[name].get(language, 0) + gradient
    return found


OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[], plain.PlainStep]]] = {
    "sgd": (partial(torch.optim.SGD, lr=0.1), partial(plain.sgd, 0.1)),
    "sgd, decay": (partial(torch.optim.SGD, lr=0.1, weight_decay=0.3), partial(plain.sgd, 0.1, weight_decay=0.3)),
    "sgd, maximize": (
        partial(torch.optim.SGD, lr=0.1, maximize=True, weight_decay=0.2, momentum=0.5),
        partial(plain.sgd, 0.1, momentum=0.5, weight_decay=0.2, maximize=True),
    ),
    "momentum": (partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(plain.sgd, 0.1, 0.9)),
    "momentum, dampened, decay": (
        partial(torch.optim.SGD, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.2),
        partial(plain.sgd, 0.1, 0.8, 0.3, weight_decay=0.2),
    ),
    "nesterov": (partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True), partial(plain.sgd, 0.1, 0.9, nesterov=True)),
    "nesterov, foreach": (
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
        partial(plain.sgd, 0.1, 0.9, nesterov=True),
    ),
    "adam": (partial(torch.optim.Adam, lr=0.01), partial(plain.adam, 0.01)),
    "adam, decay": (partial(torch.optim.Adam, lr=0.01, weight_decay=0.3), partial(plain.adam, 0.01, weight_decay=0.3)),
    "adam, amsgrad, maximize": (
        partial(torch.optim.Adam, lr=0.01, amsgrad=True, maximize=True),
        partial(plain.adam, 0.01, amsgrad=True, maximize=True),
    ),
    "adamw": (partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3), partial(plain.adam, 0.01, weight_decay=0.3, decoupled=True)),
    "adamw, foreach": (
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3, foreach=True),
        partial(plain.adam, 0.01, weight_decay=0.3, decoupled=True),
    ),
    "adamw, fused": (
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3, fused=True),
        partial(plain.adam, 0.01, weight_decay=0.3, decoupled=True),
    ),
    "adamax": (partial(torch.optim.Adamax, lr=0.01, weight_decay=0.1), partial(plain.adamax, 0.01, weight_decay=0.1)),
    "nadam": (partial(torch.optim.NAdam, lr=0.01, weight_decay=0.1), partial(plain.nadam, 0.01, weight_decay=0.1)),
    "radam": (partial(torch.optim.RAdam, lr=0.01, weight_decay=0.1), partial(plain.radam, 0.01, weight_decay=0.1)),
    "rmsprop": (partial(torch.optim.RMSprop, lr=0.01, weight_decay=0.1), partial(plain.rmsprop, 0.01, weight_decay=0.1)),
    "rmsprop, centered, momentum": (
        partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
        partial(plain.rmsprop, 0.01, centered=True, momentum=0.5),
    ),
    "adagrad": (partial(torch.optim.Adagrad, lr=0.1, lr_decay=0.1), partial(plain.adagrad, 0.1, 0.1)),
    "adadelta": (partial(torch.optim.Adadelta, lr=1.0), partial(plain.adadelta, 1.0)),
    "adafactor of transformers": (
        partial(FairseqAdafactor, lr=0.01, relative_step=False, scale_parameter=False, weight_decay=0.1),
        partial(plain.fairseq_adafactor, 0.01, None, weight_decay=0.1),
    ),
    "adafactor of transformers, first moment": (
        partial(FairseqAdafactor, lr=0.01, relative_step=False, scale_parameter=False, beta1=0.9),
        partial(plain.fairseq_adafactor, 0.01, 0.9),
    ),
}
if hasattr(torch.optim, "Adafactor"):  # since torch 2.5
    OPTIMIZERS["adafactor"] = (
        partial(torch.optim.Adafactor, lr=0.01, weight_decay=0.1),
        partial(plain.adafactor, 0.01, weight_decay=0.1),
    )


def source_of(key: object) -> int:
    return DECAY if key == "decay" else int(key)  # type: ignore[call-overload]


def changes(account: Account) -> dict[str, dict[int, Tensor]]:
    return {
        name: {source: vectors.dense(TOTAL).clone() for source, vectors in mine.items() if TOTAL in vectors}
        for name, mine in account.totals().items()
    }


def require_close(found: dict[int, Tensor], expected: dict[object, Tensor], what: str) -> None:
    largest = max(float(one.norm()) for one in expected.values())
    for key, one in expected.items():
        difference = float((found.get(source_of(key), torch.zeros_like(one)) - one).norm())
        assert difference <= 1e-7 * largest, f"{what}, {key}: {difference / largest:.1e}"
    assert {source for source, one in found.items() if bool(one.any())} <= {source_of(key) for key in expected}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_is_that_of_a_plain_loop(name: str) -> None:
    make, plainly = OPTIMIZERS[name]
    model = Small().double()
    optimizer = make(model.parameters())
    account = Account(model, GroupSplit(model, Ways()), [optimizer])
    oracles = {parameter: plainly() for parameter, _ in model.named_parameters()}
    for tokens, labels, languages in batches(8):
        gradients = split_gradients(model, tokens, labels, languages)
        before = {parameter: weights.detach().clone() for parameter, weights in model.named_parameters()}
        account.start_window()
        optimizer.zero_grad()
        account.split.begin(languages)
        losses(model, tokens, labels).mean().backward()
        optimizer.step()
        found = changes(account)
        for parameter, weights in model.named_parameters():
            expected = oracles[parameter](gradients[parameter], before[parameter])
            assert torch.allclose(sum(expected.values()), weights - before[parameter], atol=1e-12), "the oracle itself is wrong"
            require_close(found[parameter], expected, f"{name}, {parameter}")
    assert account.approximate is None
    assert not account.remainders
    account.close()


@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop, centered, momentum"]
)
def test_steps_with_a_rate_of_zero_still_move_the_moments(name: str) -> None:
    """Warm-up often begins with a rate of zero: nothing moves, but the moments do."""
    model = Small().double()
    optimizer = OPTIMIZERS[name][0](model.parameters())
    rate = optimizer.param_groups[0]["lr"]
    account = Account(model, GroupSplit(model, Ways()), [optimizer])
    for number, (tokens, labels, languages) in enumerate(batches(6)):
        optimizer.param_groups[0]["lr"] = 0.0 if number in (0, 3) else rate
        before = {parameter: weights.detach().clone() for parameter, weights in model.named_parameters()}
        account.start_window()
        optimizer.zero_grad()
        account.split.begin(languages)
        losses(model, tokens, labels).mean().backward()
        optimizer.step()
        for parameter, weights in model.named_parameters():
            found = sum(changes(account)[parameter].values(), torch.zeros(()))
            assert torch.allclose(found, weights - before[parameter], rtol=1e-9, atol=1e-13), f"step {number}, {parameter}"
    account.close()
