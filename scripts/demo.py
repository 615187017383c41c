"""Train an agent for a few minutes on generated tasks and evaluate it on tasks it never saw, real data among them.

    loopwright demo

Prints the table and writes policy.safetensors, evaluation.json and evaluation.png to runs/demo/.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from loopwright.agents.training import TrainingConfig, train
from loopwright.scripts.evaluate import evaluate, report
from loopwright.scripts.run import compile_where_possible, run


@dataclass
class Config:
    folder: Path = Path("runs/demo")
    """Where everything goes; an earlier demo there is replaced."""
    steps: int = 500_000
    """Decisions to train for."""
    seeds: int = 10
    """Paired seeds per evaluated task."""
    seed: int = 0
    """Of the agent and of the tasks it draws."""


def main(config: Config) -> None:
    shutil.rmtree(config.folder, ignore_errors=True)
    bundle = train(
        TrainingConfig(suite="demo", steps=config.steps, seed=config.seed, compile=compile_where_possible()),
        config.folder,
    )
    evaluation = evaluate([bundle], ("demo-held-out", "demo-new"), config.seeds, lanes=64, show=True)
    report(evaluation, config.folder, {"bundles": [bundle.training]}, as_json=False)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
