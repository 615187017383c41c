"""Train an agent for a few minutes on generated tasks and evaluate it on tasks it never saw, real data among them.

    loopwright demo

Prints tables and writes policy.safetensors, report.html and evaluation.png to runs/demo/.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from loopwright.agents.training import TrainingConfig, train
from loopwright.scripts.evaluate import evaluate, provenance, show
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
    evaluation = evaluate(
        [bundle], ("demo-held-out", "demo-new"), config.folder, seeds=config.seeds, competitors="basic"
    )
    show(evaluation, config.folder, provenance([bundle]), as_json=False)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
