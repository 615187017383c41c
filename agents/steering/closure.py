"""Optimizers that are given a closure, which makes the gradients within ``step``."""

from collections.abc import Callable
from typing import Any

import torch


def arrive_after_closure(args: Any, kwargs: Any, arrive: Callable[[], None]) -> Any:
    """Call ``arrive`` where there are gradients: at once, or after the closure among the arguments of ``step``.

    Returns what a hook before a step returns: None, or positional and keyword arguments to take instead.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        arrive()
        return None

    def make_gradients() -> Any:
        with torch.enable_grad():
            loss = closure()
        arrive()
        return loss

    return (*args[:1], make_gradients), {name: value for name, value in kwargs.items() if name != "closure"}
