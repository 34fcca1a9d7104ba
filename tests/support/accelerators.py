"""An accelerator that any machine has: its tensors hold their numbers on the CPU, and are not mixed with the CPU's.

Inside `Accelerated`, the device `ACCELERATOR` behaves as a CUDA device does where that matters to code that must run on one:

- Operations on tensors of both devices are refused, except that a CPU tensor of no dimensions may take part in elementwise
  operations, a CPU tensor may index, and `copy_` and `to` carry numbers across.
- What makes the processor wait for the device is noted, with the line of the package that asks for it: reading numbers (`item`,
  `bool`, `tolist`, `cpu`), and operations whose result has a size that depends on numbers (`nonzero`, `unique`, a mask as index).
- A CPU generator does not draw on the device.

The numbers are real, so code that decides by them works, and results can be compared with the CPU's. The device carries the name
`meta`, since autograd runs the backward pass of its tensors without a library of kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_tracin

#: The device.
ACCELERATOR = torch.device("meta")

_PACKAGE = str(Path(lightning_tracin.__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_aten = torch.ops.aten

#: Operations whose result has a size that only the numbers tell.
_SIZED_BY_NUMBERS = {
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.unique_dim_consecutive,
    _aten.bincount,
    _aten.equal,
    _aten._linalg_check_errors,
}

_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._unsafe_index, _aten._index_put_impl_}


@dataclass(frozen=True)
class Wait:
    """One time the processor waits for the device."""

    operation: str
    line: str  # that asked torch for it, such as `gradients/forms.py:86 coalesced`


class Elsewhere(Tensor):
    """A tensor of the accelerator, with its numbers in a tensor of the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=ACCELERATOR,
            requires_grad=False,
        )
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"Elsewhere({self.numbers!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as what it is, for copies of modules."""
        return _rebuilt, (self.numbers, self.requires_grad, getattr(self, "_is_param", False))

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _performed(operation, args, dict(kwargs or {}), lambda _name: None, lambda _name: None)


def _rebuilt(numbers: Tensor, requires_grad: bool, is_parameter: bool) -> Tensor:
    made = Elsewhere(numbers).requires_grad_(requires_grad)
    return torch.nn.Parameter(made, requires_grad) if is_parameter else made


class Accelerated:
    """Inside, there is an accelerator.

    Attributes:
        waits: each time the processor waited for the device.
        uploads: each copy from the CPU to the device, as the line that asked for it.
    """

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.uploads: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Accelerated:
        for owner, name in ((torch, "get_autocast_dtype"), (torch, "is_autocast_enabled"), (torch.autocast, "__init__")):
            self._stack.enter_context(patch.object(owner, name, _with_autocast(getattr(owner, name))))
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def wait(self, operation: str) -> None:
        """Note that the processor waits."""
        self.waits.append(Wait(operation, _line()))

    def upload(self, operation: str) -> None:
        """Note a copy to the device."""
        self.uploads.append(f"{operation} at {_line()}")


class _Operations(TorchDispatchMode):
    def __init__(self, noted: Accelerated) -> None:
        super().__init__()
        self._noted = noted

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _performed(operation, args, dict(kwargs or {}), self._noted.wait, self._noted.upload)


