"""The same work on many inputs, in processes of their own where that is asked for."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch
from tqdm.auto import tqdm

from lightning_tracin.errors import TracInError


def run_all(
    function: Callable[..., object], inputs: Sequence[tuple[Any, ...]], workers: int, description: str, progress: bool
) -> None:
    """Call a function on each of the inputs; what it finds it writes to files.

    With one worker everything runs in this process; with more, in fresh processes that share the cores. The first error ends
    the series: what has begun is finished, what has not is dropped.

    Args:
        function: of a module, not a lambda, where there are several workers.
        inputs: its positional arguments.
        workers: processes at most.
        description: of the bar.
        progress: whether a bar is shown.

    Raises:
        TracInError: function or inputs cannot be sent to another process.
    """
    workers = min(workers, len(inputs))
    with tqdm(total=len(inputs), desc=description, disable=not progress or not inputs) as bar:
        if workers <= 1:
            for one in inputs:
                function(*one)
                bar.update()
            return
        try:
            pickle.dumps((function, inputs))
        except Exception as error:
            raise TracInError(
                f"The factory cannot be sent to other processes ({error}); make it a function of a module, or use workers=1."
            ) from error
        # Not joblib's loky: tried, its workers outlive a killed parent, and inputs still start after an error.
        threads = max(1, (os.cpu_count() or 1) // workers)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
            futures = [pool.submit(function, *one) for one in inputs]
            try:
                for done in as_completed(futures):
                    done.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _begin(threads: int) -> None:
    """In each process: its share of the cores; and it ends when the one that started it does, even if that one is killed."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
