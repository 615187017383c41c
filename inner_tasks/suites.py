"""Which families a controller is trained on, which draws are held out, and which families it has never seen."""

from dataclasses import dataclass

from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.targets import list_calibrated

SEARCHED = 40  # decisions that a target is searched over, where nothing else is said


@dataclass(frozen=True)
class Draws:
    """So many draws of each family, the tasks ``family:seed`` from ``first_seed`` on.

    Their targets are searched over so many ``decisions``: the longer the search, the lower the target, and the longer
    the runs that reach it.
    """

    counts: dict[str, int]
    first_seed: int = 0
    decisions: int = SEARCHED

    def names(self) -> list[str]:
        """The tasks, the families by turns."""
        seeds = range(max(self.counts.values()))
        return [
            f"{family}:{self.first_seed + seed}"
            for seed in seeds
            for family, count in self.counts.items()
            if seed < count
        ]


@dataclass(frozen=True)
class Suite:
    """Draws with a role."""

    name: str
    parts: tuple[Draws, ...]
    description: str

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(family for part in self.parts for family in part.counts))

    def candidates(self) -> dict[str, int]:
        """The decisions that their targets are searched over by the names of all tasks, calibrated or not."""
        return {name: part.decisions for part in self.parts for name in part.names()}

    def tasks(self) -> list[str]:
        """Names of the suite's tasks that have a stored target. Raises ``LoopwrightError`` if there are none."""
        known = set(list_calibrated())
        names = [name for name in self.candidates() if name in known]
        if not names:
            raise LoopwrightError(f"suite {self.name!r} has no calibrated task; run: loopwright calibrate")
        return names


# What a core installation can make: generated problems, and what scikit-learn brings along. Draws to train on; those of
# sequence models are dear.
VECTORS = ("mixtures", "teachers", "manifolds", "digits-mlp")
SMALL = ("spirals", "parity", "modular", "logistic")
OTHERS = ("functions", "quadratic", "rosenbrock", "coordinates", "breast-cancer", "diabetes")
SEQUENCES = ("signals", "digits-conv", "recall", "grammar")
_SOME = {**dict.fromkeys(VECTORS, 170), **dict.fromkeys(SMALL, 100), **dict.fromkeys(OTHERS, 70)}
_DEAR = {**dict.fromkeys(SEQUENCES, 32), "grammar-transformer": 16, "wide": 8}
TRAINED = {**_SOME, **_DEAR}
_MORE_SEQUENCES = {"grammar": 25, "recall": 24, "signals": 24}
# As uncertain as real data: most of what can be learnt is learnt early, and who trains on overfits.
NOISY = {**dict.fromkeys(("forests", "appraisals", "topics", "clouds", "textures", "glyphs"), 70), "glyphs-conv": 16}
LONG, LONGER = 160, 480  # decisions that the targets of some draws are searched over: real runs are long
UNSEEN_IMAGES = ("mnist-mlp", "mnist-conv", "patches-mlp", "patches-fft")
UNSEEN_TEXTS = ("speeches-gru", "speeches-transformer", "words-gru", "words-bag")
UNSEEN = (
    *UNSEEN_IMAGES,
    *UNSEEN_TEXTS,
    *("segments", "bananas", "phishing", "abalone"),
    *("osuleaf", "acsf1"),
)
UNSEEN_TOO = (
    *("mnist-some", "mnist-deep", "patches-conv"),
    *("words-transformer", "speeches-rnn"),
    *("segments-norm", "bananas-wide", "abalone-flat", "approval", "cars"),
    *("italy-power", "vowels", "osuleaf-mlp"),
)
HELD_OUT = tuple(family for family in TRAINED if family not in ("functions", "grammar-transformer", "wide"))
_LONG_RUNS = (
    Draws({**dict.fromkeys(VECTORS, 16), **dict.fromkeys((*SMALL, *OTHERS), 8)}, 10_000, LONG),
    Draws({**dict.fromkeys(VECTORS, 3), **dict.fromkeys(SMALL, 2)}, 20_000, LONGER),
)
# Whose gradients spike.
SPIKING = {"outliers": 64, "glitches": 64, "adding": 32, "recall": 32}
SPIKING_UNSEEN = ("abalone-slips", "segments-slips", "words-rnn")
DEMONSTRATED = ("mixtures", "teachers", "manifolds")
DEMONSTRATED_ON = ("digits-mlp", "digits-conv", "breast-cancer")
_SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "train", (Draws(TRAINED), *_LONG_RUNS),
            "generated, and scikit-learn's data: to train on, and to tune competitors on",
        ),
        Suite(
            "varied", (Draws({**_SOME, **NOISY, **_DEAR}), *_LONG_RUNS, Draws(_MORE_SEQUENCES, 30_000)),
            "the same, and data as uncertain as real data are: to train on",
        ),
        Suite(
            "held-out", (Draws(dict.fromkeys(HELD_OUT, 2), 100_000),),
            "new draws of the families of train, for validation",
        ),
        Suite(
            "new", (Draws(dict.fromkeys(UNSEEN, 2)),),
            "real images, text, tables and series: families nobody trains on, for validation",
        ),
        Suite(
            "held-out-2", (Draws(dict.fromkeys(TRAINED, 2), 200_000),),
            "further draws of the families of train, looked at once per release",
        ),
        Suite(
            "new-2", (Draws(dict.fromkeys(UNSEEN_TOO, 2)),),
            "further families nobody trains on, looked at once per release",
        ),
        Suite(
            "spikes", (Draws(SPIKING),), "gradients that spike, for clipping: to train on, and to tune a threshold on"
        ),
        Suite(
            "spikes-held-out", (Draws(dict.fromkeys(SPIKING, 5), 100_000),),
            "new draws of the families of spikes, for validation",
        ),
        Suite(
            "spikes-new", (Draws(dict.fromkeys(SPIKING_UNSEEN, 5)),),
            "real tables with errors in them, and text for a recurrent net: gradients that spike, for validation",
        ),
        Suite("new-images", (Draws(dict.fromkeys(UNSEEN_IMAGES, 2)),), "the images among new"),
        Suite("new-texts", (Draws(dict.fromkeys(UNSEEN_TEXTS, 2)),), "the texts among new"),
        Suite(
            "demo", (Draws(dict.fromkeys(DEMONSTRATED, 32)),), "the part of train that takes minutes: three shapes"
        ),
        Suite(
            "demo-held-out", (Draws(dict.fromkeys(DEMONSTRATED, 4), 100_000),), "new draws of the families of demo"
        ),
        Suite(
            "demo-new", (Draws(dict.fromkeys(DEMONSTRATED_ON, 2), 100_000),), "real data, which demo has none of"
        ),
    )
}  # fmt: skip


def list_suites() -> dict[str, Suite]:
    """Every suite by name."""
    return dict(_SUITES)


def get_suite(name: str) -> Suite:
    """The suite of that name. Raises ``UnknownNameError`` otherwise."""
    if not isinstance(name, str) or name not in _SUITES:
        raise UnknownNameError("suite", name, list(_SUITES))
    return _SUITES[name]
