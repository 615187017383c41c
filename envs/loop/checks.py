"""Checks of numbers that somebody gives: of the right kind, and within what is accepted, which NaN never is."""

import math
import sys
from collections.abc import Sized

import numpy as np
import torch

from loopwright.envs.loop.errors import LoopwrightError

# More than anybody has use for, and far less than what a machine gives way under.
MOST_LANES, MOST_SAMPLES, MOST_TICKS, MOST_THREADS = 2**14, 2**20, 2**16, 256
MOST_SEED = 2**32 - 1  # that NumPy takes
_REAL = int | float | np.integer | np.floating
ABOVE_ZERO = math.ulp(0.0), sys.float_info.max  # and finite


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ``LoopwrightError`` unless ``value`` is a whole number from ``least`` to ``most``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise LoopwrightError(f"{name} must be a whole number, got {say_value(value)}")
    if value < least:
        raise LoopwrightError(f"{name} must be {least} or more, got {say_value(value)}")
    if most is not None and value > most:
        raise LoopwrightError(f"{name} must be {most} or less, got {say_value(value)}")


def check_counts(**counts: tuple[int | None, int]) -> None:
    """``check_whole`` of counts, which may be None, each with the least that goes with it."""
    for name, (value, least) in counts.items():
        if value is not None:
            check_whole(name, value, least)


def check_some(name: str, values: Sized) -> None:
    """Raise ``LoopwrightError`` where there is nothing among ``values``."""
    if not len(values):
        raise LoopwrightError(f"{name} is empty; give at least one")


def check_number(name: str, value: object, accepted: str, low: float, high: float) -> None:
    """Raise ``LoopwrightError`` unless ``value`` is a number from ``low`` to ``high``, ``accepted`` in words."""
    if not isinstance(value, _REAL) or isinstance(value, bool) or not low <= value <= high:
        raise LoopwrightError(f"{name} must {accepted}; got {say_value(value)}")


def check_kind(name: str, value: object, kind: type | tuple[type, ...], accepted: str) -> None:
    """Raise ``LoopwrightError`` unless ``value`` is a ``kind``; ``accepted`` says in words what that is."""
    if not isinstance(value, kind):
        raise LoopwrightError(f"{name} must be {accepted}, got {say_value(value)}")


def check_device(name: object) -> None:
    """Raise ``LoopwrightError`` unless torch can compute on the device of that name here."""
    check_kind("device", name, str, "a name, such as 'cpu' or 'cuda:0'")
    if name == "cpu":
        return
    try:
        device = torch.empty(0, device=str(name)).device
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise LoopwrightError(f"device {say_value(name)} is not there: {say_briefly(problem)}") from problem
    if device.type == "meta":
        raise LoopwrightError("device 'meta' does not compute; give 'cpu', or an accelerator such as 'cuda:0'")


def say_briefly(problem: BaseException) -> str:
    """The first line of what somebody else's error says."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def say_value(value: object) -> str:
    """Briefly, on one line; a number of thousands of digits cannot be written out."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of about {round(value.bit_length() * math.log10(2))} digits"
    said = " ".join(repr(value).split())
    return said if len(said) <= 100 else f"{said[:97]}..."
