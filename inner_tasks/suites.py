"""Which families a controller is trained on, which draws are held out, and which families it has never seen."""

from dataclasses import dataclass

from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.targets import list_calibrated


@dataclass(frozen=True)
class Suite:
    """Families with a role, and of each so many draws: its tasks are ``family:seed`` from ``first_seed`` on."""

    name: str
    draws: dict[str, int]
    first_seed: int
    description: str

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(self.draws)

    def candidates(self) -> list[str]:
        """Names of all tasks of the suite, calibrated or not; the families by turns."""
        seeds = range(max(self.draws.values()))
        return [
            f"{family}:{self.first_seed + seed}"
            for seed in seeds
            for family, count in self.draws.items()
            if seed < count
        ]

    def tasks(self) -> list[str]:
        """Names of the suite's tasks that have a stored target. Raises ``LoopwrightError`` if there are none."""
        known = set(list_calibrated())
        names = [name for name in self.candidates() if name in known]
        if not names:
            raise LoopwrightError(f"suite {self.name!r} has no calibrated task; run: loopwright calibrate")
        return names


# What a core installation can make: generated problems, and what scikit-learn brings along. Draws to train on; those of
# sequence models are dear.
TRAINED = {
    **dict.fromkeys(("mixtures", "teachers", "manifolds", "digits-mlp"), 32),
    **dict.fromkeys(("spirals", "parity", "modular", "logistic", "quadratic", "rosenbrock"), 24),
    **dict.fromkeys(("coordinates", "breast-cancer", "diabetes"), 24),
    **dict.fromkeys(("signals", "digits-conv", "recall", "grammar"), 12),
}
UNSEEN = (
    *("mnist-mlp", "mnist-conv", "patches-mlp", "patches-fft"),
    *("speeches-gru", "speeches-transformer", "words-gru", "words-bag"),
    *("segments", "bananas", "phishing", "abalone"),
    *("osuleaf", "acsf1"),
)
DEMONSTRATED = ("mixtures", "teachers", "manifolds")
DEMONSTRATED_ON = ("digits-mlp", "digits-conv", "breast-cancer")
_SUITES = {
    suite.name: suite
    for suite in (
        Suite("train", TRAINED, 0, "generated, and scikit-learn's data: to train on, and to tune competitors on"),
        Suite("held-out", dict.fromkeys(TRAINED, 2), 100_000, "the same families, draws nobody trains on"),
        Suite("new", dict.fromkeys(UNSEEN, 2), 0, "real images, text, tables and series; families nobody trains on"),
        Suite("demo", dict.fromkeys(DEMONSTRATED, 32), 0, "the part of train that takes minutes: three shapes"),
        Suite("demo-held-out", dict.fromkeys(DEMONSTRATED, 4), 100_000, "new draws of the families of demo"),
        Suite("demo-new", dict.fromkeys(DEMONSTRATED_ON, 2), 100_000, "real data, which demo has none of"),
    )
}


def list_suites() -> dict[str, Suite]:
    """Every suite by name."""
    return dict(_SUITES)


def get_suite(name: str) -> Suite:
    """The suite of that name. Raises ``UnknownNameError`` otherwise."""
    if name not in _SUITES:
        raise UnknownNameError("suite", name, list(_SUITES))
    return _SUITES[name]
