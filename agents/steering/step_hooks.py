"""What is called before and after an optimizer's ``step``, however that is made."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class StepHooks:
    """Calls ``before`` and ``after`` once around every step, as hooks of the optimizer.

    PyTorch calls the hooks of an optimizer twice where its class overrides ``step`` and calls its parent's: the inner
    call is not heard.
    """

    def __init__(self, optimizer: Optimizer, before: Callable[..., Any], after: Callable[..., None]) -> None:
        self._before, self._after, self._depth = before, after, 0
        self.handles: list[Any] = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    def reset(self) -> None:
        """No step is being made: one may have ended in an error."""
        self._depth = 0

    def remove(self) -> None:
        """Take them away."""
        for handle in self.handles:
            handle.remove()

    def _enter(self, *arguments: Any) -> Any:
        self._depth += 1
        return self._before(*arguments) if self._depth == 1 else None

    def _leave(self, *arguments: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth == 0:
            self._after(*arguments)


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
