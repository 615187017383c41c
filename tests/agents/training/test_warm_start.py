"""A training that goes on from a saved policy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import QUICK, SMALL_PPO, TINY

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.other_knobs import change_knobs
from loopwright.agents.training.config import TrainingConfig
from loopwright.agents.training.trainer import train
from loopwright.agents.training.warm_start import CRITIC_ALONE, NEW_STANDING_STILL
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet

NARROW = {**SMALL_PPO, "policy_kwargs": {"net_arch": [64]}}


def test_shared_knobs_move_as_before_and_new_ones_stand_still() -> None:
    policy, knobs = load_policy("core"), KnobSet("echo+momentum+lr")
    changed = change_knobs(policy, knobs, NEW_STANDING_STILL)
    seen = torch.randn(5, policy.features)
    before, after = policy.network(seen), changed.network(seen)
    torch.testing.assert_close(after[:, -7:], before[:, :7])  # lr, the last now and the first then
    torch.testing.assert_close(after[:, 3:6], before[:, 7:10])
    still = knobs.knobs[0].still
    chances = after[:, :3].softmax(1)
    torch.testing.assert_close(chances[:, still], torch.full((5,), NEW_STANDING_STILL))
    assert changed.knobs.name == "echo+momentum+lr"
    assert policy.knobs.name == load_policy("core").knobs.name


def test_an_ensemble_can_be_gone_on_with(tmp_path: Path) -> None:
    config = TrainingConfig(steps=64, begin_with="adamw", options=SMALL_PPO, **TINY)
    policy = train(config, tmp_path, show_progress=False, settings=QUICK)
    assert policy.describe()["widths"][1:-1] == load_policy("adamw").describe()["widths"][1:-1] == [384, 384]


def test_the_critic_learns_alone_at_first(tmp_path: Path) -> None:
    shared = {"knobs": "lr+momentum+keep", "begin_with": "core", "options": SMALL_PPO, **TINY}
    rollout = SMALL_PPO["n_steps"] * TINY["lanes"]
    config = TrainingConfig(steps=CRITIC_ALONE * rollout, **shared)
    begun = train(config, tmp_path / "begun", show_progress=False, settings=QUICK)
    expected = change_knobs(load_policy("core"), begun.knobs, NEW_STANDING_STILL)
    assert all(torch.equal(value, expected.weights[name]) for name, value in begun.weights.items())
    assert begun.training["begun_with"] == load_policy("core").fingerprint
    whole = TrainingConfig(steps=(CRITIC_ALONE + 2) * rollout, **shared)
    on = train(whole, tmp_path / "whole", show_progress=False, settings=QUICK)
    assert not all(torch.equal(value, expected.weights[name]) for name, value in on.weights.items())
    seen = np.random.default_rng(0).normal(size=(8, on.features)).astype(np.float32)
    np.testing.assert_allclose(on.act(seen), begun.act(seen), atol=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin_with": "nobody.safetensors"}, "no bundle at nobody.safetensors"),
        ({"begin_with": "core", "options": NARROW}, "make it with policy_kwargs of the same net_arch"),
        ({"begin_with": "core", "action": "flat"}, "only a policy of discrete actions can be given other knobs"),
        ({"begin_with": "core", "knobs": "echo"}, "knows none of the knobs echo"),
        (
            {"begin_with": "core", "algorithm": "DQN", "options": {}},
            "DQN cannot begin with a saved policy",
        ),
    ],
)
def test_what_cannot_be_begun_with_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(LoopwrightError, match=message):
        train(TrainingConfig(**{"steps": 64, "options": SMALL_PPO, **TINY, **options}), tmp_path, settings=QUICK)
