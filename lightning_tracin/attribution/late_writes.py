"""Writes results while an accelerator goes on: copies into pinned memory beside its work, and files from a thread.

A shard's results are copied to the CPU and written to a file with a checksum. If the pass waited for that, the device would stand
still at the end of every shard. So a copy is started on a stream of its own, into one of two sets of pinned buffers, and a thread
waits for it and writes. A third shard waits until the first is written: its buffers are the first's. On the CPU nothing is to be
gained, and shards are written at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

#: Sets of buffers: one is being written while the other is filled.
BUFFERS = 2


class Copies(Protocol):
    """Starts copies of a device's tensors to the CPU."""

    def start(self, tensors: Sequence[Tensor], buffer: int) -> Callable[[], list[Tensor]]:
        """Start to copy tensors into a set of buffers, in order after the device's work so far.

        Args:
            tensors: on the device.
            buffer: number of the set, below `BUFFERS`, whose former content is no longer needed.

        Returns:
            Waits for the copies and gives them, on the CPU. They are valid until the set is used again.
        """


class PinnedCopies:
    """Copies from a CUDA device, on a stream of their own.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._held: list[dict[int, Tensor]] = [{} for _ in range(BUFFERS)]  # by position among the tensors

    def start(self, tensors: Sequence[Tensor], buffer: int) -> Callable[[], list[Tensor]]:
        """See `Copies`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        found = []
        with torch.cuda.stream(self._stream):
            for position, tensor in enumerate(tensors):
                place = self._place(buffer, position, tensor)
                place.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)  # its memory is not given away before it is copied
                found.append(place)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)

        def finished() -> list[Tensor]:
            done.synchronize()
            return found

        return finished

    def _place(self, buffer: int, position: int, tensor: Tensor) -> Tensor:
        held = self._held[buffer].get(position)
        if held is None or held.nbytes < tensor.nbytes:  # pinning takes long, so that a buffer is kept
            held = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
            self._held[buffer][position] = held
        return held[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class LateWrites:
    """Writes results as they arrive; on exit, all are written.

    Args:
        copies: how tensors come to the CPU. None: they are there, and are written at once.

    Raises:
        Exception: what a write raised, at the next `put` or on exit.

    Example:
        >>> with LateWrites(None) as writes:
        ...     writes.put([torch.ones(2)], lambda tensors: print(tensors[0].tolist()))
        [1.0, 1.0]
    """

    def __init__(self, copies: Copies | None) -> None:
        self._copies = copies
        self._thread = None if copies is None else ThreadPoolExecutor(1, "tracin-writes")
        self._waiting: deque[Future[None]] = deque()
        self._count = 0

    @classmethod
    def of(cls, device: torch.device) -> LateWrites:
        """For tensors of this device."""
        return cls(PinnedCopies(device) if device.type == "cuda" else None)

    def __enter__(self) -> LateWrites:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is None:
            return
        self._thread.shutdown(wait=True)  # what was computed before an error is kept
        while error is None and self._waiting:
            self._waiting.popleft().result()

    def put(self, tensors: Sequence[Tensor], write: Callable[[list[Tensor]], None]) -> None:
        """Write tensors soon.

        Args:
            tensors: on the device; the caller lets go of them and does not change them.
            write: takes them on the CPU; it must not keep them.
        """
        if self._copies is None or self._thread is None:
            write(list(tensors))
            return
        while len(self._waiting) >= BUFFERS:
            self._waiting.popleft().result()
        finished = self._copies.start(tensors, self._count % BUFFERS)
        self._count += 1
        self._waiting.append(self._thread.submit(lambda: write(finished())))
