"""TrainingCallback: what is shown and kept while an agent trains."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

from loopwright.agents.training.checkpoint import CHECKPOINT, write_checkpoint
from loopwright.agents.training.config import TrainingConfig
from loopwright.agents.training.warm_start import CRITIC_ALONE, let_learn


class TrainingCallback(BaseCallback):
    """Progress bar, episode statistics for TensorBoard, and checkpoints.

    On-policy algorithms are kept between rollouts, and after each checkpoint draw episodes and random numbers as one
    that is loaded does: a training that was killed and goes on ends as one that was not. A replay buffer is not kept.
    """

    def __init__(self, folder: Path, config: TrainingConfig, show: bool) -> None:
        super().__init__()
        self.folder, self.config, self.show = folder, config, show
        self._recent: deque[tuple[float, bool, float]] = deque(maxlen=400)
        self._by_family: dict[str, deque[tuple[float, bool, float]]] = {}
        self._bar: Any = None
        self._next_checkpoint = 0

    def _on_training_start(self) -> None:
        self._bar = tqdm(
            total=self.config.steps, initial=self.num_timesteps, unit="decision", unit_scale=True,
            desc=f"train {self.config.algorithm}", disable=not self.show,
        )  # fmt: skip
        if self.num_timesteps and isinstance(self.model, OnPolicyAlgorithm):
            self._begin_anew(self.model)
        self._plan_checkpoint()

    def _on_rollout_start(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm) and self.num_timesteps >= self._next_checkpoint:
            self.checkpoint()
            self._begin_anew(self.model)
            self._plan_checkpoint()

    def _plan_checkpoint(self) -> None:
        every = self.config.checkpoint_every
        self._next_checkpoint = (self.num_timesteps // every + 1) * every

    def _begin_anew(self, model: OnPolicyAlgorithm) -> None:
        """New episodes, and random numbers that hang on nothing but the seed and the decisions made."""
        env = self.training_env
        model.set_random_seed(self.config.seed + self.num_timesteps)
        model._last_obs = env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        if model.use_sde:
            model.policy.reset_noise(env.num_envs)

    def _on_step(self) -> bool:
        # ARS evaluates whole policies, and shows its callbacks no step.
        for i in np.flatnonzero(self.locals.get("dones", ())):
            info = self.locals["infos"][i]
            ended = info["episode"]["r"], info["outcome"] == "hit", info["cost"] / info["budget"]
            self._recent.append(ended)
            family = info["task"].partition(":")[0]
            self._by_family.setdefault(family, deque(maxlen=100)).append(ended)
        self._bar.update(self.num_timesteps - self._bar.n)
        if not isinstance(self.model, OnPolicyAlgorithm) and self.num_timesteps >= self._next_checkpoint:
            self.checkpoint()
            self._plan_checkpoint()
        return True

    def _on_rollout_end(self) -> None:
        if self.config.begin_with and isinstance(self.model, OnPolicyAlgorithm):
            rollouts = self.num_timesteps / (self.model.n_steps * self.config.lanes)
            let_learn(self.model, actor=rollouts > CRITIC_ALONE)
        if self._recent:
            returns, hits, _ = np.array(self._recent, dtype=float).T
            for place, ended in (("episode", self._recent), *self._by_family.items()):
                means = np.array(ended, dtype=float).mean(axis=0)
                for name, mean in zip(("return", "hit_rate", "budget_share"), means, strict=True):
                    self.logger.record(f"{place}/{name}", mean, exclude="stdout" if place != "episode" else None)
            self._bar.set_postfix_str(f"return {returns.mean():.3f} hits {hits.mean():.0%}", refresh=False)

    def _on_training_end(self) -> None:
        if self._bar is not None:  # it may be ended before it has begun
            self._bar.close()

    def checkpoint(self) -> None:
        """Keep the agent as it is now, in place of what was kept before."""
        write_checkpoint(self.model, self.folder / CHECKPOINT)
