"""Workers: processes of one thread each that work for this one, and end when it does, however it ends."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.parallel import LokyBackend

Result = TypeVar("Result")
LOOKED_EVERY = 0.5  # seconds between a worker's looks for the process it works for


def work_apart(function: Callable[..., Result], parts: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """What ``function`` makes of the arguments in each of ``parts``, as it is found, by so many ``workers``.

    One worker is this process. The others are killed where the iterator is closed, or fails, before its end.
    """
    if workers == 1:
        for part in parts:
            yield function(*part)
        return
    work = (delayed(function)(*part) for part in parts)
    found = Parallel(n_jobs=workers, backend=_Watched(), return_as="generator_unordered")(work)
    try:
        for result in found:  # noqa: UP028  (whoever closes this does not close that without the filter below)
            yield result
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of results that nobody took
            found.close()


class _Watched(LokyBackend):  # type: ignore[misc]
    """Prepares its processes when they start: one that is killed before their first part leaves them waiting for it."""

    def configure(self, *arguments: Any, **options: Any) -> Any:
        return super().configure(*arguments, initializer=_prepare, initargs=(os.getpid(),), **options)


def _prepare(parent: int) -> None:
    """Make this process a worker."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """End this process when its parent has been killed: nobody wants its results any more."""
    while os.getppid() == parent:
        time.sleep(LOOKED_EVERY)
    os._exit(1)
