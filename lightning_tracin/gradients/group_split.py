"""Splits the gradients of a fit's own backward passes by groups of samples, such as languages.

Hooks keep each layer's input. When the gradient of the layer's output arrives in the fit's backward pass, the layer's rule turns
both into the samples' gradients, whose sums over the groups are kept: the multiplications of the weight's gradient once more.
Nothing that the fit computes is changed, and no second pass is made.

A parameter without a rule is split at the output of the module around it: the backward pass through that module is repeated
there, once for each group, with the gradients of all other groups' samples set to zero. What cannot be split in this way either
(a parameter that is used outside all modules) is *undivided*: it counts for no group, except in batches of a single group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.coverage import Layer
from lightning_tracin.gradients.forms import Form, samples_of
from lightning_tracin.gradients.group_vectors import PENDING, GroupVectors, TouchedRows, summed_by_group
from lightning_tracin.gradients.rules import RULED, find_rule
from lightning_tracin.gradients.sample_lines import Lines, Place, by_sample, tensors_of

#: The group of what cannot be split.
UNDIVIDED = -1


@dataclass(frozen=True)
class Ways:
    """How the gradients of each parameter are split.

    Attributes:
        lines: where the samples are in the tensors of modules; a tensor that is not here is read by its first dimension.
        around: parameter -> the module around its layers whose backward pass is repeated for it.
        undivided: parameters that are not split.
    """

    lines: Mapping[Place, Lines] = field(default_factory=dict)
    around: Mapping[str, str] = field(default_factory=dict)
    undivided: frozenset[str] = frozenset()


class SampleWatch(Protocol):
    """Sees samples' own gradients, before they are summed by group."""

    def arrived(self, name: str, samples: Tensor, forms: Sequence[Form]) -> None:
        """Gradients of a parameter have arrived.

        Args:
            name: of the parameter.
            samples: [samples] as given to `GroupSplit.begin`, the same object.
            forms: their gradients, whose sum counts.
        """

    def dropped(self, name: str) -> None:
        """What has arrived of a parameter's gradient since its last step does not count."""


@dataclass
class _Split:
    groups: Tensor  # [samples] number of each sample's group
    samples: Tensor | None  # for the watch
    present: list[int]
    awaited: Counter[str] = field(default_factory=Counter)  # layer -> calls without gradients, which checkpointing repeats

    @property
    def only(self) -> int | None:
        """The group of all samples, if there is only one."""
        return self.present[0] if len(self.present) == 1 else None


