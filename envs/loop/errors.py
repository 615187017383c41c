"""The exceptions a user of the package can meet. The commands print their message on one line, without a traceback."""


class LoopwrightError(ValueError):
    """Something the caller gave is not acceptable; the message names the value and what is accepted."""


class UnknownNameError(LoopwrightError):
    """A name that is not registered: a task, family, suite, knob set or algorithm."""

    def __init__(self, kind: str, name: object, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(known)}")


class UncalibratedTaskError(LoopwrightError):
    """A task without a target cannot be an episode: nothing would say when it is over."""


class InvalidActionError(LoopwrightError):
    """An action that is not finite, has the wrong shape or lies outside the action space."""


class BundleError(LoopwrightError):
    """A saved policy that is damaged, altered, or made for another observation or knob set."""


class CheckpointError(LoopwrightError):
    """A training's checkpoint that is damaged, altered, or made by another configuration or version."""


class LedgerError(LoopwrightError):
    """An audit log that is missing, was altered, or cannot be executed again."""


class LedgerExistsError(LedgerError):
    """There is an audit log of that name already, which is never overwritten."""


class DataError(LoopwrightError):
    """Data that is not there, not readable, or not what it was: the message says what to install or delete."""
