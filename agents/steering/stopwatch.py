"""Stopwatch: what an update costs in a user's loop, beside the forward and backward passes that lead to it."""

import time
from collections.abc import Mapping, Sequence
from statistics import median

import torch

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan
from loopwright.envs.loop.update_rules import Parts, take_step

TIMED = 3  # of every rule, the fastest counts
WHOLE = 2**20  # parameters up to which a rule is timed on all of them at once; above it, shape by shape
# What an update by each rule takes as a multiple of adamw's where it cannot be timed: the median over small networks.
OF_ADAMW = {"sgd": 0.9, "adamw": 1.0, "sinkgd": 6.0, "muon": 14.0}


class Stopwatch:
    """Takes the time of some updates and of what lies between them.

    Args:
        rule: the update rule of a plan that the loop's optimizer is, or is most like.
        device: what the loop computes on.
    """

    def __init__(self, rule: str, device: torch.device) -> None:
        self.rule, self.device = rule, device
        self.passes: list[float] = []  # seconds
        self.updates: list[float] = []
        self._since: float | None = None  # when what is timed began

    def begin(self) -> None:
        """What is to be timed begins: a pass, or an update."""
        self._since = read_clock(self.device)

    def end(self, found: list[float]) -> None:
        """It is over; its seconds go to ``passes`` or ``updates``. Nothing, where none had begun."""
        if self._since is not None:
            found.append(read_clock(self.device) - self._since)
        self._since = None

    def interrupt(self) -> None:
        """What is under way is not timed."""
        self._since = None

    def read_prices(self, seconds: Mapping[str, float] | None = None) -> dict[str, float] | None:
        """Passes over a microbatch that an update by each rule takes; None where there was nothing to time.

        ``seconds`` of an update by each rule, where they were timed apart (``time_rules``).
        """
        if not self.passes or not (seconds or self.updates):
            return None
        if seconds is None:
            unit = median(self.updates) / OF_ADAMW[self.rule]
            seconds = {name: unit * typical for name, typical in OF_ADAMW.items()}
        return {name: seconds[name] / max(median(self.passes), 1e-9) for name in OPTIMIZERS}


def make_stopwatch(prices: Mapping[str, float] | str | None, rule: str, device: torch.device) -> Stopwatch | None:
    """What ``prices`` ask for. Raises ``LoopwrightError`` for a word that is not "measured"."""
    if isinstance(prices, str) and prices != "measured":
        raise LoopwrightError(f'prices must be "measured", None or passes by the name of a rule; got {prices!r}')
    return Stopwatch(rule, device) if prices == "measured" else None


def read_clock(device: torch.device) -> float:
    """Seconds, once all work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_rules(parts: Parts) -> dict[str, float]:
    """Seconds of one update by each rule, on copies of what it works on."""
    size = sum(p.numel() for p in parts.weights)
    pieces = [parts] if size <= WHOLE else _divide(parts)
    found = dict.fromkeys(OPTIMIZERS, 0.0)
    for piece in pieces:
        copies = Parts(*([tensor.detach().clone() for tensor in column] for column in piece))
        device = copies.weights[0].device
        for rule in OPTIMIZERS:
            plan, times = LoopPlan(rule, 1e-6), []
            for _ in range(TIMED):
                begun = read_clock(device)
                take_step(plan, copies, 0.5, 0.5)
                times.append(read_clock(device) - begun)
            found[rule] += min(times)
    return found


def _divide(parts: Parts) -> Sequence[Parts]:
    """One piece for each shape."""
    shapes: dict[torch.Size, list[int]] = {}
    for number, parameter in enumerate(parts.weights):
        shapes.setdefault(parameter.shape, []).append(number)
    return [Parts(*([column[n] for n in numbers] for column in parts)) for numbers in shapes.values()]
