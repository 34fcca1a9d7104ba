"""Memory of one pass, measured in a process of its own: `python -m benchmarks.memory BUDGET SCALE` prints it as JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import ours
from benchmarks.contenders import parameter_bytes
from benchmarks.workloads import Workload, reference

_STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    """A field of this process's status in bytes: VmRSS (memory held now) or VmHWM (peak).

    Raises:
        OSError: this system has no /proc.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no field {field}; peak memory is measured on Linux only.")
    return int(found[1]) * 1024


def activation_bytes(workload: Workload, batch_size: int) -> int:
    """Bytes that one training step keeps for its backward pass, apart from parameters, on the longest samples."""
    longest = len(workload.train)
    batch = ours.sample_set(workload.train).batch(range(max(0, longest - batch_size), longest))
    return saved_bytes(workload.model, lambda: workload.loss(workload.model, batch))


def saved_bytes(model: nn.Module, forward: object) -> int:
    """Bytes of the distinct tensors that a forward pass keeps, apart from parameters."""
    assert callable(forward)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # kept alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


def main() -> None:
    budget, scale = int(sys.argv[1]), float(sys.argv[2])
    torch.ones(256, 256) @ torch.ones(256, 256)  # starts the threads and allocates their buffers
    before = resident("VmRSS")
    workload = reference().scaled(scale)
    ours.exact(workload, memory_budget=budget)
    grown = resident("VmHWM") - before
    parts = {"model": parameter_bytes(workload), "activations": activation_bytes(workload, ours.BATCH_SIZE), "budget": budget}
    print(json.dumps({"grown": grown, **parts}))


if __name__ == "__main__":
    main()
