"""Train a controller on a suite and save it as a bundle.

    loopwright train --folder runs/mine --steps 500000
    loopwright train --preset adamw --folder runs/adamw

Ctrl-C leaves a checkpoint; the same command with --resume goes on from it. Progress for TensorBoard lies in the folder.
Resuming executes nothing that lies there: a checkpoint holds numbers alone, and a zip of an older version is refused.
"""

import sys
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from loopwright.agents.training.config import PRESETS, TrainingConfig
from loopwright.agents.training.trainer import train
from loopwright.envs.loop.errors import UnknownNameError
from loopwright.scripts.run import compile_where_possible, run


@dataclass(frozen=True)
class Config(TrainingConfig):
    options: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    preset: str = ""
    """One of the trainings that docs/results is about; other settings given here go before its own."""
    folder: Path = Path("runs/agent")
    """Where the checkpoint, the TensorBoard log and policy.safetensors go."""
    resume: bool = False
    """Go on from the folder's checkpoint.safetensors."""

    def __post_init__(self) -> None:
        """Leave the checks to ``main``, which reports them as every command does."""


def defaults(arguments: list[str]) -> Config:
    """What holds where nothing is typed: the preset's settings, if one is named, and else the training's own."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="")
    preset = parser.parse_known_args(arguments)[0].preset
    if preset and preset not in PRESETS:
        raise UnknownNameError("preset", preset, list(PRESETS))
    return Config(preset=preset, **PRESETS.get(preset, {}))


def main(config: Config) -> None:
    settings = {field.name: getattr(config, field.name) for field in fields(TrainingConfig)}
    settings["compile"] = config.compile and compile_where_possible()
    train(TrainingConfig(**settings), config.folder, resume=config.resume)
    print(f"saved {config.folder / 'policy.safetensors'}")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
