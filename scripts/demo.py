"""Train an agent for a few minutes on generated tasks and evaluate it on tasks it never saw, real data among them.

    loopwright demo

Prints tables and writes policy.safetensors, report.html and evaluation.png to runs/demo/.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from loopwright.agents.judging.judge import RESULTS, TIMINGS
from loopwright.agents.judging.report import REPORT
from loopwright.agents.training.config import TrainingConfig
from loopwright.agents.training.trainer import train
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.scripts.evaluate import evaluate, provenance, show_evaluation
from loopwright.scripts.run import compile_where_possible, run


@dataclass
class Config:
    folder: Path = Path("runs/demo")
    """Where everything goes; an earlier demo there is replaced, anything else is not."""
    steps: int = 400_000
    """Decisions to train for."""
    seeds: int = 10
    """Paired seeds per evaluated task."""
    seed: int = 0
    """Of the agent and of the tasks it draws."""


# What a demo leaves in its folder: all that a later one may remove.
WRITTEN = (
    *("checkpoint.zip", "checkpoint.new.zip", "training.json", "policy.safetensors", "tensorboard"),
    *(RESULTS, TIMINGS),
    *REPORT,
)


def clear(folder: Path) -> None:
    """Remove an earlier demo. Raises ``LoopwrightError``, and removes nothing, where the folder holds anything else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise LoopwrightError(f"{folder} is a file; give a folder")
    found = list(folder.iterdir())
    strange = sorted(path.name for path in found if path.name not in WRITTEN)
    if strange:
        raise LoopwrightError(f"{folder} holds what no demo wrote: {', '.join(strange[:3])}; give another folder")
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(config: Config) -> None:
    training = TrainingConfig(suite="demo", steps=config.steps, seed=config.seed, compile=compile_where_possible())
    if config.seeds < 1:
        raise LoopwrightError(f"seeds must be 1 or more, got {config.seeds}")
    clear(config.folder)
    bundle = train(training, config.folder)
    evaluation = evaluate(
        [bundle],
        ("demo-held-out", "demo-new"),
        config.folder,
        seeds=config.seeds,
        competitors="basic",
        workers=min(2, os.cpu_count() or 1),
    )
    show_evaluation(evaluation, config.folder, provenance([bundle]), as_json=False)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
