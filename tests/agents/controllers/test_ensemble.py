"""Several policies as one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.ensemble import make_ensemble
from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.judging.entrants import describe_method
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan

FEATURES = len(OBSERVATION_NAMES)


def make_policy(
    seed: int, hidden: tuple[int, ...] = (8, 6), action: str = "discrete", activation: str = "tanh"
) -> Policy:
    torch.manual_seed(seed)
    knobs = KnobSet("lr+momentum", action)
    training = {"algorithm": "PPO", "decisions": 100 + seed, "seed": seed, "suite": "demo"}
    return Policy(build_network([FEATURES, *hidden, knobs.outputs], activation), knobs, LoopPlan(), training=training)


@pytest.mark.parametrize("action", ["discrete", "flat", "box"])
@pytest.mark.parametrize("hidden", [(), (5,), (8, 6)])
def test_outputs_are_the_mean_of_the_members(action: str, hidden: tuple[int, ...], tmp_path: Path) -> None:
    members = [make_policy(seed, hidden, action, "relu") for seed in range(3)]
    save_policy(make_ensemble(members), tmp_path / "ensemble.safetensors")
    ensemble = load_policy(tmp_path / "ensemble.safetensors")
    seen = torch.randn(7, FEATURES)
    expected = torch.stack([member.network(seen) for member in members]).mean(0)
    torch.testing.assert_close(ensemble.network(seen), expected)
    if action == "box":
        np.testing.assert_allclose(ensemble.act(seen.numpy()), expected.clamp(-1, 1).detach().numpy(), atol=1e-5)


def test_members_may_be_of_different_widths() -> None:
    members = [make_policy(0, (8, 6)), make_policy(1, (4, 3))]
    seen = torch.randn(7, FEATURES)
    expected = (members[0].network(seen) + members[1].network(seen)) / 2
    torch.testing.assert_close(make_ensemble(members).network(seen), expected)


def test_the_card_says_what_they_have_in_common_and_what_not() -> None:
    members = [make_policy(seed) for seed in range(2)]
    assert make_ensemble(members).training == {
        "algorithm": "PPO", "suite": "demo", "decisions": 201,
        "members": [
            {"sha256": members[0].fingerprint, "decisions": 100, "seed": 0},
            {"sha256": members[1].fingerprint, "decisions": 101, "seed": 1},
        ],
    }  # fmt: skip


def test_what_all_have_counts_for_each_and_settings_are_compared_one_by_one() -> None:
    settings = {"ticks_per_decision": 32, "guard": 3}
    trainings = [{"decisions": 100, "settings": settings | {"guard": guard}} for guard in (3, 5)]
    members = [replace(make_policy(seed), training=training) for seed, training in enumerate(trainings)]
    made = make_ensemble(members).training
    assert made["settings"] == {"ticks_per_decision": 32}
    assert made["decisions"] == 200
    assert [member["decisions"] for member in made["members"]] == [100, 100]
    assert [member["settings"] for member in made["members"]] == [{"guard": 3}, {"guard": 5}]


def test_ensembles_of_other_seeds_are_trainings_of_one_method() -> None:
    first, second = (make_ensemble([make_policy(seed), make_policy(seed + 1)]) for seed in (0, 2))
    alike = replace(second, training=second.training | {"decisions": first.training["decisions"]})
    assert describe_method(first) == describe_method(alike)


def test_one_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    large = make_ensemble([make_policy(seed, (1500, 1500)) for seed in range(3)])
    with pytest.raises(LoopwrightError, match="at most 67108864 would be read again"):
        save_policy(large, tmp_path / "large.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_members_stay_as_they_are() -> None:
    members = [make_policy(seed) for seed in range(2)]
    before, training = [member.weights for member in members], [dict(member.training) for member in members]
    make_ensemble(members)
    for member, weights in zip(members, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in member.weights.items())
    assert [member.training for member in members] == training


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_policy(1, action="flat"), "policy 2 has action 'flat', the first 'discrete'"),
        (make_policy(1, activation="relu"), "policy 2 has activation 'relu', the first 'tanh'"),
        (make_policy(1, (8,)), "policy 2 has number of layers 2, the first 3"),
        (replace(make_policy(1), start=LoopPlan(batch=4)), "policy 2 has start"),
        (replace(make_policy(1), knobs=KnobSet("lr+clip")), "policy 2 has knobs 'lr.clip', the first 'lr.momentum'"),
        (
            replace(make_policy(1), training={"settings": {"ticks_per_decision": 32}}),
            "policy 2 has ticks per decision 32, the first None",
        ),
        (
            replace(make_policy(1), network=build_network([FEATURES + 1, 8, 6, 10], "tanh")),
            f"policy 2 has number of features {FEATURES + 1}, the first {FEATURES}",
        ),
        (replace(make_policy(1), lstm=torch.nn.LSTM(FEATURES, 4)), "LSTM"),
    ],
)
def test_what_does_not_fit_together_is_refused(other: Policy, message: str) -> None:
    with pytest.raises(LoopwrightError, match=message):
        make_ensemble([make_policy(0), other])


def test_one_policy_is_no_ensemble() -> None:
    with pytest.raises(LoopwrightError, match="two policies or more, got 1"):
        make_ensemble([make_policy(0)])
