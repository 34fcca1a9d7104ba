"""Results are written in order, complete and once, however late their copies arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_tracin.attribution.late_writes import BUFFERS, LateWrites, PinnedCopies


class SlowCopies:
    """Copies into buffers that are overwritten when their turn comes again, as pinned ones are; they arrive when let through."""

    def __init__(self) -> None:
        self.buffers = [torch.zeros(3) for _ in range(BUFFERS)]
        self.started: list[float] = []
        self.let_through = threading.Semaphore(0)

    def start(self, tensors: Sequence[Tensor], buffer: int) -> Callable[[], list[Tensor]]:
        (tensor,) = tensors
        self.started.append(float(tensor[0]))
        self.buffers[buffer].copy_(tensor)

        def finished() -> list[Tensor]:
            self.let_through.acquire()
            return [self.buffers[buffer]]

        return finished


def numbered(count: int) -> list[Tensor]:
    return [torch.full((3,), float(number)) for number in range(count)]


def test_without_copies_results_are_written_at_once() -> None:
    found: list[list[float]] = []
    with LateWrites.of(torch.device("cpu")) as writes:
        for tensor in numbered(3):
            writes.put([tensor], lambda tensors: found.append(tensors[0].tolist()))
            assert found[-1] == tensor.tolist()


def test_late_results_are_written_in_order_and_unharmed() -> None:
    copies, found = SlowCopies(), list[list[float]]()
    with LateWrites(copies) as writes:
        for number, tensor in enumerate(numbered(7)):
            if number >= BUFFERS:
                copies.let_through.release()  # else the third would wait for the first for ever
            writes.put([tensor], lambda tensors: found.append(tensors[0].tolist()))
        copies.let_through.release(BUFFERS)
    assert found == [one.tolist() for one in numbered(7)]


def test_a_pass_goes_on_while_two_results_are_on_their_way_and_no_more() -> None:
    copies = SlowCopies()
    with LateWrites(copies) as writes:
        for tensor in numbered(BUFFERS):
            writes.put([tensor], lambda tensors: None)
        assert copies.started == [0.0, 1.0]  # neither has arrived
        third = threading.Thread(target=writes.put, args=([torch.full((3,), 2.0)], lambda tensors: None))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        assert copies.started == [0.0, 1.0]
        copies.let_through.release(3)
        third.join()
    assert copies.started == [0.0, 1.0, 2.0]


def test_an_error_in_writing_is_raised(tmp_path: Path) -> None:
    copies = SlowCopies()
    copies.let_through.release()
    writes = LateWrites(copies)
    with pytest.raises(FileNotFoundError), writes:
        writes.put(numbered(1), lambda tensors: torch.save(tensors, (tmp_path / "missing" / "file").open("wb")))


def test_what_was_computed_before_an_error_is_written() -> None:
    copies, found = SlowCopies(), list[float]()
    copies.let_through.release()

    def ending_early() -> None:
        with LateWrites(copies) as writes:
            writes.put(numbered(1), lambda tensors: found.append(float(tensors[0][0])))
            raise KeyError

    with pytest.raises(KeyError):
        ending_early()
    assert found == [0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_of_a_device_arrive_unharmed() -> None:
    device, found = torch.device("cuda"), list[list[float]]()
    with LateWrites(PinnedCopies(device)) as writes:
        for number in range(6):
            tensors = [torch.full((1 + number % 3, 1000), float(number), device=device), torch.arange(number, device=device)]
            writes.put(tensors, lambda tensors: found.append([float(tensors[0].mean()), float(tensors[1].sum())]))
    assert found == [[float(number), float(sum(range(number)))] for number in range(6)]
