"""What TensorBoard's own thread meets is told in a line: its log lies on a disk that may be full."""

import sys
import threading

from loopwright.envs.loop.storage import FULL

_before = threading.excepthook  # who hears of all else


def tell_in_a_line() -> None:
    """From now on a full disk that the thread meets is a line, not a traceback; whatever is logged next raises it."""
    global _before
    if threading.excepthook is not _tell:
        _before, threading.excepthook = threading.excepthook, _tell


def _tell(met: threading.ExceptHookArgs) -> None:
    problem = met.exc_value
    of_tensorboard = type(met.thread).__module__.startswith("tensorboard.")
    if of_tensorboard and isinstance(problem, OSError) and problem.errno in FULL:
        sys.stderr.write(f"TensorBoard: cannot write its log: {problem.strerror}\n")
    else:
        _before(met)
