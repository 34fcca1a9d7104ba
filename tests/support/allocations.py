"""The memory that torch's tensors take on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that are held at one time, of those that are made during the work.

    The profiler sees every tensor, so the number is the same in each run, whatever else the process does.

    Example:
        >>> import torch
        >>> peak_bytes(lambda: [torch.zeros(1000), torch.zeros(1000) + 1]) // 1000  # three of 4000 bytes at one time
        12
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Addr"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    made: dict[int, int] = {}
    held = most = 0
    for _, address, size in sorted(changes, key=lambda change: change[0]):
        if size > 0:
            made[address] = size
            held += size
        else:
            held -= made.pop(address, 0)  # what was made before does not count
        most = max(most, held)
    return most
