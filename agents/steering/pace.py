"""How far apart decisions lie, and how a run ends.

Late in a run less changes from one decision to the next, and looking is to cost less. At its end the learning rate goes
down, which no policy that was trained up to a target had to learn.
"""

from loopwright.envs.loop.checks import check_number

STRETCH = 32  # decisions
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
