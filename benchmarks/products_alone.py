"""The matrix products of a piece of work: how many multiplications they are, and how long they take alone.

A pass cannot be faster than its products. Each is recorded with the shapes and strides of its factors while the work runs, and
timed afterwards on factors that are ready: same operation, same layout, random values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, shape_wrapper

from benchmarks.timing import seconds

_aten = torch.ops.aten
#: Operations in place -> those that are registered.
_IN_PLACE = {_aten.addmm_: _aten.addmm, _aten.baddbmm_: _aten.baddbmm}


def _linear_flops(lines: Sequence[int], columns: Sequence[int], *_: Any, **_named: Any) -> int:
    """``x W'`` by oneDNN, which torch's counter does not know."""
    return 2 * math.prod(lines) * columns[0]


#: Formulas of operations: torch's own, and that of a product which the engine calls directly.
_FORMULAS = {
    **flop_registry,
    torch.ops.mkldnn._linear_pointwise: shape_wrapper(_linear_flops),  # type: ignore[no-untyped-call]
}

#: Calls of each product that are timed.
_CALLS = 5


@dataclass(frozen=True)
class Layout:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """That of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def filled(self) -> Tensor:
        """A tensor with this layout and random values."""
        size = 1 + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        held = torch.empty(size, dtype=self.dtype, device=self.device)
        return (held.normal_() if self.dtype.is_floating_point else held.zero_()).as_strided(self.shape, self.stride)


@dataclass
class Product:
    """One operation with factors of one layout.

    Attributes:
        operation: the operation.
        arguments: positional and named ones, with a `Layout` in place of each tensor.
        multiplications: of one call (a floating-point operation is half of one).
        moved: bytes of the factors and the result of one call, each once.
        calls: how often it was called.
    """

    operation: Any
    arguments: tuple[Any, Any]
    multiplications: float
    moved: int
    calls: int = 0

    def seconds(self) -> float:
        """Seconds of all calls: the median of a few, times their number."""
        args, named = tree_map_only(Layout, Layout.filled, self.arguments)
        self.operation(*args, **named)  # warm-up
        return self.calls * statistics.median(seconds(lambda: self.operation(*args, **named)) for _ in range(_CALLS))


@dataclass
class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every matrix product (and convolution, and attention) that torch runs."""

    products: dict[str, Product] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it if it multiplies matrices."""
        named = kwargs or {}
        done = func(*args, **named)
        packet = func.overloadpacket
        formula = _FORMULAS.get(_IN_PLACE.get(packet, packet))
        if formula is not None:
            arguments = tree_map_only(Tensor, Layout.of, (args, named))
            key = f"{func} {arguments}"
            if key not in self.products:
                moved = sum(one.nbytes for one in tree_leaves((args, named, done)) if isinstance(one, Tensor))
                self.products[key] = Product(func, arguments, formula(*args, **named, out_val=done) / 2, moved)
            self.products[key].calls += 1
        return done


@dataclass(frozen=True)
class Alone:
    """The products of some work.

    Attributes:
        multiplications: of all products.
        moved: bytes of all products' factors and results.
        seconds: of all products, alone.
    """

    multiplications: float
    moved: float
    seconds: float


def products_alone(work: Callable[[], object]) -> Alone:
    """Run the work once, and its products alone."""
    with Recorder() as recorder:
        work()
    products = list(recorder.products.values())
    with torch.no_grad():
        alone = sum(product.seconds() for product in products)
    multiplications = sum(product.calls * product.multiplications for product in products)
    return Alone(multiplications, sum(product.calls * product.moved for product in products), alone)
