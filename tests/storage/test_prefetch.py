"""Items are found ahead in background threads that share the cores, and do not each use all of them."""

from __future__ import annotations

import json
import subprocess
import sys

#: Asks in a process of its own, because a process keeps its threads.
_ASKED = """
import json
import torch
from lightning_tracin.storage.prefetch import Ahead

torch.set_num_threads(3)
one = torch.ones(512, 512)

def number_of_threads(_):
    torch.mm(one, one)
    return torch.get_num_threads()

ahead = Ahead(number_of_threads, range(6))
print(json.dumps([[ahead[number] for number in range(6)], torch.get_num_threads()]))
"""


def test_each_background_thread_uses_one_thread_of_torch_and_the_caller_keeps_its_own() -> None:
    """With three each, nine threads would share the cores of three."""
    done = subprocess.run([sys.executable, "-c", _ASKED], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1] * 6, 3]
