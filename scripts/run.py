"""Runs one command's module: its ``Config`` is parsed from the command line, its ``main`` does the work."""

import sys
from types import ModuleType

import tyro

from loopwright.inner_tasks.errors import LoopwrightError


def run(module: ModuleType, arguments: list[str] | None = None) -> int:
    """The exit status: 0, 2 for something the user asked for that cannot be, 130 for Ctrl-C."""
    name = module.__name__.rpartition(".")[2]
    config = tyro.cli(module.Config, prog=f"loopwright {name}", description=module.__doc__, args=arguments)
    try:
        module.main(config)
    except LoopwrightError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
