"""The fit does not notice ContributionCallback, bit for bit, and its parts are right however the model is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback, TracInCallback
from lightning_tracin.gradients.group_split import UNDIVIDED
from tests.support.fits import Classifier, loaders, trainer
from tests.support.step_fits import Plain, Tokens, Totals, require_sums, weights_of


class Small(pl.LightningModule):
    """Small enough to be compiled often. It does not log: Lightning's own `self.log` cannot be compiled with this torch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Dropping()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Dropping(Plain):
    """With dropout, and a parameter that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.dropout = Scaled(), nn.Dropout(0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.dropout(self.scaled(self.norm(self.table(tokens)))))).mean(1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, states: Tensor) -> Tensor:
        return states * self.scale


def _checkpointed(reentrant: bool) -> Callable[[], Classifier]:
    def make() -> Classifier:
        module = Classifier()
        module.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        return module

    return make


class LooseScale(nn.Module):
    """A parameter without a rule, in a module that holds a checkpointed one."""

    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant
        self.first, self.scale = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = self.first * states
        if not self.training:  # as models of transformers do
            return self.scale * self.inner(states)
        return self.scale * checkpoint(self.inner, states, use_reentrant=self.reentrant)


def _loose(reentrant: bool) -> Callable[[], Classifier]:
    def make() -> Classifier:
        module = Classifier()
        for layer in module.model.roberta.encoder.layer:
            layer.attention.output.dense = LooseScale(layer.attention.output.dense, reentrant)
        return module

    return make


def _watched() -> Small:
    """With hooks of a user, as `wandb.watch` has them."""
    module = Small()
    module.norms = []  # type: ignore[assignment]
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: module.norms.append(float(gradient.norm())))
    for part in module.modules():
        part.register_forward_hook(lambda *_: None)
        part.register_full_backward_hook(lambda part, *_: module.norms.append(-1.0) if part.training else None)
    return module


def _inner(backend: str) -> Callable[[], Small]:
    def make() -> Small:
        module = Small()
        module.model = torch.compile(module.model, backend=backend)
        return module

    return make


def _in_place(backend: str) -> Callable[[], Small]:
    def make() -> Small:
        module = Small()
        module.model.compile(backend=backend)
        return module

    return make


def _outer(backend: str) -> Callable[[], Any]:
    return lambda: torch.compile(Small(), backend=backend)


MODULES: dict[str, Callable[[], Any]] = {
    "plain": Classifier,
    "checkpointing": _checkpointed(reentrant=False),
    "reentrant checkpointing": _checkpointed(reentrant=True),
    "checkpointing inside a module without a rule": _loose(reentrant=False),
    "reentrant checkpointing inside a module without a rule": _loose(reentrant=True),
    "user's hooks": _watched,
    "compiled module, aot_eager": _outer("aot_eager"),
    "compiled model, aot_eager": _inner("aot_eager"),
    "model compiled in place, aot_eager": _in_place("aot_eager"),
}


def data(module: Any) -> Any:
    if isinstance(getattr(module, "_orig_mod", module), Classifier):
        return loaders()
    return DataLoader(Tokens(30, 1), batch_size=7, shuffle=True), DataLoader(Tokens(12, 2), batch_size=5)


def final_state(folder: Path, make: Callable[[], Any], callbacks: list[Any], **settings: Any) -> tuple[Any, ...]:
    torch.compiler.reset()
    pl.seed_everything(3)
    module = make()
    fit = trainer(folder, callbacks, **{"max_epochs": 2, **settings})
    fit.fit(module, *data(module))
    return module.state_dict(), fit.optimizers[0].state_dict(), torch.rand(4), getattr(module, "norms", None)


@pytest.mark.parametrize("name", MODULES)
def test_final_weights_optimizer_and_random_state_are_bit_identical(tmp_path: Path, name: str) -> None:
    spy, settings = Totals(), {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    plain = final_state(tmp_path, MODULES[name], [], **settings)
    account = ContributionCallback(tmp_path / "run", window=100)
    watched = final_state(tmp_path, MODULES[name], [account, spy], **settings)
    for one, value in plain[0].items():
        assert torch.equal(value, watched[0][one]), one
    for index, state in plain[1]["state"].items():
        for one, value in state.items():
            assert torch.equal(value, watched[1]["state"][index][one]), (index, one)
    assert torch.equal(plain[2], watched[2])
    assert plain[3] == watched[3]


#: Each way to run a model, and the same model run plainly.
PLAIN: dict[str, Callable[[], Any]] = {
    name: Small if "compiled" in name or "hooks" in name else Classifier for name in MODULES if "rule" not in name
}


def without_dropout(make: Callable[[], Any]) -> Any:
    torch.compiler.reset()
    pl.seed_everything(3)
    module = make()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in PLAIN if name != "plain"])
def test_parts_are_those_of_the_plain_module(tmp_path: Path, name: str) -> None:
    found = []
    for number, make in enumerate((PLAIN[name], MODULES[name])):
        spy, module = Totals(), without_dropout(make)
        before, account = (
            weights_of(getattr(module, "_orig_mod", module)),
            ContributionCallback(tmp_path / str(number), window=100),
        )
        trainer(tmp_path, [account, spy], max_epochs=2).fit(module, *data(module))
        for one in [one for one in before if one.endswith("key.bias")]:  # its gradient is nothing but rounding
            del before[one], spy.found[one]
        require_sums(spy, before, weights_of(getattr(module, "_orig_mod", module)), 1e-4)
        assert spy.account is not None
        assert spy.account.approximate is None
        assert not spy.account.remainders
        found.append({one.replace("_orig_mod.", ""): parts for one, parts in spy.found.items()})
    if "hooks" in name:  # nor is a module with backward hooks run again, so that its own parameter is undivided
        assert UNDIVIDED in found[1]["model.scaled.scale"]
        del found[0]["model.scaled.scale"]
    for one, parts in found[0].items():
        largest = max(float(part.norm()) for part in parts.values())
        assert found[1][one].keys() == parts.keys(), one
        for source, part in parts.items():
            assert float((found[1][one][source] - part).norm()) <= 1e-3 * largest, (one, source)


def test_reentrant_checkpointing_inside_a_module_without_a_rule_is_undivided(tmp_path: Path) -> None:
    spy, module = Totals(), without_dropout(_loose(reentrant=True))
    before, account = weights_of(module), ContributionCallback(tmp_path / "run", window=100)
    with pytest.warns(UserWarning, match=r"gradients of \d+ parameters \(such as \S+(first|scale), in 10 steps\) were not the"):
        trainer(tmp_path, [account, spy], max_epochs=2).fit(module, *data(module))
    for one in [one for one in before if one.endswith("key.bias")]:
        del before[one]
    require_sums(spy, before, weights_of(module), 1e-4)
    assert spy.account is not None
    assert spy.account.approximate is None


def test_both_callbacks_leave_no_trace_together(tmp_path: Path) -> None:
    plain = final_state(tmp_path, Classifier, [])
    callbacks = [TracInCallback(tmp_path / "run", top_k=5), ContributionCallback(tmp_path / "run", window=3, every_n_steps=2)]
    watched = final_state(tmp_path, Classifier, callbacks)
    assert all(torch.equal(value, watched[0][one]) for one, value in plain[0].items())
    assert torch.equal(plain[2], watched[2])
