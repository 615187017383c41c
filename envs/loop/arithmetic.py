"""Arithmetic on one number per run: on arrays for ``Many`` runs, on plain floats for ``One``.

An observation is some three hundred operations on single numbers. For a thousand runs an array operation is the way;
for one run it costs twenty times what a float does, and more than the rest of a small training step. So what computes
observations is written once, over the operations below, which agree in everything: infinities and NaN come out as in
IEEE 754, and raise nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Number = Any  # a float, or an array [lanes]; of truth values a bool, or an array of them
Arithmetic = Any  # ``Many``, ``One`` or what computes as they do
Computation = Callable[[Arithmetic, Sequence[Number]], list[Number]]  # of numbers, in that arithmetic


class Many:
    """Numbers are float32 arrays ``[lanes]``. To be used under ``np.errstate(all="ignore")``."""

    log, log2, log10, log1p, exp, exp2 = np.log, np.log2, np.log10, np.log1p, np.exp, np.exp2
    sqrt, rint = np.sqrt, np.rint
    divide, minimum, maximum, sign, absolute = np.divide, np.minimum, np.maximum, np.sign, np.abs
    isnan, isfinite, negate = np.isnan, np.isfinite, np.logical_not
    any = staticmethod(np.any)

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    @staticmethod
    def where(condition: Number, a: Number, b: Number) -> Number:
        """``a`` where the condition holds, elsewhere ``b``."""
        found: Number = np.where(condition, a, b)
        # Of two plain floats numpy makes float64, which would spread: a run would round otherwise than one before it.
        return found.astype(np.float32) if found.dtype == np.float64 else found

    @staticmethod
    def unpack(rows: Number) -> list[Number]:
        """The rows of an array ``[..., lanes]``."""
        return list(rows)

    def evaluate(self, computation: Computation, numbers: Sequence[Number]) -> list[Number]:
        """What a computation makes of the numbers."""
        return computation(self, numbers)

    def fill(self, value: float | bool) -> Number:
        """That value for every run."""
        return np.full(self.lanes, value, bool if isinstance(value, bool) else np.float32)

    def put(self, old: Number, index: Any, new: Any) -> Number:
        """``old`` with other values for the runs ``index``, a mask or positions."""
        old = old.copy()
        old[index] = new
        return old

    def join(self, columns: Sequence[Number]) -> Number:
        """``[lanes, len(columns)]``."""
        found: Number = np.empty((self.lanes, len(columns)), np.float32)
        for at, column in enumerate(columns):
            found[:, at] = column
        return found


class One:
    """Numbers are floats, of a single run."""

    isnan, isfinite, log1p, absolute, any = math.isnan, math.isfinite, math.log1p, abs, bool

    @staticmethod
    def unpack(rows: Number) -> list[Number]:
        """The numbers of an array ``[n, 1]``."""
        found: list[Number] = rows[:, 0].tolist()
        return found

    @staticmethod
    def log(x: float) -> float:
        return math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan)

    @staticmethod
    def log2(x: float) -> float:
        return math.log2(x) if x > 0 else (-math.inf if x == 0 else math.nan)

    @staticmethod
    def log10(x: float) -> float:
        return math.log10(x) if x > 0 else (-math.inf if x == 0 else math.nan)

    @staticmethod
    def exp(x: float) -> float:
        return math.exp(x) if x < 709 else math.inf if x == x else x

    @staticmethod
    def exp2(x: float) -> float:
        return math.exp2(x) if x < 1023 else math.inf if x == x else x

    @staticmethod
    def rint(x: float) -> float:
        return float(round(x)) if math.isfinite(x) else x

    @staticmethod
    def sqrt(x: float) -> float:
        return math.sqrt(x) if x >= 0 else math.nan

    @staticmethod
    def where(condition: bool, a: float, b: float) -> float:
        return a if condition else b

    @staticmethod
    def divide(a: float, b: float) -> float:
        return a / b if b else (math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b))

    @staticmethod
    def minimum(a: float, b: float) -> float:
        return a if a < b or a != a else b

    @staticmethod
    def maximum(a: float, b: float) -> float:
        return a if a > b or a != a else b

    @staticmethod
    def sign(x: float) -> float:
        return (x > 0) - (x < 0) if x == x else x

    @staticmethod
    def negate(x: bool) -> bool:
        return not x

    def evaluate(self, computation: Computation, numbers: Sequence[Number]) -> list[Number]:
        """What a computation makes of the numbers."""
        return computation(self, numbers)

    def fill(self, value: float | bool) -> Number:
        return value

    def put(self, old: Number, index: Any, new: Any) -> Number:
        return new[0] if isinstance(new, Sequence | np.ndarray) else new

    def join(self, columns: Sequence[Number]) -> Number:
        """``[1, len(columns)]``."""
        return np.array([columns], np.float32)
