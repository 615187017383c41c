"""Workers: processes of one thread each that work for this one, and end when it does, however it ends."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed

Result = TypeVar("Result")
LOOKED_EVERY = 0.5  # seconds between a worker's looks for the process it works for
_watching = threading.Event()


def work_apart(function: Callable[..., Result], parts: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """What ``function`` makes of the arguments in each of ``parts``, as it is found, by so many ``workers``.

    One worker is this process. The others are killed where the iterator is closed, or fails, before its end.
    """
    if workers == 1:
        for part in parts:
            yield function(*part)
        return
    work = (delayed(_work_for)(os.getpid(), function, part) for part in parts)
    found = Parallel(n_jobs=workers, return_as="generator_unordered")(work)
    try:
        for result in found:  # noqa: UP028  (whoever closes this does not close that without the filter below)
            yield result
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of results that nobody took
            found.close()


def _work_for(parent: int, function: Callable[..., Result], part: tuple[Any, ...]) -> Result:
    """What a worker does."""
    if not _watching.is_set():
        _watching.set()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    return function(*part)


def _end_with(parent: int) -> None:
    """End this process when its parent has been killed: nobody wants its results any more."""
    while os.getppid() == parent:
        time.sleep(LOOKED_EVERY)
    os._exit(1)
