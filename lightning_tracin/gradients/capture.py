"""Per-sample gradients of a whole batch from one forward and one activations-only backward.

All parameters are frozen, so the backward pass computes gradients of activations only. Hooks keep each layer's input and,
when the gradient of its output arrives, hand both to the layer's rule; what the rule returns is handed on at once and then
forgotten. A parameter with several uses in one forward is handed on when the last of them has arrived, as one sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.forms import Form, merged
from lightning_tracin.gradients.rules import RULED, Rule, describe_rules, find_rule

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Receives a parameter's name and its per-sample gradients, once per batch and parameter.
Consumer = Callable[[str, tuple[Form, ...]], None]


@dataclass(frozen=True)
class Layer:
    """A module whose own parameters are (partly) scored."""

    module: nn.Module
    rule: Rule
    names: Mapping[str, str]  # the module's own name of a parameter -> its name in the whole model


@dataclass(frozen=True)
class Coverage:
    """Which parameters are scored, and by which layers. Built by `plan_coverage`, which leaves none out."""

    layers: tuple[Layer, ...]
    elements: Mapping[str, int]  # parameter -> number of elements

    @property
    def total(self) -> int:
        """Number of scored elements."""
        return sum(self.elements.values())


def plan_coverage(model: nn.Module, names: frozenset[str]) -> Coverage:
    """Find the rule of every layer that owns one of the named parameters.

    Args:
        model: the model.
        names: names as in `model.named_parameters()`; a tied parameter has one name and is covered in all its layers.

    Raises:
        TracInError: a parameter belongs to a module without a rule; the message names it.
    """
    by_identity = {id(parameter): name for name, parameter in model.named_parameters() if name in names}
    missing = names - set(by_identity.values())
    if missing:
        raise TracInError(f"The model has no parameter {min(missing)!r} (and {len(missing) - 1} more that were asked for).")
    layers, uncovered = [], []
    for module_name, module in model.named_modules():
        own = {
            own_name: by_identity[id(parameter)]
            for own_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in by_identity
        }
        if not own:
            continue
        found = find_rule(module)
        _refuse_options_that_change_the_gradient(module_name, module)
        if found is None or not own.keys() <= RULED:
            uncovered += [f"{name} ({type(module).__name__})" for name in own.values()]
        else:
            layers.append(Layer(module, found, own))
    if uncovered:
        listed = ", ".join(uncovered[:5]) + (f" and {len(uncovered) - 5} more" if len(uncovered) > 5 else "")
        raise TracInError(
            f"No gradient rule covers these trainable parameters: {listed}. There are rules for {describe_rules()}; "
            "freeze these parameters, or leave them out by name with `parameters=[...]`."
        )
    return Coverage(tuple(layers), {name: p.numel() for name, p in model.named_parameters() if name in names})


def _refuse_options_that_change_the_gradient(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        for option in ("max_norm", "scale_grad_by_freq"):
            if getattr(module, option):
                raise TracInError(
                    f"The embedding {name!r} has {option}={getattr(module, option)!r}, which makes a sample's gradient "
                    "depend on its batch; build it without, or leave it out with `parameters=[...]`."
                )


class Capture:
    """Per-sample gradients of one model, batch by batch.

    Used as a context manager: inside it the model's parameters are frozen and hooks are in place; afterwards both are as
    they were. Inside, `run` does one forward and backward and hands the gradients to a consumer.
    """

    def __init__(self, model: nn.Module, coverage: Coverage) -> None:
        self._model = model
        self._coverage = coverage
        self._stack = ExitStack()
        self._samples = 0
        self._consumer: Consumer | None = None
        self._due: Counter[str] = Counter()
        self._arrived: dict[str, list[Form]] = {}

    def __enter__(self) -> Capture:
        with ExitStack() as stack:
            stack.enter_context(_frozen(self._model))
            for layer in self._coverage.layers:
                handle = layer.module.register_forward_hook(partial(self._on_forward, layer), with_kwargs=True)
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, loss: Callable[[], Tensor], samples: int, consumer: Consumer) -> Tensor:
        """One forward and backward.

        Args:
            loss: does the forward pass and returns the **sum** of the samples' losses, a scalar.
            samples: number of samples in the batch.
            consumer: called once for every parameter that the loss depends on; for the others the gradient is zero.

        Returns:
            The loss, detached.
        """
        self._samples, self._consumer = samples, consumer
        self._due.clear()
        self._arrived.clear()
        try:
            with torch.enable_grad():
                value = loss()
            if not torch.isfinite(value.detach()):
                return value.detach()
            if not value.requires_grad:
                raise TracInError(
                    "The loss does not depend on any scored parameter; check `parameters=[...]`, and that the loss is not "
                    "computed under `torch.no_grad()` or by another module."
                )
            value.backward()  # type: ignore[no-untyped-call]
            for name in list(self._arrived):  # uses that the loss does not reach have no gradient to wait for
                self._hand_on(name)
            return value.detach()
        finally:
            self._consumer = None
            self._due.clear()
            self._arrived.clear()

    def _on_forward(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if self._consumer is None or not torch.is_grad_enabled():
            return None
        inputs = args[0] if args else next(iter(kwargs.values()))
        output, inputs = self._one_line_per_sample(module, output, inputs)
        if not output.requires_grad:
            # The clone is a non-leaf, so the model may change it in place as it could before.
            output = output.detach().requires_grad_().clone()
        self._due.update(layer.names.values())
        inputs = inputs.detach()  # shares the version counter with the original
        output.register_hook(  # type: ignore[no-untyped-call]
            partial(self._on_gradient, layer, inputs, inputs._version)
        )
        return output

    def _one_line_per_sample(self, module: nn.Module, output: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Give what is shared by the batch (position ids of shape [1, t]) a line of its own for every sample."""
        if output.ndim > 1 and output.shape[0] == self._samples:
            return output, inputs
        if output.ndim > 1 and output.shape[0] == 1 and inputs.shape[0] == 1:
            lines = (self._samples, *[-1] * (output.ndim - 1))
            return output.expand(lines).clone(), inputs.expand(self._samples, *[-1] * (inputs.ndim - 1))
        raise TracInError(
            f"A {type(module).__name__} works on a tensor of shape {list(inputs.shape)} in a batch of {self._samples} samples: "
            "its first dimension is not the samples, so their gradients cannot be told apart; leave its parameters out "
            "with `parameters=[...]`."
        )

    def _on_gradient(self, layer: Layer, inputs: Tensor, version: int, gradient: Tensor) -> None:
        if inputs._version != version:
            raise TracInError(
                f"The input of a {type(layer.module).__name__} ({', '.join(layer.names.values())}) was changed in place after "
                "the layer had used it, so its gradient cannot be computed; replace the in-place operation."
            )
        wanted = frozenset(layer.names)
        if inputs.is_floating_point():
            inputs = inputs.to(gradient.dtype)
        forms = layer.rule(layer.module, inputs, gradient.detach(), wanted)
        for own_name, name in layer.names.items():
            self._arrived.setdefault(name, []).append(forms[own_name])
            self._due[name] -= 1
            if self._due[name] == 0:
                self._hand_on(name)

    def _hand_on(self, name: str) -> None:
        assert self._consumer is not None
        with torch.no_grad():
            self._consumer(name, merged(self._arrived.pop(name)))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
