"""Workers: processes of one thread each that work for this one, and end when it does, however it ends."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals.loky import process_executor
from joblib.parallel import LokyBackend

from loopwright.envs.loop.checks import say_briefly
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.extras import import_extra

Result = TypeVar("Result")
RETRIES = 3  # of a part whose worker is lost, on Ray
_on_ray = False
LOOKED_EVERY = 0.5  # seconds between a worker's looks for the process it works for
MOST_GROWTH = 4 * 10**9  # bytes that a worker may grow by before it is started anew, and compiles all its loops again


def work_apart(function: Callable[..., Result], parts: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """What ``function`` makes of the arguments in each of ``parts``, as it is found, by so many ``workers``.

    One worker is this process. The others are killed where the iterator is closed, or fails, before its end. Within
    ``working_on_ray`` they are workers of a Ray cluster, so many at a time.
    """
    if _on_ray:
        yield from _work_on_ray(function, parts, workers)
        return
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


def works_here(workers: int) -> bool:
    """Whether so many workers are this process alone."""
    return workers == 1 and not _on_ray


@contextmanager
def working_on_ray(address: str = "") -> Iterator[None]:
    """Within it parts are worked on by a Ray cluster: the one at ``address``, or one that is started on this machine.

    Raises ``LoopwrightError`` where the extra is missing or there is no cluster at the address.
    """
    global _on_ray
    ray = import_extra("ray", "ray")
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        raise LoopwrightError(f"cannot reach Ray at {address or 'this machine'}: {say_briefly(problem)}") from problem
    _on_ray = True
    try:
        yield
    finally:
        _on_ray = False
        ray.shutdown()


def _work_on_ray(function: Callable[..., Result], parts: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """A part of a worker that is lost is done again by another; its results come once, when it has ended."""
    ray = import_extra("ray", "ray")
    task = ray.remote(max_retries=RETRIES, num_cpus=1)(_work_for)
    left, working = iter(parts), list[Any]()
    try:
        while True:
            working += [task.remote(function, part) for part in islice(left, workers - len(working))]
            if not working:
                return
            (done, *_), working = ray.wait(working)
            yield ray.get(done)
    finally:
        for reference in working:
            ray.cancel(reference, force=True)


def _work_for(function: Callable[..., Result], part: tuple[Any, ...]) -> Result:
    """What a worker of a cluster does."""
    torch.set_num_threads(1)
    return function(*part)


class _Watched(LokyBackend):  # type: ignore[misc]
    """Prepares its processes when they start: one that is killed before their first part leaves them waiting for it."""

    def configure(self, *arguments: Any, **options: Any) -> Any:
        return super().configure(*arguments, initializer=_prepare, initargs=(os.getpid(),), **options)


def _prepare(parent: int) -> None:
    """Make this process a worker."""
    process_executor._MAX_MEMORY_LEAK_SIZE = MOST_GROWTH  # no option: 300 MB, which three compiled shapes exceed
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """End this process when its parent has been killed: nobody wants its results any more."""
    while os.getppid() == parent:
        time.sleep(LOOKED_EVERY)
    os._exit(1)
