"""Train a controller on a suite and save it as a bundle.

    loopwright train --folder runs/mine --steps 500000

Ctrl-C leaves a checkpoint; the same command with --resume goes on from it. Progress for TensorBoard lies in the folder.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from loopwright.agents.training import TrainingConfig, train
from loopwright.scripts.run import compile_where_possible, run


@dataclass(frozen=True)
class Config(TrainingConfig):
    options: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    folder: Path = Path("runs/agent")
    """Where the checkpoint, the TensorBoard log and policy.safetensors go."""
    resume: bool = False
    """Go on from the folder's checkpoint."""

    def __post_init__(self) -> None:
        """Leave the checks to ``main``, which reports them as every command does."""


def main(config: Config) -> None:
    settings = {field.name: getattr(config, field.name) for field in fields(TrainingConfig)}
    settings["compile"] = config.compile and compile_where_possible()
    train(TrainingConfig(**settings), config.folder, resume=config.resume)
    print(f"saved {config.folder / 'policy.safetensors'}")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
