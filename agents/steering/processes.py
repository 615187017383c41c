"""Several processes that train together: what they judge by is the same, and the first decides for all."""

from collections.abc import Iterable

import torch
from torch import distributed


def _train_together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the first, or only one, of those that train together."""
    return not _train_together() or distributed.get_rank() == 0


def _share(numbers: Iterable[float], device: torch.device) -> torch.Tensor:
    """The numbers where the processes' backend can take them: gloo from the CPU, NCCL from the ``device`` alone."""
    known = distributed.get_backend()  # "undefined" where none was named: then there is one for each kind of device
    from_cpu = known in ("mpi", "undefined") or "gloo" in known
    return torch.tensor(list(numbers), dtype=torch.float64, device="cpu" if from_cpu else device)


def follow_first(chosen: dict[str, float], device: torch.device) -> dict[str, float]:
    """Of several processes that train together the first decides, and the others follow."""
    if not _train_together():
        return chosen
    values = _share(chosen.values(), device)
    distributed.broadcast(values, 0)
    return dict(zip(chosen, values.tolist(), strict=True))


def average_over_processes(numbers: list[float], device: torch.device) -> list[float]:
    """The mean of each over the processes that train together: what all of them judge by has to be the same."""
    if not _train_together():
        return numbers
    values = _share(numbers, device)
    distributed.all_reduce(values)
    means: list[float] = (values / distributed.get_world_size()).tolist()
    return means
