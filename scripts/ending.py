"""How a command ends before it is done: SIGTERM and SIGHUP are to it what Ctrl-C is."""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN = 0.1  # s


class EndedBySignal(KeyboardInterrupt):
    """Raised by a signal that asks the process to end, as Ctrl-C is.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_to_end(work: Callable[[], int]) -> int:
    """The exit status of ``work``: its own, or 130 where Ctrl-C ended it, 143 for SIGTERM, 129 for SIGHUP.

    What fails while it ends, as a library may that had only begun, is said, and changes nothing.
    """
    try:
        with ending_in_order():
            return work()
    except KeyboardInterrupt as end:
        return _say_ended(end)
    except Exception as problem:
        cause = _find_end(problem)
        if cause is None:
            raise
        print(f"while ending: {type(problem).__name__}: {problem}", file=sys.stderr)
        return _say_ended(cause)


def _say_ended(end: KeyboardInterrupt) -> int:
    print("interrupted", file=sys.stderr)
    return 128 + (end.number if isinstance(end, EndedBySignal) else signal.SIGINT)


def _find_end(problem: BaseException | None) -> KeyboardInterrupt | None:
    """What asked for the end in whose course the ``problem`` arose."""
    while problem is not None and not isinstance(problem, KeyboardInterrupt):
        problem = problem.__context__
    return problem


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within it a signal to end raises ``EndedBySignal``, once; one that is ignored (``nohup``) still is.

    Where Python calls back and swallows whatever is raised (at a fork, in a finalizer), it is raised again soon.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set what a signal does
        return

    def end(number: int, frame: FrameType | None) -> None:
        for other in before:  # whoever asks twice would interrupt the saving
            signal.signal(other, signal.SIG_IGN)
        raise EndedBySignal(number)

    def listen() -> None:
        for number in before:
            signal.signal(number, end)

    def ask_again(swallowed: "sys.UnraisableHookArgs") -> None:
        if isinstance(swallowed.exc_value, EndedBySignal):
            listen()
            threading.Timer(AGAIN, _thread.interrupt_main, [swallowed.exc_value.number]).start()
        else:
            report(swallowed)

    before = {number: signal.getsignal(number) for number in ENDING if signal.getsignal(number) == signal.SIG_DFL}
    report = sys.unraisablehook
    listen()
    sys.unraisablehook = ask_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)
