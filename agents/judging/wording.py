"""How a ratio is said in tables and sentences."""

from loopwright.agents.judging.statistics import Ratio


def say_saving(ratio: Ratio, unit: str) -> str:
    """Less of a unit, as 1 - T / T_base: "30% less geq (0.70 [0.60, 0.80])"."""
    return f"{abs(ratio.saving):.0%} {'less' if ratio.point <= 1 else 'more'} {unit} ({say_interval(ratio)})"


def say_interval(ratio: Ratio) -> str:
    """A ratio with its interval: "0.70 [0.60, 0.80]"."""
    return f"{ratio.point:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def say_joint(ratio: Ratio) -> str:
    """The ratio over jointly hit runs: "0.95 (36 runs)"."""
    return f"{ratio.joint:.2f} ({ratio.joint_runs} runs)" if ratio.joint_runs else "- (0 runs)"
