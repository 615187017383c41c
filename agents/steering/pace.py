"""How far apart decisions lie, and how a run ends.

Late in a run less changes from one decision to the next, and looking is to cost less. At its end the learning rate goes
down, which no policy that was trained up to a target had to learn.
"""

from collections.abc import Mapping

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

    Attributes:
        level: what the learning rate stands at, as a share of what the policy has chosen.

    Raises ``LoopwrightError`` for a share that is none.
    """

    def __init__(self, steps: int | None, share: float) -> None:
        check_number("cooldown", share, "be from 0 to 1", 0, 1)
        self.level = 1.0
        self._steps, self._share = steps, share

    def step(self, iterations: int, every: int) -> float:
        """The level for the next ``every`` iterations after so many."""
        if self._steps is not None and self._share:
            left = 1 - (iterations + every / 2) / self._steps
            self.level = min(1.0, max(LEAST_LEVEL, left / self._share))
        return self.level

    def undo(self, plan: Mapping[str, float]) -> dict[str, float]:
        """A plan that holds, as the policy has chosen it."""
        return {**plan, "learning_rate": plan["learning_rate"] / self.level}
