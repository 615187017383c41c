"""Which families a controller is trained on, which draws are held out, and which families it has never seen."""

from dataclasses import dataclass

from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.targets import calibrated_names


@dataclass(frozen=True)
class Suite:
    """Families with a role; its tasks are ``family:seed`` for ``count`` seeds from ``first_seed`` on."""

    name: str
    families: tuple[str, ...]
    first_seed: int
    count: int
    description: str

    def candidates(self) -> list[str]:
        """Names of all tasks of the suite, calibrated or not."""
        seeds = range(self.first_seed, self.first_seed + self.count)
        return [f"{family}:{seed}" for seed in seeds for family in self.families]

    def tasks(self) -> list[str]:
        """Names of the suite's tasks that have a stored target. Raises ``LoopwrightError`` if there are none."""
        known = set(calibrated_names())
        names = [name for name in self.candidates() if name in known]
        if not names:
            raise LoopwrightError(f"suite {self.name!r} has no calibrated task; run: loopwright calibrate")
        return names


GENERATED = ("mixtures", "teachers", "manifolds")
REAL = ("digits-mlp", "digits-conv", "breast-cancer")
_SUITES = {
    suite.name: suite
    for suite in (
        Suite("train", GENERATED, 0, 120, "generated families; what controllers are trained and competitors tuned on"),
        Suite("held-out", GENERATED, 100_000, 4, "the same families, draws nobody trains on"),
        Suite("new", REAL, 0, 2, "real data and a convolutional net; families nobody trains on"),
    )
}


def suites() -> dict[str, Suite]:
    """Every suite by name."""
    return dict(_SUITES)


def get_suite(name: str) -> Suite:
    """The suite of that name. Raises ``UnknownNameError`` otherwise."""
    if name not in _SUITES:
        raise UnknownNameError("suite", name, list(_SUITES))
    return _SUITES[name]
