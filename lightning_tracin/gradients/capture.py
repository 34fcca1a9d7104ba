"""Per-sample gradients of a whole batch from one forward and one activations-only backward.

All parameters are frozen, so the backward pass computes gradients of activations only. Hooks keep each layer's input. When the
gradient of the layer's output arrives, the layer's rule turns both into per-sample gradients, which go to the consumer at once
and are not kept. A parameter with several uses in one forward goes to the consumer as one sum, after the last of them.

A parameter without a rule is tried as a `SharedTensor` first. If the model does more with it than broadcast it, the module that
uses it is run again (`replay`); if that module's output has no line for each sample, the enclosing module is run again.

Where a shape does not surely tell whose a line is, gradients tell (`owners`). Parameters that no way can separate are computed
from single samples (`one_by_one`).

Under reentrant checkpointing (`torch.utils.checkpoint`) the forward runs without gradients and again during the backward; then
the second run counts. Otherwise a second run only prepares its outputs in the same way as the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.arrivals import Arrivals, Consumer, UnresolvedError
from lightning_tracin.gradients.coverage import Coverage, Layer
from lightning_tracin.gradients.fallbacks import take_next_way
from lightning_tracin.gradients.forms import Dense, Outer, tensor_of
from lightning_tracin.gradients.freezing import frozen, uncompiled
from lightning_tracin.gradients.layouts import Layout, NotPerSampleError, layer_layout, lines_of, output_layout
from lightning_tracin.gradients.one_by_one import gradients_one_by_one
from lightning_tracin.gradients.owners import by_owner, lines
from lightning_tracin.gradients.replay import Call, NotRepeatableError, replayed_gradients
from lightning_tracin.gradients.rules.embedding import looked_up
from lightning_tracin.gradients.rules.linear import live_positions
from lightning_tracin.gradients.shared import SharedTensor, with_lines
from lightning_tracin.gradients.stand_ins import StandIn, insert, remove, stand_ins_for


class Capture:
    """Per-sample gradients of one model, batch by batch.

    A context manager: inside, the model's parameters are frozen and hooks are in place; on exit both are restored. Inside, `run`
    does one forward and backward and passes the gradients to a consumer.

    Args:
        model: the model.
        coverage: the scored parameters.

    Attributes:
        coverage: as given; its decisions grow batch by batch.
        seen: layers that the loss has reached so far.
        seconds_alone: time spent on single samples so far.
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
        self.coverage = coverage
        self._decisions = coverage.decisions
        self._modules = dict(model.named_modules())
        self._stack = ExitStack()
        self._hooks = ExitStack()
        self._batch: Arrivals | None = None
        self._is_suspended = False
        self._is_marking = False
        self._called: set[str] = set()
        self._stand_ins: list[StandIn] = []
        self.seen: set[str] = set()
        self.seconds_alone = 0.0
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
        for layer in self.coverage.batched:
            if self.coverage.uses_rule(layer):
                self._hook(layer.module, partial(self._on_layer, layer))
        for target in sorted(set(replayed.values())):
            layers = [layer for layer in self.coverage.batched if replayed.get(layer.name) == target]
            if layers:
                self._hook(self._modules[target], partial(self._on_replayed, target, layers))

    def _hook(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._hooks.callback(module.register_forward_hook(function, with_kwargs=True).remove)

    def run(
        self,
        loss: Callable[[], Tensor],
        samples: int,
        consumer: Consumer,
        own: Callable[[], Tensor | None] = lambda: None,
        alone: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Do one forward and backward pass.

        Args:
            loss: does the forward pass and returns the **sum** of the samples' losses, a scalar. It is called again if a
                parameter turns out to need another way.
            samples: number of samples in the batch.
            consumer: called once for each parameter that the loss depends on; all other gradients are zero.
            own: the samples' losses, [samples], of which `loss` has returned the sum, part of the same graph; None if unknown.
            alone: does the forward pass of one sample, by its position in the batch, and returns its loss. With it, nothing is
                taken on trust: what has not been verified is computed from single samples.

        Returns:
            The loss, detached and on the CPU.

        Raises:
            TracInError: the loss depends on no scored parameter.
            UnresolvedError: some layers' samples cannot be told apart, and there is no `alone`.
        """
        moved: set[str] = set()
        try:
            while self.coverage.batched or alone is None:
                self._begin(Arrivals(samples, consumer, self._decisions, is_strict=alone is not None))
                try:
                    value = self._forward(loss, moved)
                except NotPerSampleError as error:
                    take_next_way(self.coverage, self._modules, error.layers)
                    self._place_hooks()
                    moved.update(error.layers)
                    continue
                reached = value.detach().cpu()  # one wait for an accelerator, for both uses
                if torch.isfinite(reached):
                    self._backward(value, own)
                    self._finish(consumer, samples, alone)
                return reached
            return self._finish(consumer, samples, alone)
        finally:
            self._end()

    def _begin(self, batch: Arrivals) -> None:
        self._end()
        self._batch = batch
        self._called.clear()
        self._stand_ins = stand_ins_for(self.coverage, batch.samples, self._on_use)
        batch.due.update(one.name for one in self._stand_ins)  # complete only when the backward has ended
        insert(self._stand_ins)

    def _end(self) -> None:
        if self._batch is not None:
            self._batch.release()
        self._batch = None
        remove(self._stand_ins)
        self._stand_ins = []

    def _finish(self, consumer: Consumer, samples: int, alone: Callable[[int], Tensor] | None) -> Tensor:
        """Compute and deliver what does not come from the batch; the sum of the samples' losses."""
        unresolved = {} if self._batch is None else self._batch.unresolved
        names = sorted(self._decisions.one_by_one | unresolved.keys())
        if alone is None and unresolved:
            raise UnresolvedError(unresolved)
        if alone is None or not names:
            return torch.zeros(())
        self._end()
        start = time.perf_counter()
        value, found = gradients_one_by_one(self._model, names, alone, samples)
        self.seconds_alone += time.perf_counter() - start
        for name, form in found.items():
            self._note(tensor_of([form]).dtype)
            consumer(name, (form,))
        return value.cpu()

    def _forward(self, loss: Callable[[], Tensor], moved: set[str]) -> Tensor:
        with torch.enable_grad():
            value = loss()
        if isinstance(value, SharedTensor):
            raise NotPerSampleError([value.layer], "the loss does not depend on the samples")
        for layer in moved:  # the layer is used, so the enclosing module that is run again for it must have been called
            around = self._decisions.replayed.get(layer)
            if around is not None and around not in self._called:
                raise NotPerSampleError([layer], "the module around it is not called")
        return value

    def _backward(self, value: Tensor, own: Callable[[], Tensor | None]) -> None:
        if not value.requires_grad:
            if self._decisions.one_by_one:
                return
            raise TracInError(
                "The loss does not depend on any scored parameter; check `parameters=[...]`, and that the loss is not "
                "computed under `torch.no_grad()` or by another module."
            )
        batch = self._current
        batch.in_backward = True
        self._mark(batch, own)
        value.backward()  # type: ignore[no-untyped-call]
        for stand_in in self._stand_ins:
            gradient, stand_in.lines.grad = stand_in.lines.grad, None
            if gradient is not None and batch.is_trusted(stand_in.layer, [stand_in.name]):
                batch.add(stand_in.name, Dense(gradient.reshape(batch.samples, -1)))
        batch.deliver_rest()
        self.seen |= batch.seen

    @property
    def _current(self) -> Arrivals:
        assert self._batch is not None
        return self._batch

    def _mark(self, batch: Arrivals, own: Callable[[], Tensor | None]) -> None:
        """Find out whose the watched lines are."""
        self._is_marking = True
        try:
            if batch.owners.is_watching and (losses := own()) is not None:
                batch.owners.mark(losses)
        except RuntimeError:  # reentrant checkpointing does not support it
            return
        finally:
            self._is_marking = False

    # -- layers with a rule

    def _on_layer(
        self, layer: Layer, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        counts = self._counts(layer.name, layer.names.values())
        if counts is None:
            return None
        inputs = args[0] if args else next(iter(kwargs.values()))
        layout = self._layout(layer, inputs, output, layer.is_positionwise)
        lines, output = with_lines(output, layout, self._current.samples, layer.name, self._decisions)
        if not counts:
            return output
        self._current.due.update(layer.names.values())
        self._await_gradient(lines, layout, inputs, partial(self._on_gradient, layer), layer, layer.is_positionwise)
        return output

    def _layout(self, layer: Layer, inputs: Tensor, output: Tensor, is_positionwise: bool) -> Layout:
        if isinstance(output, SharedTensor):
            return Layout.SHARED
        return layer_layout(layer.name, inputs, output, self._current.samples, self._decisions, is_positionwise)

    def _await_gradient(
        self,
        output: Tensor,
        layout: Layout,
        inputs: Tensor,
        function: Callable[[Tensor, Tensor], None],
        layer: Layer,
        is_positionwise: bool,
    ) -> None:
        """When the gradient of `output` arrives, call `function` with the input and the gradient, both [samples, ...]."""
        if isinstance(inputs, SharedTensor):
            inputs, layout = inputs.lines, Layout.LINES
        inputs = inputs.detach()  # shares the version counter with the original
        version, dtype = inputs._version, next(iter(layer.module.parameters(recurse=False))).dtype
        batch, names = self._current, layer.names.values()
        watched = self._watched(output, layout, layer) if is_positionwise else None

        def on_arrival(gradient: Tensor) -> None:
            if self._is_marking:
                return
            if inputs._version != version:
                batch.unresolve(names, "the input of their layer was changed in place after the layer had used it")
                return
            self._note(gradient.dtype)
            # Autocast may have cast the input, so repeat that cast.
            seen = inputs.to(gradient.dtype).to(dtype) if inputs.is_floating_point() else inputs
            gradient = gradient.detach()
            owners = None if watched is None else batch.owners.of(watched, gradient)
            gradient = gradient.to(dtype)
            if owners is not None:
                batch.seen.add(layer.name)
                function(*(by_owner(lines(one), owners, batch.samples) for one in (seen, gradient)))
            elif layout is Layout.OWNED or (watched is not None and (batch.owners.is_marked or batch.is_strict)):
                batch.unresolve(names, "nothing tells which sample the lines of their layer belong to")
            elif batch.is_trusted(layer.name, names):
                gradient = gradient if layout is Layout.SHARED else lines_of(gradient, layout, batch.samples)
                function(lines_of(seen, layout, batch.samples), gradient)

        output.register_hook(on_arrival)  # type: ignore[no-untyped-call]

    def _watched(self, output: Tensor, layout: Layout, layer: Layer) -> int | None:
        """The position of an output whose lines' owners are read from gradients; None if its shape is enough."""
        batch = self._current
        if batch.samples == 1 or batch.in_backward or layout is Layout.SHARED:
            return None
        is_doubtful = layout is Layout.OWNED or output.ndim == 2 or not batch.is_known(layer.name)
        return batch.owners.watch(output) if is_doubtful else None

    def _counts(self, name: str, parameters: Collection[str]) -> bool | None:
        return None if self._batch is None or self._is_suspended else self._batch.counts(name, parameters)

    def _on_gradient(self, layer: Layer, inputs: Tensor, gradient: Tensor) -> None:
        assert layer.rule is not None
        forms = layer.rule(layer.module, inputs, gradient, frozenset(layer.names))
        for own_name, name in layer.names.items():
            self._current.arrive(name, forms[own_name])

    # -- parameters without a rule that are used like a Linear's or an Embedding's weight

    def _on_use(self, layer: Layer, name: str, operation: str, inputs: Tensor, output: Tensor, padding_idx: int | None) -> Tensor:
        counts = self._counts(f"{name} in {operation}", [])
        if counts is None:
            return output
        if isinstance(inputs, SharedTensor):  # then the output has lines already
            lines = output if output.requires_grad else output.detach().requires_grad_().clone()
            layout, output = Layout.LINES, SharedTensor.of(lines, layer.name, self._decisions)
        else:
            layout = self._layout(layer, inputs, output, is_positionwise=True)
            lines, output = with_lines(output, layout, self._current.samples, layer.name, self._decisions)
        if counts:
            self._current.due[name] += 1
            table = self.coverage.elements[name] // output.shape[-1]

            def on_gradient(inputs: Tensor, gradient: Tensor) -> None:
                if operation == "embedding":
                    self._current.arrive(name, looked_up(inputs, gradient, padding_idx, table))
                else:
                    seen, heads = live_positions(inputs, gradient)
                    self._current.arrive(name, Outer(heads, seen))

            self._await_gradient(lines, layout, inputs, on_gradient, layer, is_positionwise=True)
        return output

    # -- modules that are run again

    def _on_replayed(
        self, target: str, layers: Sequence[Layer], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        parameters = [name for layer in layers for name in layer.names.values()]
        counts = self._counts(target, parameters)
        if not self._is_suspended:
            self._called.add(target)
        if counts is None:
            return None
        leaves, structure = pytree.tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        names = [layer.name for layer in layers]
        if any(isinstance(leaves[i], SharedTensor) for i in places):
            raise NotPerSampleError(names, f"{target!r} returns what the whole batch shares")
        layouts = [output_layout(target, i, leaves[i], self._current.samples, self._decisions, names) for i in places]
        for i in places:  # new nodes, so that their gradients exclude what the module itself does with its outputs
            leaf = leaves[i]
            leaves[i] = leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_().clone()
        if counts and places:
            outputs = tuple(leaves[i] for i in places)
            call = Call.of(target, module, (args, kwargs), outputs, layouts)
            self._current.due.update(parameters)
            hook = torch.autograd.graph.register_multi_grad_hook(outputs, partial(self._on_gradients, call, layers))
            self._current.graph.callback(hook.remove)
        return pytree.tree_unflatten(leaves, structure)

    def _on_gradients(self, call: Call, layers: Sequence[Layer], gradients: Sequence[Tensor | None]) -> None:
        if self._is_marking:
            return
        batch = self._current
        if not all(tuple(batch.is_trusted(layer.name, layer.names.values()) for layer in layers)):
            return
        prefix = f"{call.name}." if call.name else ""
        paths = {f"{layer.name}.{own}".lstrip(".").removeprefix(prefix): (layer, own) for layer in layers for own in layer.names}
        for dtype in {gradient.dtype for gradient in gradients if gradient is not None}:
            self._note(dtype)
        self._is_suspended = True
        remove(self._stand_ins)
        try:
            parameters = {path: layer.module.get_parameter(own) for path, (layer, own) in paths.items()}
            found = replayed_gradients(call, gradients, parameters, batch.samples, self._decisions)
        except NotRepeatableError as error:
            for layer in layers:
                batch.unresolve(layer.names.values(), str(error))
            return
        finally:
            insert(self._stand_ins)
            self._is_suspended = False
        for path, gradient in found.items():
            layer, own = paths[path]
            batch.arrive(layer.names[own], Dense(gradient))

    # -- all

    def _note(self, dtype: torch.dtype) -> None:
        self.coarsest = max(self.coarsest, dtype, key=lambda one: torch.finfo(one).eps)
