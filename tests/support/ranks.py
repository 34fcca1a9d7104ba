"""Work in several processes of one group, as ranks of a fit."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lightning_fabric.plugins.environments.lightning import find_free_network_port


def _ranked(work: Callable[[Path], None], folder: Path, rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    sys.stdout = sys.stderr = (folder / f"log{rank}").open("a", buffering=1)
    for stream in (1, 2):
        os.dup2(sys.stderr.fileno(), stream)
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers = [logging.StreamHandler(sys.stderr)]
    code = 1
    try:
        work(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def in_ranks(work: Callable[[Path], None], folder: Path, ranks: int = 2, seconds: float = 300) -> list[int | None]:
    """Run a function in processes that find each other as ranks, and return how they ended; what they print is in `log0`, ...

    All are ended when the first one fails, or after so many seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, context = find_free_network_port(), multiprocessing.get_context("fork")
    processes = [context.Process(target=_ranked, args=(work, folder, rank, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def succeeded(work: Callable[[Path], None], folder: Path, ranks: int = 2) -> Path:
    """Run a function in ranks, of which none may fail."""
    codes = in_ranks(work, folder, ranks)
    assert codes == [0] * ranks, "\n".join((folder / f"log{rank}").read_text()[-3000:] for rank in range(ranks))
    return folder
