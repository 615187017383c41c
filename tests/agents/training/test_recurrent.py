"""Recurrent policies: taken out of sb3-contrib's, saved, loaded, put back, and remembering each run by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.judging.runner import run_controller
from loopwright.agents.training.config import TrainingConfig
from loopwright.agents.training.extraction import extract_policy, insert_policy
from loopwright.agents.training.trainer import train
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import View
from loopwright.envs.loop.errors import BundleError, LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.vector import TrainingLoopVectorEnv
from loopwright.inner_tasks import Task

QUICK = EpisodeSettings(budget_factor=0.4)
SMALL = {"n_steps": 16, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [8]}}
TINY = {"lanes": 4, "suite": "demo-new", "compile": False, "checkpoint_every": 64}


def make_model(seed: int = 0, **policy: object) -> tuple[RecurrentPPO, KnobSet]:
    """A model that was never trained, whose weights are large enough to choose different actions."""
    envs = TrainingLoopVectorEnv(2, tasks=["breast-cancer:1"], knobs="core", autoreset_mode="SameStep")
    model = RecurrentPPO(
        "MlpLstmPolicy", SB3VecEnv(envs), n_steps=8, batch_size=16, seed=seed, device="cpu",
        policy_kwargs={"lstm_hidden_size": 16, "net_arch": [16], **policy},
    )  # fmt: skip
    with torch.no_grad():
        for weights in model.policy.parameters():
            weights.mul_(5)
    return model, envs.knobs


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(*shape, len(OBSERVATION_NAMES))).astype(np.float32)


@pytest.mark.parametrize(
    "kind", [{}, {"n_lstm_layers": 2}, {"shared_lstm": True, "enable_critic_lstm": False}], ids=["one", "two", "shared"]
)
def test_a_recurrent_policy_acts_as_the_one_it_came_from(kind: dict[str, Any], tmp_path: Path) -> None:
    model, knobs = make_model(**kind)
    save_policy(extract_policy(model, knobs, LoopPlan()), tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    other, _ = make_model(seed=3, **kind)
    insert_policy(other, policy)
    states: list[Any] = [None, None, None]
    forgetful = []
    for number, seen in enumerate(draw(12, 40)):
        starts = np.arange(40) % 7 == number
        found, states[0] = policy.predict(seen, states[0], starts)
        for place, own in ((1, model), (2, other)):
            expected, states[place] = own.predict(seen, states[place], starts, deterministic=True)
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(states[0], states[1], atol=1e-5)
        forgetful.append((policy.act(seen) != found).any())
    assert not forgetful[0]
    assert all(forgetful[1:])


def test_what_it_remembers_is_of_one_run_and_ends_with_it() -> None:
    policy = extract_policy(*make_model(), LoopPlan())
    plans, observations = stack_plans([LoopPlan()] * 3), draw(6, 3)

    def decide(own: Policy, taken: list[int], seen: np.ndarray) -> torch.Tensor:
        view = View(torch.from_numpy(seen), plans[:, : len(taken)], torch.zeros(len(taken)), torch.tensor(taken))
        return own.decide(view)

    found = [decide(policy, [n, n, n if n < 3 else n - 3], seen) for n, seen in enumerate(observations)]
    alone = extract_policy(*make_model(), LoopPlan())
    for lane, first in ((0, 0), (2, 3)):
        for number in range(first, 6):
            own = decide(alone, [number - first], observations[number, lane : lane + 1])
            torch.testing.assert_close(own[:, 0], found[number][:, lane])
    forgotten = [policy.knobs.move(policy.steps(seen), plans) for seen in observations]
    assert torch.equal(forgotten[0], found[0])
    assert not torch.allclose(forgotten[2], found[2])


class Kill(BaseCallback):
    """The end of the process, after so many decisions."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        if self.num_timesteps > self.after:
            raise MemoryError
        return True


def test_it_is_trained_resumed_and_judged(small_task: Task, tmp_path: Path) -> None:
    config = TrainingConfig(algorithm="RecurrentPPO", steps=192, options=SMALL, **TINY)
    policies = {}
    for name, after in (("whole", 1000), ("cut", 100)):
        try:
            policy = train(config, tmp_path / name, show_progress=False, settings=QUICK, callback=Kill(after))
        except MemoryError:
            policy = train(config, tmp_path / name, show_progress=False, settings=QUICK, resume=True)
        policies[name] = policy
    assert policies["whole"].fingerprint == load_policy(tmp_path / "whole" / "policy.safetensors").fingerprint
    for name, weights in policies["whole"].weights.items():
        assert torch.equal(weights, policies["cut"].weights[name])
    together = run_controller(policy, [small_task], [1, 2], QUICK)
    apart = [record for seed in (1, 2) for record in run_controller(policy, [small_task], [seed], QUICK)]
    assert [(r.cost, r.hit) for r in together] == [(r.cost, r.hit) for r in apart]


def test_an_lstm_that_is_not_plain_is_refused() -> None:
    model, knobs = make_model(lstm_kwargs={"bias": False})
    with pytest.raises(LoopwrightError, match=r"bias=False\) is none with biases, one direction and no projection"):
        extract_policy(model, knobs, LoopPlan())
    policy = extract_policy(*make_model(), LoopPlan())
    with pytest.raises(LoopwrightError, match=r"the policy's network is LSTM.*, that of this RecurrentPPO LSTM"):
        insert_policy(make_model(lstm_hidden_size=8)[0], policy)
    with pytest.raises(LoopwrightError, match=r"state has shape \(2, 1, 3, 16\); want \(2, 1, 2, 16\)"):
        policy.predict(draw(2), tuple(policy.begin(3)))


def test_a_card_that_does_not_fit_its_lstm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, path = extract_policy(*make_model(n_lstm_layers=2), LoopPlan()), tmp_path / "policy.safetensors"
    described = policy.describe()
    for changed, message in (
        ({"lstm": [16]}, "'lstm.bias_hh_l1' is float32"),
        ({"lstm": [16, 8]}, "'lstm.bias_hh_l1' is float32"),
        ({"lstm": []}, "lstm: List should have at least 1 item"),
        ({"widths": [len(OBSERVATION_NAMES), *described["widths"][1:]]}, "'0.weight' is float32"),
    ):
        monkeypatch.setattr(Policy, "describe", lambda own, changed=changed: described | changed)
        save_policy(policy, path)
        monkeypatch.undo()
        with pytest.raises(BundleError, match=message):
            load_policy(path)
