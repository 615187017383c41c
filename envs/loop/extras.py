"""Optional dependencies: imported where they are used, and named with the extra that installs them."""

from importlib import import_module
from typing import Any

from loopwright.envs.loop.errors import LoopwrightError


def import_extra(module: str, extra: str) -> Any:
    """The module. Raises ``LoopwrightError`` saying what to install where it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise LoopwrightError(f"this needs {module}; pip install 'loopwright[{extra}]'") from missing
