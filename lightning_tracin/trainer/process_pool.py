"""Runs a function on many inputs, optionally in several processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch

from lightning_tracin.attribution.progress import tracked
from lightning_tracin.errors import TracInError

#: Variables by which torch, the libraries under NumPy, and tokenizers choose their number of threads.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def own_cores() -> int:
    """The number of cores that this process may use: fewer than the machine has, where it is restricted to some.

    Example:
        >>> 1 <= own_cores() <= os.cpu_count()
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[..., object], inputs: Sequence[tuple[Any, ...]], workers: int, description: str, progress: bool
) -> None:
    """Call a function on each input, for its side effects.

    One worker runs in this process; several workers are fresh processes that share the cores. After the first error, calls that
    have started are finished and the others are cancelled.

    Args:
        function: with several workers, a module-level function, not a lambda.
        inputs: the positional arguments of each call.
        workers: maximum number of processes.
        description: of the progress bar.
        progress: whether to show a progress bar.

    Raises:
        TracInError: the function or its inputs cannot be sent to another process.

    Example:
        >>> run_all(print, [("first", 1), ("second", 2)], workers=1, description="calls", progress=False)
        first 1
        second 2
    """
    workers = min(workers, len(inputs))
    with tracked(progress and bool(inputs), total=len(inputs), desc=description) as bar:
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
        # Not joblib's loky: its workers outlive a killed parent, and calls still start after an error.
        threads = max(1, own_cores() // workers)
        context = multiprocessing.get_context("spawn")
        with (
            _threads_of_children(threads),
            ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,)) as pool,
        ):
            futures = [pool.submit(function, *one) for one in inputs]
            try:
                for done in as_completed(futures):
                    done.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


@contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Limit the threads of processes that are started in this context; libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    for name, value in before.items():
        if value is None or not value.isdigit() or int(value) > threads:
            os.environ[name] = str(threads)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin(threads: int) -> None:
    """Set up a worker: limit its threads, and end it when its parent ends, even if that is killed."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