class _Functions(TorchFunctionMode):
    """What torch decides in Python or C++ before it dispatches an operation."""

    def __init__(self, noted: Accelerated) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and type(args[0]) is Elsewhere:
            if function == Tensor.is_meta.__get__:  # type: ignore[attr-defined]  # made anew each time
                return False
            if function == Tensor.data.__set__:  # type: ignore[attr-defined]
                args[0].numbers = args[1].numbers  # and what follows takes over the shape and type
            if function is Tensor.tolist:
                self._noted.wait("tolist")
                return args[0].numbers.tolist()
            if function is Tensor.untyped_storage:
                return args[0].numbers.untyped_storage()
            if function is Tensor.data_ptr:
                return args[0].numbers.data_ptr()
            if function in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert an accelerator's tensor to numpy. Use Tensor.cpu() first.")
            if function is Tensor.new_tensor:
                function, args, kwargs = torch.tensor, args[1:], {"dtype": args[0].dtype, "device": ACCELERATOR, **kwargs}
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and _is_there(kwargs.get("device")):
            return self._made(function, args, kwargs)
        return function(*args, **kwargs)

    def _made(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A tensor of the device from numbers of Python's, which torch would make without them."""
        is_new = type(args[0]) is not Elsewhere
        if is_new:
            self._noted.upload(function.__name__)
        asks_gradient = kwargs.pop("requires_grad", False)
        numbers = function(args[0] if is_new else args[0].numbers, *args[1:], **kwargs | {"device": "cpu"})
        return Elsewhere(numbers).requires_grad_(asks_gradient)


def _with_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch's that takes the device for one with autocast."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*("cpu" if one == ACCELERATOR.type else one for one in args), **kwargs)

    return called


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == ACCELERATOR.type


def _line() -> str:
    """The line that asked torch for something: of the package (from its folder), or of a module outside of it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or _TORCH in frame.f_code.co_filename or frame.f_code.co_name == "__torch_function__"
    ):
        frame = frame.f_back
    name = frame.f_code.co_filename
    return (
        f"{name[len(_PACKAGE) + 1 :] if name.startswith(_PACKAGE) else Path(name).name}:{frame.f_lineno} {frame.f_code.co_name}"
    )


def _performed(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wait: Callable[[str], None], upload: Callable[[str], None]
) -> Any:
    """The result of an operation, on the device of its tensors."""
    leaves = list(_tensors((args, kwargs)))
    there = [leaf for leaf in leaves if type(leaf) is Elsewhere]
    packet = operation.overloadpacket
    device = kwargs.get("device")
    if not there and not _is_there(device):
        return operation(*args, **kwargs)
    if packet in (_aten._to_copy, _aten.copy_):
        return _carried(operation, args, kwargs, wait, upload)
    if len(there) < len(leaves):
        _require_one_device(operation, args, leaves, upload)
    _note_waits(operation, args, kwargs, wait)
    if kwargs.get("generator") is not None and kwargs["generator"].device.type == "cpu":
        raise RuntimeError("Expected an accelerator's generator but found one of the CPU")
    is_there = _is_there(device) if device is not None else bool(there)
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    given = {id(leaf.numbers): leaf for leaf in there}
    result = operation(*_plain(args), **_plain(kwargs))
    if not is_there:
        return result
    return _mapped(result, lambda one: given[id(one)] if id(one) in given else Elsewhere(one))


def _carried(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wait: Callable[[str], None], upload: Callable[[str], None]
) -> Any:
    """`to` and `copy_`, which carry numbers across."""
    is_copy = operation.overloadpacket is _aten.copy_
    source = args[1] if is_copy else args[0]
    from_there = type(source) is Elsewhere
    if is_copy:
        to_there = type(args[0]) is Elsewhere
    else:
        device = kwargs.get("device")
        to_there = from_there if device is None else _is_there(device)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
    if from_there and not to_there:
        wait("copy to the CPU")
    elif to_there and not from_there:
        upload("copy to the device")
    result = operation(*_plain(args), **_plain(kwargs))
    if is_copy:
        return args[0]
    return Elsewhere(result) if to_there else result


def _require_one_device(operation: Any, args: tuple[Any, ...], leaves: list[Tensor], upload: Callable[[str], None]) -> None:
    here = [leaf for leaf in leaves if type(leaf) is not Elsewhere]
    packet = operation.overloadpacket
    written = operation._schema.is_mutable and any(args[0] is leaf for leaf in here)
    if packet in _INDEXED and type(args[0]) is Elsewhere:
        indices = {id(one) for one in args[1] if one is not None}
        here = [leaf for leaf in here if not (id(leaf) in indices or leaf.ndim == 0)]
        upload("index")
    elif (torch.Tag.pointwise in operation.tags or packet in (_aten.fill_, _aten.fill)) and not written:
        here = [leaf for leaf in here if leaf.ndim > 0]
    if here:
        shapes = [tuple(leaf.shape) for leaf in here]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {operation} has some on the accelerator and some on the CPU "
            f"(shapes {shapes}), at {_line()}"
        )


def _note_waits(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], wait: Callable[[str], None]) -> None:
    packet = operation.overloadpacket
    if packet in (_aten._local_scalar_dense, _aten.is_nonzero):
        wait("item")
    elif packet in _SIZED_BY_NUMBERS:
        wait(str(packet).removeprefix("aten."))
    elif packet is _aten.repeat_interleave and kwargs.get("output_size") is None:
        wait("repeat_interleave")
    elif packet in _INDEXED and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
        wait("index by a mask")


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple, dict)):
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(one)


def _mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The arguments or results of an operation with every tensor replaced; torch's own mapping of trees takes long."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: _mapped(one, function) for name, one in tree.items()}
    return type(tree)([_mapped(one, function) for one in tree]) if type(tree) in (list, tuple) else tree


def _plain(tree: Any) -> Any:
    return _mapped(tree, lambda one: one.numbers if type(one) is Elsewhere else one)
