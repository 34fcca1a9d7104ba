"""No collective of `torch.distributed` reaches another process while a sample's loss is computed.

Ranks share a pass shard by shard, so they evaluate different numbers of batches: a `training_step` that gathers, reduces or
waits would wait for ever. A sample's own loss needs no other rank either. So every collective is the identity here, as in a fit
with one process, and `torch.distributed` says that it is not initialized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed
from torch import Tensor


class _Finished:
    """The handle of an asynchronous collective that is over."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def _finished(*_: Any, async_op: bool = False, **__: Any) -> _Finished | None:
    return _Finished() if async_op else None


def _into_list(targets: Sequence[Tensor], source: Tensor | Sequence[Tensor], *_: Any, **settings: Any) -> _Finished | None:
    for position, target in enumerate(targets):
        target.detach().copy_(source if isinstance(source, Tensor) else source[position])
    return _finished(**settings)


def _into_tensor(target: Tensor, source: Tensor | Sequence[Tensor], *_: Any, **settings: Any) -> _Finished | None:
    given = source if isinstance(source, Tensor) else source[0]
    target.detach().copy_(given.expand(target.shape) if given.dim() == target.dim() else given.reshape(target.shape))
    return _finished(**settings)


def _gather(source: Tensor, targets: Sequence[Tensor] | None = None, *_: Any, **settings: Any) -> _Finished | None:
    return _into_list(targets or settings.pop("gather_list", None) or (), source, **settings)


def _objects(targets: list[Any], source: Any, *_: Any, **__: Any) -> None:
    targets[:] = [source] * len(targets)


_IDENTITIES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("all_reduce", "reduce", "broadcast", "barrier", "monitored_barrier", "broadcast_object_list"),
        _finished,
    ),
    **dict.fromkeys(("all_gather", "all_to_all"), _into_list),
    **dict.fromkeys(
        ("all_gather_into_tensor", "all_to_all_single", "reduce_scatter", "reduce_scatter_tensor", "scatter"), _into_tensor
    ),
    "gather": _gather,
    "all_gather_object": _objects,
    "is_initialized": lambda: False,
    "get_rank": lambda *_: 0,
    "get_world_size": lambda *_: 1,
}


@contextmanager
def no_collectives() -> Iterator[None]:
    """Inside, a collective takes the values of this process for everybody's.

    Example:
        >>> with no_collectives():
        ...     torch.distributed.is_initialized()
        False
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        yield
        return
    with ExitStack() as stack:
        for name, identity in _IDENTITIES.items():
            if hasattr(torch.distributed, name):
                stack.enter_context(patch.object(torch.distributed, name, identity))
        yield
