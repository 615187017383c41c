"""How far apart decisions lie, and how a run ends.

Late in a run less changes from one decision to the next, and looking is to cost less. At its end the learning rate goes
down, which no policy that was trained up to a target had to learn.
"""

from loopwright.envs.loop.checks import check_number
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.telemetry import WINDOW

STRETCH = 32  # decisions
UNHEARD = 1000  # losses without an update: more than anybody accumulates, or a GradScaler skips
COOLDOWN = 0.6  # of a run
LEAST_LEVEL = 0.01


def find_spacing(first: int, decisions: int) -> int:
    """Iterations until the next decision after so many: ``first``, and twice as many after every ``STRETCH``."""
    spacing: int = first * 2 ** (decisions // STRETCH)
    return spacing


def count_decisions(first: int, iterations: int) -> int:
    """How many decisions there are in so many iterations."""
    decisions = 0
    while (iterations := iterations - find_spacing(first, decisions)) >= 0:
        decisions += 1
    return decisions


class Pace:
    """When the next decision is due, and when there is something to be done about the updates until then.

    Args:
        first: iterations up to the first decision.

    Attributes:
        ticks: iterations since the last decision.
    """

    def __init__(self, first: int) -> None:
        self.first = self._due = first
        self.ticks = self._idle = 0

    def begin(self, decisions: int, ticks: int, *, busy: bool) -> None:
        """Of so many decisions the last was ``ticks`` ago; ``busy`` is whether every update has to be looked after."""
        self._due, self.ticks = find_spacing(self.first, decisions), ticks
        self._idle = 0 if busy else self._due - WINDOW

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be done about the next update."""
        return self.ticks < self._idle

    @property
    def is_due(self) -> bool:
        """Whether a decision is."""
        return self.ticks >= self._due

    @property
    def measures(self) -> bool:
        """Whether the next update is one of those whose statistics are taken."""
        return self.ticks >= self._due - WINDOW

    def check_heard(self, losses: int) -> None:
        """Raises ``LoopwrightError`` for many more ``losses`` than updates since the last decision."""
        if losses >= UNHEARD + self.ticks:
            raise LoopwrightError(
                f"{losses} losses and {self.ticks} updates: is it another optimizer that makes them? attach to that "
                f"one, and detach() from this"
            )


class Cooldown:
    """The way down to zero, in a line, over the last ``share`` of so many ``steps``; none where these are not known.

    The policy does not see it: it would lead the learning rate up again.

    Raises ``LoopwrightError`` for a share that is none.
    """

    def __init__(self, steps: int | None, share: float) -> None:
        check_number("cooldown", share, "be from 0 to 1", 0, 1)
        self._steps, self._share = steps, share

    def find_level(self, iterations: int, every: int) -> float:
        """What the learning rate is multiplied by for the next ``every`` iterations after so many."""
        if self._steps is None or not self._share:
            return 1.0
        left = 1 - (iterations + every / 2) / self._steps
        return min(1.0, max(LEAST_LEVEL, left / self._share))
