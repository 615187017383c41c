"""TrainingCallback: what is shown and kept while an agent trains."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from loopwright.agents.training.checkpoint import CHECKPOINT, write_checkpoint
from loopwright.agents.training.config import TrainingConfig


class TrainingCallback(BaseCallback):
    """Progress bar, episode statistics for TensorBoard, and checkpoints."""

    def __init__(self, folder: Path, config: TrainingConfig, show: bool) -> None:
        super().__init__()
        self.folder, self.config, self.show = folder, config, show
        self._recent: deque[tuple[float, bool, float]] = deque(maxlen=400)
        self._bar: Any = None
        self._next_checkpoint = 0

    def _on_training_start(self) -> None:
        self._bar = tqdm(
            total=self.config.steps, initial=self.num_timesteps, unit="decision", unit_scale=True,
            desc=f"train {self.config.algorithm}", disable=not self.show,
        )  # fmt: skip
        self._next_checkpoint = self.num_timesteps + self.config.checkpoint_every

    def _on_step(self) -> bool:
        # ARS evaluates whole policies, and shows its callbacks no step.
        for i in np.flatnonzero(self.locals.get("dones", ())):
            info = self.locals["infos"][i]
            self._recent.append((info["episode"]["r"], info["outcome"] == "hit", info["cost"] / info["budget"]))
        self._bar.update(self.num_timesteps - self._bar.n)
        if self.num_timesteps >= self._next_checkpoint:
            self.checkpoint()
            self._next_checkpoint += self.config.checkpoint_every
        return True

    def _on_rollout_end(self) -> None:
        if self._recent:
            returns, hits, shares = np.array(self._recent, dtype=float).T
            self.logger.record("episode/return", returns.mean())
            self.logger.record("episode/hit_rate", hits.mean())
            self.logger.record("episode/budget_share", shares.mean())
            self._bar.set_postfix_str(f"return {returns.mean():.3f} hits {hits.mean():.0%}", refresh=False)

    def _on_training_end(self) -> None:
        self._bar.close()

    def checkpoint(self) -> None:
        """Keep the agent as it is now, in place of what was kept before."""
        write_checkpoint(self.model, self.folder / CHECKPOINT)
