"""Compiled: the arithmetic of one run, whose longer computations are compiled once a process, if it can be.

The numbers are those of ``One``, bit for bit (``tracing``), in a small part of the time.
"""

import ctypes
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from loopwright.envs.loop.arithmetic import Computation, Number, One
from loopwright.envs.loop.tracing import Traced, write_number

# Neither may the compiler reorder, nor join a product and a sum: so the doubles are those of Python.
_OPTIONS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w")
_PATIENCE = 60  # seconds


@lru_cache
def find_c_compiler() -> str | None:
    """The path of a C compiler, or None."""
    return next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)


@cache
def load_c(source: str) -> ctypes.PyDLL | None:
    """The functions of a C ``source``; None where there is no compiler, or, with a warning, one that does not do."""
    compiler = find_c_compiler()
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="loopwright-") as folder:
        code, library = Path(folder, "code.c"), Path(folder, "code.so")
        code.write_text(source)
        try:
            command = [compiler, *_OPTIONS, str(code), "-o", str(library), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
            return ctypes.PyDLL(str(library))
        except (OSError, subprocess.SubprocessError) as problem:
            said = (getattr(problem, "stderr", None) or str(problem))[:300]
            warnings.warn(f"{compiler} is of no use, and Python does what it was to compile: {said}", stacklevel=2)
            return None


class CFunction:
    """A computation of numbers as a C function, which finds them in its memory and leaves there what it makes of them.

    Args:
        statements: in C, over the doubles ``m[0]`` to ``m[size - 1]``.

    Attributes:
        memory: those numbers.
        found: whether there is such a function; without a compiler there is none.
    """

    def __init__(self, statements: Sequence[str], size: int) -> None:
        library = load_c("\n".join(("#include <math.h>", "void run(double *m) {", *statements, "}")))
        self.found = library is not None
        self.memory = (ctypes.c_double * size)()
        if library is not None:
            self._run, self._address = library.run, ctypes.c_void_p(ctypes.addressof(self.memory))

    def run(self) -> None:
        self._run(self._address)


class Compiled(One):
    """``One`` that compiles what is computed again and again."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Computation, int], CFunction] = {}

    def evaluate(self, computation: Computation, numbers: Sequence[Number]) -> list[Number]:
        count = len(numbers)
        function = self._functions.get((computation, count))
        if function is None:
            function = self._functions[computation, count] = CFunction(*_trace(computation, count))
        if not function.found:
            return super().evaluate(computation, numbers)
        function.memory[:count] = list(numbers)
        function.run()
        found: list[Number] = function.memory[count:]
        return found


@cache
def _trace(computation: Computation, count: int) -> tuple[list[str], int]:
    """Statements that make of ``count`` numbers what the computation does, and how many numbers they are about."""
    xp = Traced()
    found = computation(xp, [xp.read(f"m[{at}]") for at in range(count)])
    return [*xp.statements, *write_results(found, count)], count + len(found)


def write_results(numbers: Sequence[Number], first: int) -> list[str]:
    """Statements that leave ``numbers`` in a function's memory, from its place ``first`` on."""
    return [f"m[{first + at}] = {write_number(number)};" for at, number in enumerate(numbers)]
