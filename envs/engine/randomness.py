"""Counter-based random numbers: a hash of (key, counter, position) in tensor arithmetic, without generator state.

Which samples a lane may read at a tick is a pure function of its seed and a counter. So a snapshot of a lane needs no
generator, a replay is exact, and a lane's data order does not depend on its neighbours.
"""

import torch

_MASK = 0xFFFFFFFF
_TRAIN_STREAM, _CONTROL_STREAM = 0x2545F491, 0x1B873593
CANDIDATES = 3  # drawn per sample of a microbatch, for ``order`` to choose from; "shuffled" takes the first


def _mix(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash (two multiply-xorshift rounds) on int64 tensors holding values in [0, 2^32)."""
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & _MASK
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & _MASK
    return value ^ (value >> 16)


def make_key(seeds: torch.Tensor) -> torch.Tensor:
    """Lane keys ``[lanes]`` from seeds ``[lanes]`` int64: neighbouring seeds give unrelated streams."""
    return _mix((_mix(seeds & _MASK) + ((seeds >> 32) & _MASK)) & _MASK)


def _indices(key: torch.Tensor, counter: torch.Tensor, count: int, population: int, stream: int) -> torch.Tensor:
    lane = _mix((key + _mix((counter + stream) & _MASK)) & _MASK)
    position = torch.arange(1, count + 1, device=key.device) * 0x9E3779B1
    return (_mix((lane[:, None] + position) & _MASK) * population) >> 32


def draw_candidates(key: torch.Tensor, cursor: torch.Tensor, count: int, population: int) -> list[torch.Tensor]:
    """Training samples that microbatch number ``cursor`` may read: ``CANDIDATES`` tensors ``[lanes, count]``.

    Uniform in [0, population), drawn with replacement.
    """
    drawn = _indices(key, cursor, CANDIDATES * count, population, _TRAIN_STREAM)
    return list(torch.split(drawn, count, dim=1))


def draw_control_samples(key: torch.Tensor, tick: torch.Tensor, count: int, population: int) -> torch.Tensor:
    """Control samples ``[lanes, count]`` looked at after ``tick`` ticks; a stream apart from the training samples."""
    return _indices(key, tick, count, population, _CONTROL_STREAM)
