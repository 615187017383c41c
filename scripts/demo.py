"""Train an agent for a few minutes on generated tasks and evaluate it on tasks it never saw, real data among them.

    loopwright demo

The policy is judged twice: where updates of the inner networks are free, and where they cost what was measured.
Prints tables and writes policy.safetensors to runs/demo/, report.html and evaluation.png to a folder each in there.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwright.agents.controllers.tuned import TUNED_LISTS
from loopwright.agents.judging.judge import RESULTS, TIMINGS
from loopwright.agents.judging.parts import PARTS
from loopwright.agents.judging.report import REPORT
from loopwright.agents.training.config import PRESETS, TrainingConfig
from loopwright.agents.training.trainer import train
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.holding import LOCK, holding_folder
from loopwright.envs.loop.storage import in_one_line, is_unfinished
from loopwright.scripts.evaluate import evaluate, provenance, show_evaluation
from loopwright.scripts.run import compile_where_possible, run

# More lanes and shorter rollouts than a training has by itself: more decisions a second. And the knobs of the policy
# "adamw", from a start that is good on most tasks: so short a training learns less where it has more to choose from.
QUICKLY: dict[str, Any] = {
    "lanes": 256, "options": {"n_steps": 24}, "knobs": PRESETS["adamw"]["knobs"], "start": "averaged AdamW",
    "rate_spread": 1.0,
}  # fmt: skip


@dataclass
class Config:
    folder: Path = Path("runs/demo")
    """Where everything goes; an earlier demo there is replaced, anything else is not."""
    steps: int = 300_000
    """Decisions to train for."""
    seeds: int = 10
    """Paired seeds per evaluated task."""
    seed: int = 0
    """Of the agent and of the tasks it draws."""


# What a demo leaves in its folder, and in the folders for each price list: all that a later one may remove.
LEFT_BY_TRAINING = ("checkpoint.safetensors", "checkpoint.zip", "training.json", "policy.safetensors", "tensorboard")
LEFT_BY_JUDGING = (RESULTS, TIMINGS, PARTS, *REPORT)


def find_earlier(folder: Path) -> list[Path]:
    """What an earlier demo left in the folder. Raises ``LoopwrightError`` where that holds anything else."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise LoopwrightError(f"{folder} is a file; give a folder")
    found, known = list(folder.iterdir()), (*LEFT_BY_TRAINING, *LEFT_BY_JUDGING, *TUNED_LISTS, LOCK)
    strange = sorted(path.name for path in found if path.name not in known and not is_unfinished(path))
    for prices in TUNED_LISTS:
        strange += sorted(
            f"{prices}/{path.name}"
            for path in (folder / prices).glob("*")
            if path.name not in (*LEFT_BY_JUDGING, LOCK) and not is_unfinished(path)
        )
    if strange:
        raise LoopwrightError(f"{folder} holds what no demo wrote: {', '.join(strange[:3])}; give another folder")
    return [path for path in found if path.name != LOCK]


def clear(folder: Path) -> None:
    """Remove an earlier demo. Raises as ``find_earlier`` does, and then removes nothing."""
    for path in find_earlier(folder):
        with in_one_line("remove", path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(config: Config) -> None:
    training = TrainingConfig(
        suite="demo", steps=config.steps, seed=config.seed, compile=compile_where_possible(), **QUICKLY
    )
    find_earlier(config.folder)
    with holding_folder(config.folder):
        train_and_judge(config, training)


def train_and_judge(config: Config, training: TrainingConfig) -> None:
    """The demo, in its folder."""
    clear(config.folder)
    bundle = train(training, config.folder)
    for prices in TUNED_LISTS:
        print(f"\nUpdates at the prices of the list {prices!r}:")
        evaluation = evaluate(
            [bundle],
            ("demo-held-out", "demo-new"),
            config.folder / prices,
            seeds=config.seeds,
            competitors="basic",
            prices=prices,
            workers=min(2, os.cpu_count() or 1),
        )
        show_evaluation(evaluation, config.folder / prices, provenance([bundle]), as_json=False)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
