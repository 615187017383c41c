"""Make one policy of two: the first acts where a feature of the observation is small, the second elsewhere.

    loopwright switch core adamw --feature price_muon --at -1 --raised clip --into runs/all.safetensors

The first must move every knob that the second moves; runs start from its plan. Features are
listed in the docstring of loopwright.TrainingLoopEnv.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.switch import make_switch
from loopwright.scripts.run import run


@dataclass
class Config:
    below: Annotated[Path, tyro.conf.Positional]
    """Saved policy (.safetensors), or name of one that comes with the package, that acts below the threshold."""
    above: Annotated[Path, tyro.conf.Positional]
    """The one that acts above it."""
    feature: str = "price_muon"
    """Of the observation, as it is shown: prices and sizes are logarithms to base 10."""
    at: float = -1.0
    """The threshold."""
    raised: tuple[str, ...] = ()
    """Knobs that the second lacks and that are brought to their upper bound where it acts; the others stay."""
    into: Path = Path("runs/switch.safetensors")
    """Where the bundle goes."""


def main(config: Config) -> None:
    policies = load_policy(config.below), load_policy(config.above)
    save_policy(make_switch(*policies, config.feature, config.at, config.raised), config.into)
    print(f"saved {config.into}: {config.below} where {config.feature} is below {config.at:g}, else {config.above}")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
