"""The vector environment as a Stable-Baselines3 ``VecEnv``: the same batch of runs, without a process per run."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.vector import TrainingLoopVectorEnv

ENDED = ("task", "outcome", "cost", "budget", "loss", "metric")  # what an info says of an episode that has ended


class SB3VecEnv(VecEnv):
    """Wraps a ``TrainingLoopVectorEnv`` in SAME_STEP mode, the only one Stable-Baselines3 knows.

    The info of an episode's last step has, besides its task, outcome, cost, budget, loss and metric, the entry
    ``episode`` that Stable-Baselines3 logs: its return "r" and its length "l" in decisions.

    Args:
        envs: what is wrapped.
        hidden: positions in the observation of features that are always 0.
    """

    def __init__(self, envs: TrainingLoopVectorEnv, hidden: Sequence[int] = ()) -> None:
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise LoopwrightError(f"Stable-Baselines3 needs autoreset_mode SAME_STEP, got {envs.autoreset_mode.name}")
        self._shown = np.ones(envs.single_observation_space.shape or (), dtype=np.float32)
        self._shown[list(hidden)] = 0.0
        self.envs = envs  # before super().__init__, which asks for render_mode
        self._actions: npt.NDArray[Any] = np.empty(0)
        self._returns, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> npt.NDArray[np.float32]:
        observations, _ = self.envs.reset(seed=self._seeds if any(s is not None for s in self._seeds) else None)
        self._reset_seeds()
        self._returns[:], self._lengths[:] = 0.0, 0
        return observations * self._shown

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, info = self.envs.step(self._actions)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(t)} for t in truncated]
        done = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = info["final_obs"][i] * self._shown
            infos[i] |= {key: info["final_info"][key][i] for key in ENDED}
            infos[i]["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
        self._returns[done], self._lengths[done] = 0.0, 0
        return (
            observations * self._shown,
            rewards.astype(np.float32),
            done,
            infos,
        )  # fresh: SB3 adds to the rewards in place

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        raise LoopwrightError(f"cannot set {attr_name!r}: the runs share one environment")

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        if method_name == "action_masks":  # asked for by sb3-contrib's MaskablePPO
            masks = self.envs.action_masks()
            return [masks[i] for i in self._get_indices(indices)]
        raise LoopwrightError(f"cannot call {method_name!r} per environment: the runs share one environment")

    def env_is_wrapped(self, wrapper_class: Any, indices: int | Iterable[int] | None = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
