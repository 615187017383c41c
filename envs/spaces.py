"""The Gymnasium spaces of observations and actions."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import LIMIT, OBSERVATION_NAMES


def make_observation_space() -> gym.spaces.Box:
    return gym.spaces.Box(-LIMIT, LIMIT, (len(OBSERVATION_NAMES),), np.float32)


def make_action_space(knobs: KnobSet) -> gym.Space[npt.NDArray[Any]]:
    """A dimension per knob: ``MultiDiscrete``, or with box actions ``Box`` in [-1, 1]; flat ones are ``Discrete``."""
    if knobs.action == "box":
        return gym.spaces.Box(-1.0, 1.0, (len(knobs.knobs),), np.float32)
    if knobs.action == "flat":
        return gym.spaces.Discrete(len(knobs.flat_moves))  # type: ignore[return-value]
    return gym.spaces.MultiDiscrete(knobs.choices)
