"""Per-sample gradients of a whole batch from one forward and one activations-only backward.

All parameters are frozen, so the backward pass computes gradients of activations only. Hooks keep each layer's input. When the
gradient of the layer's output arrives, the layer's rule turns both into per-sample gradients, which go to the consumer at once
and are not kept. A parameter with several uses in one forward goes to the consumer as one sum, after the last of them.

A parameter without a rule is tried as a `SharedTensor` first. If the model does more with it than broadcast it, the module that
uses it is run again (`replay`); if that module's output has no line for each sample, the enclosing module is run again.

Under reentrant checkpointing (`torch.utils.checkpoint`) the forward runs without gradients and again during the backward; then
the second run counts. Otherwise a second run only prepares its outputs in the same way as the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.coverage import Coverage, Layer
from lightning_tracin.gradients.fallbacks import move_outwards
from lightning_tracin.gradients.forms import Dense, Form, Outer, merged
from lightning_tracin.gradients.freezing import frozen, uncompiled
from lightning_tracin.gradients.layouts import Layout, NotPerSampleError, layer_layout, lines_of, output_layout
from lightning_tracin.gradients.replay import Call, replayed_gradients
from lightning_tracin.gradients.rules.embedding import looked_up
from lightning_tracin.gradients.rules.linear import live_positions
from lightning_tracin.gradients.shared import SharedTensor, with_lines
from lightning_tracin.gradients.stand_ins import StandIn, insert, remove, stand_in_for

#: Receives a parameter's name and its per-sample gradients, once per batch and parameter.
Consumer = Callable[[str, tuple[Form, ...]], None]


class Capture:
    """Per-sample gradients of one model, batch by batch.

    A context manager: inside, the model's parameters are frozen and hooks are in place; on exit both are restored. Inside, `run`
    does one forward and backward and passes the gradients to a consumer.

    Args:
        model: the model.
        coverage: the scored parameters.

    Attributes:
        coarsest: the least precise data type of all gradients so far.

    Example:
        >>> from lightning_tracin.gradients.coverage import plan_coverage
        >>> from lightning_tracin.gradients.forms import to_dense
        >>> model, inputs, gradients = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), {}
        >>> with Capture(model, plan_coverage(model, frozenset({"weight"}))) as capture:
        ...     loss = capture.run(lambda: model(inputs).sum(), samples=2, consumer=gradients.__setitem__)
        >>> to_dense(*gradients["weight"]).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """

    def __init__(self, model: nn.Module, coverage: Coverage) -> None:
        self._model = model
        self._coverage = coverage
        self._decisions = coverage.decisions
        self._modules = dict(model.named_modules())
        self._stack = ExitStack()
        self._hooks = ExitStack()
        self._samples = 0
        self._consumer: Consumer | None = None
        self._in_backward = False
        self._suspended = False
        self._due: Counter[str] = Counter()  # parameter -> number of gradients still to arrive
        self._awaited: Counter[str] = Counter()  # module -> its calls without gradients, which checkpointing may repeat
        self._called: set[str] = set()
        self._arrived: dict[str, list[Form]] = {}
        self._stand_ins: list[StandIn] = []
        self.coarsest = torch.float64

    def __enter__(self) -> Capture:
        with ExitStack() as stack:
            stack.enter_context(frozen(self._model))
            stack.enter_context(uncompiled(self._model))
            stack.callback(self._hooks.close)
            self._place_hooks()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _place_hooks(self) -> None:
        """Place a hook on every layer with a rule, and on every module that is run again."""
        self._hooks.close()
        replayed = self._decisions.replayed
        for layer in self._coverage.layers:
            if self._coverage.uses_rule(layer):
                self._hook(layer.module, partial(self._on_layer, layer))
        for target in sorted(set(replayed.values())):
            layers = [layer for layer in self._coverage.layers if replayed.get(layer.name) == target]
            self._hook(self._modules[target], partial(self._on_replayed, target, layers))

    def _hook(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._hooks.callback(module.register_forward_hook(function, with_kwargs=True).remove)

    def run(self, loss: Callable[[], Tensor], samples: int, consumer: Consumer) -> Tensor:
        """Do one forward and backward pass.

        Args:
            loss: does the forward pass and returns the **sum** of the samples' losses, a scalar. It is called again if a
                parameter turns out to need another way.
            samples: number of samples in the batch.
            consumer: called once for each parameter that the loss depends on; all other gradients are zero.

        Returns:
            The loss, detached.

        Raises:
            TracInError: the loss depends on no scored parameter, or a layer's samples cannot be told apart.
        """
        self._samples, self._consumer = samples, consumer
        moved: set[str] = set()
        try:
            while True:
                self._forget()
                self._stand_ins = self._shared_parameters()
                insert(self._stand_ins)
                try:
                    value = self._forward(loss, moved)
                except NotPerSampleError as error:
                    moved |= self._try_next_way(error)
                    continue
                if torch.isfinite(value.detach()):
                    self._backward(value)
                return value.detach()
        finally:
            self._consumer = None
            self._forget()

    def _forget(self) -> None:
        self._in_backward = False
        self._due.clear()
        self._awaited.clear()
        self._called.clear()
        self._arrived.clear()
        remove(self._stand_ins)
        self._stand_ins = []

    def _forward(self, loss: Callable[[], Tensor], moved: set[str]) -> Tensor:
        with torch.enable_grad():
            value = loss()
        if isinstance(value, SharedTensor):
            raise NotPerSampleError([value.layer], "the loss does not depend on the samples")
        for layer in moved:  # the layer is used, so the enclosing module that is run again for it must have been called
            if self._decisions.replayed[layer] not in self._called:
                raise NotPerSampleError([layer], "the module around it is not called")
        return value

    def _backward(self, value: Tensor) -> None:
        if not value.requires_grad:
            raise TracInError(
                "The loss does not depend on any scored parameter; check `parameters=[...]`, and that the loss is not "
                "computed under `torch.no_grad()` or by another module."
            )
        self._in_backward = True
        value.backward()  # type: ignore[no-untyped-call]
        for stand_in in self._stand_ins:
            gradient, stand_in.lines.grad = stand_in.lines.grad, None
            if gradient is not None:
                self._arrived.setdefault(stand_in.name, []).append(Dense(gradient.reshape(self._samples, -1)))
        for name in list(self._arrived):  # no gradient will arrive for uses that the loss does not reach
            self._deliver(name)

    def _shared_parameters(self) -> list[StandIn]:
        """A stand-in for each parameter without a rule."""
        stand_ins = []
        for layer in self._coverage.layers:
            if self._coverage.uses_rule(layer) or layer.name in self._decisions.replayed:
                continue
            for own_name, name in layer.names.items():
                used = partial(self._on_use, layer, name)
                stand_ins.append(stand_in_for(layer, own_name, self._samples, self._decisions, used))
                self._due[name] += 1  # complete only when the backward has ended
        return stand_ins

    def _try_next_way(self, error: NotPerSampleError) -> set[str]:
        for layer in self._coverage.layers:
            if layer.name in error.layers and not move_outwards(self._coverage, self._modules, layer):
                raise TracInError(
                    f"The samples' gradients of {', '.join(layer.names.values())} ({type(layer.module).__name__}) cannot be told "
                    f"apart: {error}, and no module around it returns one line for each sample; leave these out with "
                    "`parameters=[...]`."
                ) from error
        self._place_hooks()
        return set(error.layers)

    # -- layers with a rule

    def _on_layer(
        self, layer: Layer, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        counts = self._counts(layer.name, layer.names.values())
        if counts is None:
            return None
        inputs = args[0] if args else next(iter(kwargs.values()))
        shared = isinstance(output, SharedTensor)
        layout = Layout.SHARED if shared else layer_layout(layer.name, inputs, output, self._samples, self._decisions)
        lines, output = with_lines(output, layout, self._samples, layer.name, self._decisions)
        if not counts:
            return output
        self._due.update(layer.names.values())
        self._await_gradient(lines, layout, inputs, partial(self._on_gradient, layer), layer)
        return output

    def _await_gradient(
        self, lines: Tensor, layout: Layout, inputs: Tensor, function: Callable[[Tensor, Tensor], None], layer: Layer
    ) -> None:
        """When the gradient of `lines` arrives, call `function` with the input and the gradient, both [samples, ...]."""
        if isinstance(inputs, SharedTensor):
            inputs, layout = inputs.lines, Layout.LINES
        inputs = inputs.detach()  # shares the version counter with the original
        version, dtype = inputs._version, next(iter(layer.module.parameters(recurse=False))).dtype

        def on_arrival(gradient: Tensor) -> None:
            if inputs._version != version:
                raise TracInError(
                    f"The input of a {type(layer.module).__name__} ({', '.join(layer.names.values())}) was changed in place "
                    "after the layer had used it, so its gradient cannot be computed; replace the in-place operation."
                )
            self._note(gradient.dtype)
            # Autocast may have cast the input, so repeat that cast.
            seen = inputs.to(gradient.dtype).to(dtype) if inputs.is_floating_point() else inputs
            gradient = gradient.detach().to(dtype)
            if layout is not Layout.SHARED:
                gradient = lines_of(gradient, layout, self._samples)
            function(lines_of(seen, layout, self._samples), gradient)

        lines.register_hook(on_arrival)  # type: ignore[no-untyped-call]

    def _counts(self, name: str, parameters: Collection[str]) -> bool | None:
        """Whether this call of a module supplies the gradients of these parameters; None means ignore the call altogether."""
        if self._consumer is None or self._suspended:
            return None
        if not torch.is_grad_enabled():
            self._awaited[name] += 1
            self._due.update(parameters)
            return None
        if not self._in_backward:
            return True
        if not self._awaited[name]:
            return False
        self._awaited[name] -= 1
        self._due.subtract(parameters)
        return True

    def _on_gradient(self, layer: Layer, inputs: Tensor, gradient: Tensor) -> None:
        assert layer.rule is not None
        forms = layer.rule(layer.module, inputs, gradient, frozenset(layer.names))
        for own_name, name in layer.names.items():
            self._arrive(name, forms[own_name])

    # -- parameters without a rule that are used like a Linear's or an Embedding's weight

    def _on_use(self, layer: Layer, name: str, operation: str, inputs: Tensor, output: Tensor, padding_idx: int | None) -> Tensor:
        counts = self._counts(f"{name} in {operation}", [])
        if counts is None:
            return output
        if isinstance(inputs, SharedTensor):  # then the output has lines already
            lines = output if output.requires_grad else output.detach().requires_grad_().clone()
            layout, output = Layout.LINES, SharedTensor.of(lines, layer.name, self._decisions)
        else:
            layout = layer_layout(layer.name, inputs, output, self._samples, self._decisions)
            lines, output = with_lines(output, layout, self._samples, layer.name, self._decisions)
        if counts:
            self._due[name] += 1
            table = self._coverage.elements[name] // output.shape[-1]

            def on_gradient(inputs: Tensor, gradient: Tensor) -> None:
                if operation == "embedding":
                    self._arrive(name, looked_up(inputs, gradient, padding_idx, table))
                else:
                    seen, heads = live_positions(inputs, gradient)
                    self._arrive(name, Outer(heads, seen))

            self._await_gradient(lines, layout, inputs, on_gradient, layer)
        return output

    # -- modules that are run again

    def _on_replayed(
        self, target: str, layers: Sequence[Layer], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        parameters = [name for layer in layers for name in layer.names.values()]
        counts = self._counts(target, parameters)
        if not self._suspended:
            self._called.add(target)
        if counts is None:
            return None
        leaves, structure = pytree.tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        names = [layer.name for layer in layers]
        if any(isinstance(leaves[i], SharedTensor) for i in places):
            raise NotPerSampleError(names, f"{target!r} returns what the whole batch shares")
        layouts = [output_layout(target, i, leaves[i], self._samples, self._decisions, names) for i in places]
        for i in places:  # new nodes, so that their gradients exclude what the module itself does with its outputs
            leaf = leaves[i]
            leaves[i] = leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_().clone()
        if counts and places:
            outputs = tuple(leaves[i] for i in places)
            call = Call.of(target, module, (args, kwargs), outputs, layouts)
            self._due.update(parameters)
            torch.autograd.graph.register_multi_grad_hook(outputs, partial(self._on_gradients, call, layers))
        return pytree.tree_unflatten(leaves, structure)

    def _on_gradients(self, call: Call, layers: Sequence[Layer], gradients: Sequence[Tensor | None]) -> None:
        prefix = f"{call.name}." if call.name else ""
        paths = {f"{layer.name}.{own}".lstrip(".").removeprefix(prefix): (layer, own) for layer in layers for own in layer.names}
        for dtype in {gradient.dtype for gradient in gradients if gradient is not None}:
            self._note(dtype)
        self._suspended = True
        remove(self._stand_ins)
        try:
            parameters = {path: layer.module.get_parameter(own) for path, (layer, own) in paths.items()}
            found = replayed_gradients(call, gradients, parameters, self._samples, self._decisions)
        finally:
            insert(self._stand_ins)
            self._suspended = False
        for path, gradient in found.items():
            layer, own = paths[path]
            self._arrive(layer.names[own], Dense(gradient))

    # -- all

    def _note(self, dtype: torch.dtype) -> None:
        self.coarsest = max(self.coarsest, dtype, key=lambda one: torch.finfo(one).eps)

    def _arrive(self, name: str, form: Form) -> None:
        self._arrived.setdefault(name, []).append(form)
        self._due[name] -= 1
        if self._due[name] == 0:
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        assert self._consumer is not None
        with torch.no_grad():
            self._consumer(name, merged(self._arrived.pop(name)))
