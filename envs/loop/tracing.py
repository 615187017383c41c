"""Traced: an arithmetic that writes down, as C, what is to be computed of one run.

Of a single run an observation is some six hundred operations on numbers, which Python takes one by one. What is written
over an ``Arithmetic`` can as well be run once on expressions; compiled, the statements that come of it give the numbers
that ``One`` gives, bit for bit: the same operations on the same doubles, by the C library that Python uses itself.
"""

import math
from collections.abc import Sequence

from loopwright.envs.loop.arithmetic import Number


class Expression:
    """A number, or a truth value, that is known only when the program runs."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, xp: "Traced", name: str, *, truth: bool) -> None:
        self.name, self.truth = name, truth
        self._xp = xp

    def __bool__(self) -> bool:
        raise TypeError("what is traced has no value yet: choose by ``where``")

    def __add__(self, other: Number) -> "Expression":
        return self._xp.note("{} + {}", self, other)

    def __radd__(self, other: Number) -> "Expression":
        return self._xp.note("{} + {}", other, self)

    def __sub__(self, other: Number) -> "Expression":
        return self._xp.note("{} - {}", self, other)

    def __rsub__(self, other: Number) -> "Expression":
        return self._xp.note("{} - {}", other, self)

    def __mul__(self, other: Number) -> "Expression":
        return self._xp.note("{} * {}", self, other)

    def __rmul__(self, other: Number) -> "Expression":
        return self._xp.note("{} * {}", other, self)

    def __truediv__(self, other: Number) -> "Expression":
        return self._xp.note("{} / (double){}", self, other)

    def __rtruediv__(self, other: Number) -> "Expression":
        return self._xp.note("{} / (double){}", other, self)

    def __rpow__(self, other: Number) -> "Expression":
        return self._xp.note("pow({}, {})", other, self)

    def __neg__(self) -> "Expression":
        return self._xp.note("-{}", self)

    def __lt__(self, other: Number) -> "Expression":
        return self._xp.note("{} < {}", self, other, truth=True)

    def __le__(self, other: Number) -> "Expression":
        return self._xp.note("{} <= {}", self, other, truth=True)

    def __gt__(self, other: Number) -> "Expression":
        return self._xp.note("{} > {}", self, other, truth=True)

    def __ge__(self, other: Number) -> "Expression":
        return self._xp.note("{} >= {}", self, other, truth=True)

    def __eq__(self, other: Number) -> "Expression":  # type: ignore[override]
        return self._xp.note("{} == {}", self, other, truth=True)

    def __ne__(self, other: Number) -> "Expression":  # type: ignore[override]
        return self._xp.note("{} != {}", self, other, truth=True)

    def __and__(self, other: Number) -> "Expression":
        return self._xp.note("{} & {}", self, other, truth=True)

    def __or__(self, other: Number) -> "Expression":
        return self._xp.note("{} | {}", self, other, truth=True)

    __rand__, __ror__ = __and__, __or__


class Traced:
    """Numbers are expressions, or plain floats where they hang on nothing. The functions are those of ``One``.

    Attributes:
        statements: what has been written down so far, each of which names what it computes.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []
        self._known: dict[str, Expression] = {}

    def read(self, text: str, *, truth: bool = False) -> Expression:
        """What a C expression gives, at this place in the program."""
        return self._name(text, truth)

    def note(self, form: str, *parts: Number, truth: bool = False) -> Expression:
        """A name for what is computed of ``parts``; the same for the same."""
        text = form.format(*map(write_number, parts))
        if text not in self._known:
            self._known[text] = self._name(text, truth)
        return self._known[text]

    def _name(self, text: str, truth: bool) -> Expression:
        name = f"v{len(self.statements)}"
        self.statements.append(f"const {'int' if truth else 'double'} {name} = {text};")
        return Expression(self, name, truth=truth)

    def log(self, x: Number) -> Expression:
        return self.note("log({})", x)

    def log2(self, x: Number) -> Expression:
        return self.note("log2({})", x)

    def log10(self, x: Number) -> Expression:
        return self.note("log10({})", x)

    def log1p(self, x: Number) -> Expression:
        return self.note("log1p({})", x)

    def exp(self, x: Number) -> Expression:
        return self.note("{0} < 709 ? exp({0}) : {0} == {0} ? INFINITY : {0}", x)

    def exp2(self, x: Number) -> Expression:
        return self.note("{0} < 1023 ? exp2({0}) : {0} == {0} ? INFINITY : {0}", x)

    def sqrt(self, x: Number) -> Expression:
        return self.note("sqrt({})", x)

    def rint(self, x: Number) -> Expression:
        return self.note("rint({})", x)

    def absolute(self, x: Number) -> Expression:
        return self.note("fabs({})", x)

    def sign(self, x: Number) -> Expression:
        return self.note("{0} == {0} ? ({0} > 0) - ({0} < 0) : {0}", x)

    def divide(self, a: Number, b: Number) -> Expression:
        return self.note("{} / (double){}", a, b)

    def minimum(self, a: Number, b: Number) -> Expression:
        return self.note("{0} < {1} || {0} != {0} ? {0} : {1}", a, b)

    def maximum(self, a: Number, b: Number) -> Expression:
        return self.note("{0} > {1} || {0} != {0} ? {0} : {1}", a, b)

    def isnan(self, x: Number) -> Expression:
        return self.note("{0} != {0}", x, truth=True)

    def isfinite(self, x: Number) -> Expression:
        return self.note("isfinite({})", x, truth=True)

    def negate(self, x: Number) -> Expression:
        return self.note("!{}", x, truth=True)

    def any(self, x: Number) -> bool:
        """Whether it may hold: it may."""
        return True

    def where(self, condition: Number, a: Number, b: Number) -> Expression:
        truth = all(each.truth if isinstance(each, Expression) else isinstance(each, bool) for each in (a, b))
        return self.note("{} ? {} : {}", condition, a, b, truth=truth)

    def unpack(self, rows: Sequence[Number]) -> list[Number]:
        return list(rows)

    def fill(self, value: float | bool) -> Number:
        return value


def write_number(value: Number) -> str:
    """A number in C: by its name, or exactly as it is."""
    if isinstance(value, Expression):
        return value.name
    if isinstance(value, bool):
        return str(int(value))
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"({float(value).hex()})"
