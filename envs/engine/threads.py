"""How many threads compute: one per process, unless a machine is otherwise idle.

The loops here are many small operations, at each of which torch's threads meet. They wait for each other by spinning,
so that one thread that has to share its core holds up all others: beside one busy process on two cores, training with
two threads keeps a third of its speed, with one thread 95 % (docs/experiments.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