class GroupSplit:
    """Per-group gradients of one model, summed until they are taken.

    Args:
        model: the model; its parameters' gradients are those of the fit.
        ways: how each parameter is split.
        device: where the sums are kept. None: where the parameter is.

    Attributes:
        vectors: parameter -> group -> its vectors; what has been added since the last step is under `PENDING`.
        layers: layer -> its facts.
        parameters: the model's, by name.
        touched: table -> the rows that any group has touched.
        tables: the parameters that are tables of embeddings and nothing else.
        coarsest: the least precise data type of all gradients so far.
        watch: sees samples' own gradients of parameters that are split by rules of layers.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> split = GroupSplit(model, Ways())
        >>> split.begin(torch.tensor([0, 1, 0]))
        >>> model(torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
        >>> {group: vectors[PENDING].item() for group, vectors in split.vectors["weight"].items()}
        {0: 5.0, 1: 2.0}
        >>> split.close()
    """

    def __init__(self, model: nn.Module, ways: Ways, device: torch.device | None = None) -> None:
        self._ways, self._device = ways, device
        self.layers = layers_of(model)
        self.parameters = dict(model.named_parameters())
        tables = [{*layer.names.values()} for layer in self.layers.values() if isinstance(layer.module, nn.Embedding)]
        others = [{*layer.names.values()} for layer in self.layers.values() if not isinstance(layer.module, nn.Embedding)]
        self.tables = frozenset().union(*tables) - frozenset().union(*others)
        self.vectors: dict[str, dict[int, GroupVectors]] = defaultdict(dict)
        self.touched: dict[str, TouchedRows] = {}
        self._batch: _Split | None = None
        self._is_repeating = False
        self.coarsest = torch.float64
        self.watch: SampleWatch | None = None
        self._tasks: dict[str, int] = {}  # parameter -> the backward pass in which its gradient was last begun
        self._hooks = ExitStack()
        for layer in self.layers.values():
            if layer.rule is not None:
                self._hook(layer.module, partial(self._on_layer, layer))
        modules = dict(model.named_modules())
        for target in sorted(set(ways.around.values())):
            names = [name for name, around in ways.around.items() if around == target]
            self._hook(modules[target], partial(self._on_module, target, names))
        for name, parameter in self.parameters.items():
            if name in ways.undivided:
                self._watch(name, parameter)

    def _hook(self, module: nn.Module, function: Any) -> None:
        self._hooks.callback(module.register_forward_hook(_eager(function), with_kwargs=True).remove)

    def _watch(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.requires_grad:
            handle = parameter.register_hook(partial(self._on_parameter, name))  # type: ignore[no-untyped-call]
            self._hooks.callback(handle.remove)

    def close(self) -> None:
        """Remove all hooks."""
        self._batch = None
        self._hooks.close()

    def begin(self, groups: Tensor, samples: Tensor | None = None) -> None:
        """Split the gradients of a batch that is about to be computed.

        Args:
            groups: [samples] int64, number of each sample's group, in the order of the batch.
            samples: [samples] what the watch is told of each; None does not call it.
        """
        self._batch = _Split(groups, samples, sorted(set(groups.tolist())))

    def pause(self) -> None:
        """Split nothing until `begin` is called again."""
        self._batch = None

    # -- layers with a rule

    def _on_layer(self, layer: Layer, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        batch = self._counted(layer.name)
        if batch is None or not isinstance(output, Tensor) or not output.requires_grad:
            return
        inputs = args[0] if args else next(iter(kwargs.values()))
        wanted = {own: name for own, name in layer.names.items() if name not in self._ways.around and self._is_split(name)}
        if wanted:
            function = partial(self._on_gradient, batch, layer, wanted, inputs.detach())
            output.register_hook(_eager(function))  # type: ignore[no-untyped-call]

    def _on_gradient(self, batch: _Split, layer: Layer, wanted: Mapping[str, str], inputs: Tensor, gradient: Tensor) -> None:
        if self._is_repeating:
            return
        assert layer.rule is not None
        self._note(gradient)
        own = next(iter(layer.module.parameters(recurse=False)))
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            # Autocast may have cast the input, so repeat that cast.
            seen = inputs.to(gradient.dtype).to(own.dtype) if inputs.is_floating_point() else inputs
            lined = self._lined_layer(batch, layer.name, seen, gradient)
            if lined is None:
                return
            given, sought = lined
            forms = layer.rule(layer.module, given, sought.to(own.dtype), frozenset(wanted))
            for name, form in forms.items():
                self._add_forms(batch, wanted[name], [form])

    def _lined_layer(self, batch: _Split, name: str, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """A layer's input and output gradient with one line for each sample, or one in all if that is enough."""
        if batch.only is not None and self.watch is not None and batch.samples is not None:
            lines = (
                self._ways.lines.get(Place(name, "input", 0), Lines.FIRST),
                self._ways.lines.get(Place(name, "output", 0), Lines.FIRST),
            )
            given, sought = (by_sample(one, way, len(batch.groups)) for one, way in zip((inputs, gradient), lines, strict=True))
            if given is not None and sought is not None:
                return given, sought
        given, sought = self._lined(batch, name, "input", inputs), self._lined(batch, name, "output", gradient)
        return None if given is None or sought is None else (given, sought)

    def _lined(self, batch: _Split, module: str, role: str, tensor: Tensor, number: int = 0) -> Tensor | None:
        """A tensor with one line for each sample, or one line in all if the batch has one group."""
        if batch.only is not None:
            return tensor[None]
        lines = self._ways.lines.get(Place(module, role, number), Lines.FIRST)
        return by_sample(tensor, lines, len(batch.groups))

    def _add_forms(self, batch: _Split, name: str, forms: Sequence[Form]) -> None:
        self._begin(name)
        groups, present = batch.groups, batch.present
        if samples_of(forms[0]) != len(groups):  # one line in all
            groups = groups[:1]
        elif self.watch is not None and batch.samples is not None:
            self.watch.arrived(name, batch.samples, forms)
        shape = self.parameters[name].shape
        device = forms[0].left.device if hasattr(forms[0], "left") else forms[0].values.device
        for group, pieces in summed_by_group(forms, groups.to(device), present).items():
            for values, rows in pieces:
                self.of(name, group).add(PENDING, values.reshape(shape) if rows is None else values, rows)

    # -- modules whose backward pass is repeated

    def _on_module(self, target: str, names: Sequence[str], _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        batch = self._counted(target)
        chosen = [name for name in names if self._is_split(name)]
        if batch is None or not chosen:
            return
        for number, tensor in tensors_of(output):
            is_known = batch.only is not None or Place(target, "output", number) in self._ways.lines
            if tensor.requires_grad and tensor.grad_fn is not None and is_known:
                function = partial(self._on_output, batch, target, number, chosen, tensor)
                tensor.register_hook(_eager(function))  # type: ignore[no-untyped-call]

    def _on_output(self, batch: _Split, target: str, number: int, names: Sequence[str], output: Tensor, gradient: Tensor) -> None:
        if self._is_repeating:
            return
        self._note(gradient)
        parameters = [self.parameters[name] for name in names]
        for name in names:
            self._begin(name)
        for group in batch.present:
            masked = gradient
            if batch.only is None:
                masked = gradient.clone(memory_format=torch.contiguous_format)
                lined = self._lined(batch, target, "output", masked, number)
                if lined is None:
                    return
                lined[(batch.groups != group).to(lined.device)] = 0  # a view of `masked`
            found = self._repeated(output, parameters, masked)
            for name, one in zip(names, found, strict=True):
                if one is not None:
                    self.of(name, group).add(PENDING, one.detach().clone())

    def _repeated(self, output: Tensor, parameters: Sequence[nn.Parameter], gradient: Tensor) -> Sequence[Tensor | None]:
        """Repeat the backward pass through a module, unseen by hooks; nothing is found under reentrant checkpointing."""
        hooks = [(one._backward_hooks, dict(one._backward_hooks)) for one in parameters if one._backward_hooks]
        for own, _ in hooks:
            own.clear()
        self._is_repeating = True  # hooks inside the module are called again
        try:
            return torch.autograd.grad(output, parameters, gradient, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant=True" not in str(error):
                raise
            return [None for _ in parameters]
        finally:
            self._is_repeating = False
            for own, kept in hooks:
                own.update(kept)

    # -- parameters that are not split

    def _on_parameter(self, name: str, gradient: Tensor) -> None:
        if self._batch is not None and not self._is_repeating:
            self._begin(name)
            self._note(gradient)
            only = self._batch.only
            self.of(name, UNDIVIDED if only is None else only).add(PENDING, gradient.detach().clone())

    # -- sums

    def _note(self, gradient: Tensor) -> None:
        if torch.finfo(gradient.dtype).eps > torch.finfo(self.coarsest).eps:
            self.coarsest = gradient.dtype

    def _is_split(self, name: str) -> bool:
        return self.parameters[name].requires_grad and name not in self._ways.undivided

    def of(self, name: str, group: int) -> GroupVectors:
        """The vectors of a parameter and a group, which are zero at first."""
        found = self.vectors[name]
        if group not in found:
            parameter = self.parameters[name]
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            device = self._device or parameter.device
            if name in self.tables and name not in self.touched:
                self.touched[name] = TouchedRows(len(parameter), device)
            found[group] = GroupVectors(parameter.shape, dtype, device, name in self.tables, self.touched.get(name))
        return found[group]

    def _begin(self, name: str) -> None:
        """Forget what came before the fit's optimizer set the parameter's gradient to zero."""
        task, gradient = torch._C._current_graph_task_id(), self.parameters[name].grad
        if self._tasks.get(name) == task:
            return
        self._tasks[name] = task
        pending = [vectors for vectors in self.vectors[name].values() if PENDING in vectors]
        if pending and (gradient is None or not bool(gradient.any())):
            for vectors in pending:
                vectors.drop(PENDING)
            if self.watch is not None:
                self.watch.dropped(name)

    def _counted(self, name: str) -> _Split | None:
        """The batch that a call of a module belongs to; None if the call is not part of what the loss is computed from."""
        batch = self._batch
        if batch is None:
            return None
        if not torch.is_grad_enabled():
            batch.awaited[name] += 1
            return None
        if torch._C._current_graph_task_id() == -1:  # in no backward pass
            return batch
        if not batch.awaited[name]:  # checkpointing that is not reentrant: only the first call counts
            return None
        batch.awaited[name] -= 1
        return batch


def _eager(function: Callable[..., None]) -> Any:
    """A function that `torch.compile` does not look into."""
    return torch.compiler.disable(function)  # type: ignore[no-untyped-call]


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The modules with parameters of their own, by name.

    Example:
        >>> sorted(layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        ['0']
    """
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for name, module in model.named_modules():
        own = {one: by_identity[id(p)] for one, p in module.named_parameters(recurse=False, remove_duplicate=False)}
        if own:
            rule_name, rule = find_rule(module) if own.keys() <= RULED else ("", None)
            if getattr(module, "scale_grad_by_freq", False):
                rule = None  # the rule's gradients are not scaled
            found[name] = Layer(name, module, rule, rule_name, own)
    return found


def enclosing(name: str) -> Iterable[str]:
    """The names of a module and of those around it, from the inside, without the model as a whole.

    Example:
        >>> list(enclosing("encoder.layer.0"))
        ['encoder.layer.0', 'encoder.layer', 'encoder']
    """
    parts = name.split(".") if name else []
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))
