"""Train a controller on a suite and save it as a bundle.

    loopwright train --folder runs/mine --steps 500000

Ctrl-C leaves a checkpoint; the same command with --resume goes on from it. Progress for TensorBoard lies in the folder.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from loopwright.agents.training import TrainingConfig, train
from loopwright.envs.lanes import compiler_available
from loopwright.scripts.run import run


@dataclass
class Config:
    folder: Path = Path("runs/agent")
    """Where the checkpoint, the TensorBoard log and policy.safetensors go."""
    algorithm: str = "PPO"
    """PPO, A2C, SAC, TD3, DDPG; TRPO, TQC, ARS with sb3-contrib."""
    steps: int = 500_000
    """Decisions in all."""
    lanes: int = 128
    """Inner runs side by side."""
    suite: str = "train"
    """Suite to draw tasks from."""
    knobs: str = "all"
    """Knob set, or knob names joined by "+"."""
    action: str = ""
    """discrete or box; empty takes what the algorithm supports."""
    start: str = "tuned"
    """Starting plan: the tuned constant, or PyTorch's "default" AdamW settings."""
    seed: int = 0
    """Of the agent and of the tasks it draws."""
    checkpoint_every: int = 100_000
    """Decisions between checkpoints."""
    resume: bool = False
    """Go on from the folder's checkpoint."""
    compile: bool = True
    """Fuse the inner loop with torch.compile where a C++ compiler is found."""


def main(config: Config) -> None:
    settings = {key: value for key, value in vars(config).items() if key not in ("folder", "resume")}
    settings["compile"] = config.compile and compiler_available()
    train(TrainingConfig(**settings), config.folder, resume=config.resume)
    print(f"saved {config.folder / 'policy.safetensors'}")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
