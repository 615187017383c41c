"""What TensorBoard's own thread meets is told in a line: its log lies on a disk that may be full."""

import sys
import threading

from loopwright.envs.loop.storage import FULL

_before = threading.excepthook


def tell_in_a_line() -> None:
    """From now on a full disk that the thread meets is a line, not a traceback; whatever is logged next raises it."""
    threading.excepthook = _tell


def _tell(met: threading.ExceptHookArgs) -> None:
    problem = met.exc_value
    of_tensorboard = type(met.thread).__module__.startswith("tensorboard.")
    if of_tensorboard and isinstance(problem, OSError) and problem.errno in FULL:
        sys.stderr.write(f"TensorBoard: cannot write its log: {problem.strerror}\n")
    else:
        _before(met)
