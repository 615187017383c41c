"""Put several trainings together: one policy that does what they do in the mean.

    loopwright train --preset adamw --seed 0 --folder runs/first      # and with seeds 1 and 2
    loopwright ensemble runs/first/policy.safetensors runs/second/policy.safetensors --into runs/both.safetensors

They must move the same knobs from the same start. On tasks that none of them saw the ensemble does better than each of
them, most of the time.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.ensemble import make_ensemble
from loopwright.scripts.run import run


@dataclass
class Config:
    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two or more saved policies (.safetensors), or names of those that come with the package."""
    into: Path = Path("runs/ensemble.safetensors")
    """Where the bundle goes."""


def main(config: Config) -> None:
    save_policy(make_ensemble([load_policy(bundle) for bundle in config.bundles]), config.into)
    print(f"saved {config.into}, of {len(config.bundles)} policies")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
