"""Runs one command's module: its ``Config`` is parsed from the command line, its ``main`` does the work."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import tyro

from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import FULL
from loopwright.scripts.ending import run_to_end
from loopwright.scripts.limits import check_options


def compile_where_possible() -> bool:
    """Whether to fuse the inner loop: True where a C++ compiler is found; otherwise says what that costs."""
    if not has_compiler():
        print("no C++ compiler (g++ or clang++) found: the inner loop runs several times slower", file=sys.stderr)
    return has_compiler()


@dataclass
class Workers:
    """The options of a command that divides its work."""

    workers: int = 1
    """Processes to divide the work among, each with one thread."""
    backend: Literal["local", "ray"] = "local"
    """Where they are: on this machine, or on a Ray cluster (the extra ray); audit logs stay where they are written."""
    address: str = ""
    """Of the Ray cluster, such as auto; empty starts one on this machine."""

    def working(self) -> AbstractContextManager[None]:
        """What they work within: nothing on this machine, or a Ray cluster."""
        if self.backend == "ray":
            from loopwright.agents.judging.workers import working_on_ray  # slow to load, and for some commands only

            return working_on_ray(self.address)
        if self.address:
            raise LoopwrightError(f"address is that of a Ray cluster, and needs --backend ray; got {self.address!r}")
        return nullcontext()


def run(module: ModuleType, arguments: list[str] | None = None) -> int:
    """The exit status: what ``main`` returns, 2 for what cannot be, and what ``run_to_end`` says."""
    return run_to_end(lambda: _run(module, sys.argv[1:] if arguments is None else arguments))


def _run(module: ModuleType, arguments: list[str]) -> int:
    name = Path(str(module.__file__)).stem
    try:
        # A command whose defaults depend on what is typed has a function that gives them.
        given = {"default": module.defaults(arguments)} if hasattr(module, "defaults") else {}
        config = tyro.cli(module.Config, prog=f"loopwright {name}", description=module.__doc__, args=arguments, **given)
        check_options(config)
        status: int | None = module.main(config)
    except LoopwrightError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        print(f"error: {problem.strerror}: {problem.filename or 'while writing'}", file=sys.stderr)
        return 2
    return status or 0
