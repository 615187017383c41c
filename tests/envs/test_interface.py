"""What clients of an environment lean on: plain arguments, infos of one kind, copies, masks, pictures."""

import copy
import itertools
import math
import pickle
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv

import loopwright
from loopwright.envs.loop.errors import InvalidActionError, LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.ledger import read_ledger
from loopwright.envs.loop.plan import PLAN_FIELDS, LoopPlan, stack_plans, unstack_plans
from loopwright.envs.sampling import Spread
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.envs.vector import TrainingLoopVectorEnv

TASK = "breast-cancer:1"
QUICK: dict[str, Any] = {"tasks": TASK, "settings": {"budget_factor": 0.4}}


def test_arguments_are_objects_or_plain_values() -> None:
    plan, spread = LoopPlan(learning_rate=0.02, clip=1.0), Spread(rate=0.5)
    settings = loopwright.EpisodeSettings(microbatch=8, prices={"sgd": 1.0, "adamw": 2.0, "sinkgd": 3.0, "muon": 4.0})
    of_objects = TrainingLoopEnv(tasks=[TASK], plan=plan, spread=spread, settings=settings)
    plain = {"plan": {"learning_rate": 0.02, "clip": 1.0}, "spread": {"rate": 0.5},
             "settings": {"microbatch": 8, "prices": dict(settings.prices)}}  # type: ignore[call-overload]  # fmt: skip
    for env in (TrainingLoopEnv(tasks=TASK, **plain), gym.make("loopwright/TrainingLoop-v0", tasks=TASK, **plain)):
        seen, info = env.reset(seed=3)
        expected, told = of_objects.reset(seed=3)
        np.testing.assert_array_equal(seen, expected)
        assert info["plan"] == told["plan"]
        assert info["budget"] == told["budget"]
    assert TrainingLoopVectorEnv(1, tasks=TASK, **plain).plan == plan
    assert TrainingLoopEnv(tasks=TASK, plan={"clip": "inf"}).plan == LoopPlan()  # as a ledger has it


@pytest.mark.parametrize("options", [{}, {"plan": LoopPlan(clip=math.inf), "spread": Spread(0.5)}])
def test_a_spec_goes_through_json(options: dict[str, Any]) -> None:
    env = gym.make("loopwright/TrainingLoop-core-v0", tasks=[TASK], settings=loopwright.EpisodeSettings(), **options)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])


def flatten(info: dict[str, Any]) -> dict[str, Any]:
    """An info without the level of its plan."""
    plan = {f"plan.{name}": value for name, value in info["plan"].items()}
    return {name: value for name, value in info.items() if name != "plan"} | plan


def test_infos_have_the_same_entries_of_the_same_kinds_from_the_start_to_the_end() -> None:
    env = TrainingLoopEnv(**QUICK)
    infos = [env.reset(seed=0)[1]]
    done = False
    while not done:
        _, _, done, _, info = env.step(env.action_space.sample())
        infos.append(info)
    kinds = {tuple((name, type(value)) for name, value in flatten(info).items()) for info in infos}
    assert len(kinds) == 1
    assert math.isnan(infos[0]["loss"])
    assert math.isnan(infos[0]["metric"])
    codes = {(info["outcome"], info["outcome_code"]) for info in infos}
    assert ("running", 0) in codes
    assert codes <= {("running", 0), ("hit", 1), ("miss", 2), ("diverged", 3)}
    assert {type(value) for value in flatten(infos[-1]).values()} == {str, int, float, bool}


def test_the_infos_of_a_vector_are_those_of_gymnasiums_own() -> None:
    native = TrainingLoopVectorEnv(2, knobs="core", **QUICK)
    singles = SyncVectorEnv([lambda: TrainingLoopEnv(knobs="core", **QUICK)] * 2)
    still = np.array([[knob.still for knob in native.knobs.knobs]] * 2)
    for found, expected in ((native.reset(seed=0)[1], singles.reset(seed=0)[1]),
                            (native.step(still)[4], singles.step(still)[4])):  # fmt: skip
        assert found.keys() == expected.keys()
        plans = [{name: column[i] for name, column in expected["plan"].items() if name[0] != "_"} for i in range(2)]
        np.testing.assert_allclose(found["plan"], stack_plans([LoopPlan(**plan) for plan in plans]).T, rtol=1e-5)
        for name, value in expected.items():
            if name == "plan":
                continue
            own = found[name]
            assert own.dtype == value.dtype, name
            if own.dtype == object:
                assert own.tolist() == value.tolist()
            else:
                np.testing.assert_allclose(own, value, atol=1e-5, err_msg=name)


def test_an_info_may_be_numbers_alone() -> None:
    envs = TrainingLoopVectorEnv(2, texts=False, autoreset_mode="SAME_STEP", max_episode_steps=1, **QUICK)
    for info in (envs.reset(seed=0)[1], (ended := envs.step(envs.action_space.sample())[4]), ended["final_info"]):
        numbers = {name: value for name, value in info.items() if name[0] != "_" and not name.startswith("final")}
        assert {"outcome_code", "verdict_code", "plan", "cost"} <= numbers.keys()
        assert all(value.dtype.kind in "if" for value in numbers.values())
    single = TrainingLoopEnv(texts=False, **QUICK)
    for info in (single.reset(seed=0)[1], single.step(single.action_space.sample())[4]):
        assert {type(value) for value in info.values()} == {np.float64, np.ndarray}
        assert info["plan"].shape == (len(PLAN_FIELDS),)
    with pytest.raises(LoopwrightError, match="texts must be True or False, got 1"):
        TrainingLoopVectorEnv(2, texts=1, **QUICK)  # type: ignore[arg-type]


def test_a_vector_takes_tasks_by_name_at_reset() -> None:
    tasks = ["breast-cancer:1", "breast-cancer:2", "mixtures:100000"]
    envs = TrainingLoopVectorEnv(4, tasks=tasks)
    shapes = [task.partition(":")[0] for task in envs.reset(seed=0)[1]["task"]]
    chosen = ["breast-cancer:2" if family == "breast-cancer" else "mixtures:100000" for family in shapes]
    assert envs.reset(options={"task": chosen})[1]["task"].tolist() == chosen
    mask = np.array([family == "breast-cancer" for family in shapes])
    info = envs.reset(options={"task": "breast-cancer:1", "reset_mask": mask})[1]
    assert set(info["task"][mask]) == {"breast-cancer:1"}
    assert set(info["task"][~mask]) == {"mixtures:100000"}
    for bad, match in (
        ("breast-cancer:1", "task breast-cancer:1 has another shape than environment"),
        (chosen[:3], "task names 3 tasks, where there are 4 environments"),
        ("breast-cancer:123456", "no calibrated target"),
        (3, "a task must be a Task, or named family:seed, got 3"),
    ):
        with pytest.raises(LoopwrightError, match=match):
            envs.reset(options={"task": bad})


def test_modes_by_their_names_and_attributes_as_gymnasiums_vectors_give_them() -> None:
    for name in ("SAME_STEP", "SameStep", gym.vector.AutoresetMode.SAME_STEP):
        envs = TrainingLoopVectorEnv(2, knobs="core", autoreset_mode=name, render_mode="ansi", **QUICK)
        assert envs.autoreset_mode is gym.vector.AutoresetMode.SAME_STEP
    envs.reset(seed=0)
    assert envs.get_attr("plan") == envs.call("plan") == (envs.plan, envs.plan)
    assert envs.call("render") == envs.render()
    assert np.array_equal(envs.call("action_masks"), envs.action_masks())
    with pytest.raises(
        LoopwrightError, match="unknown method of each environment 'reset'; known: render, action_masks"
    ):
        envs.call("reset")
    with pytest.raises(AttributeError, match="nothing"):
        envs.get_attr("nothing")


@pytest.mark.parametrize("take", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
@pytest.mark.parametrize("kind", [TrainingLoopEnv, TrainingLoopVectorEnv])
def test_a_copy_goes_on_as_the_original_in_a_ledger_of_its_own(kind: type, take: Any, tmp_path: Path) -> None:
    many = {"num_envs": 2} if kind is TrainingLoopVectorEnv else {}
    env = kind(**many, tasks=TASK, ledgers=tmp_path, render_mode="rgb_array")
    env.action_space.seed(0)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.render()
    twin = take(env)
    for _ in range(6):
        action = env.action_space.sample()
        for one, other in zip(env.step(action)[:4], twin.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(env.render(), twin.render())
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 2 * env.num_envs if many else 2
    contents = [read_ledger(path) for path in paths]
    assert [len(content.entries) for content in contents] == [7] * len(paths)
    assert len({content.last_hash for content in contents}) == len(paths) // 2
    np.testing.assert_array_equal(env.reset(seed=1)[0], twin.reset(seed=1)[0])


def test_the_modes_of_torch_change_nothing() -> None:
    def run(env: gym.Env[Any, Any]) -> list[Any]:
        env.action_space.seed(0)
        return [env.reset(seed=0)[0], *(env.step(env.action_space.sample())[:2] for _ in range(3))]

    expected = run(TrainingLoopEnv(**QUICK))
    with torch.inference_mode():
        inside = run(TrainingLoopEnv(**QUICK))
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        quiet = run(TrainingLoopEnv(**QUICK))
        assert not torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        precise = run(TrainingLoopEnv(**QUICK))
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for found in (inside, quiet, precise):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize(("action", "given"), [("discrete", 3), ("discrete", np.int64(3)), ("box", 0.5)])
def test_the_action_of_one_knob_may_be_a_number(action: str, given: float) -> None:
    ended = []
    for form in (given, [given], np.array([given])):
        env = TrainingLoopEnv(tasks=TASK, knobs="lr", action=action)
        env.reset(seed=0)
        ended.append(env.step(form)[4]["plan"])  # type: ignore[arg-type]
    assert ended[0] == ended[1] == ended[2]
    with pytest.raises(InvalidActionError, match=r"actions have shape \(1,\); this space takes \(1, 2\)"):
        KnobSet("lr+clip", action).check([given], 1)
    with pytest.raises(InvalidActionError, match=r"actions have shape \(2,\); this space takes \(1, 1\)"):
        KnobSet("lr", action).check([given, given], 1)


def test_a_flat_action_moves_one_knob(tmp_path: Path) -> None:
    knobs, whole = KnobSet("lr+clip+rollback", "flat"), KnobSet("lr+clip+rollback")
    assert knobs.outputs == 1 + 6 + 4 + 1
    start = stack_plans([LoopPlan(clip=1.0)])
    seen = [unstack_plans(knobs.apply(knobs.check([own], 1), start))[0] for own in range(knobs.outputs)]
    assert [seen[0]] == unstack_plans(start)
    assert len(set(seen)) == knobs.outputs
    moves = [(column, own) for column, knob in enumerate(whole.knobs) for own in range(len(knob.steps))
             if own != knob.still]  # fmt: skip
    for plan, (column, own) in zip(seen[1:], moves, strict=True):
        action = [knob.still for knob in whole.knobs]
        action[column] = own
        assert unstack_plans(whole.apply([action], start)) == [plan]
    for bad, match in ((12, "action 12 of lane 0 is out of bounds: accepted 0 to 11"), (1.0, "holds whole numbers"),
                       ([1], r"actions have shape \(1, 1\); this space takes \(1,\)")):  # fmt: skip
        with pytest.raises(InvalidActionError, match=match):
            knobs.check([bad], 1)
    env = TrainingLoopEnv(tasks=TASK, knobs="lr+clip", action="flat", ledgers=tmp_path)
    assert env.action_space == gym.spaces.Discrete(11)
    env.reset(seed=0)
    for action in (0, 4, 8, np.int64(10)):
        env.step(action)  # type: ignore[arg-type]
    (path,) = tmp_path.iterdir()
    assert [entry["action"] for entry in read_ledger(path).entries] == [[3, 2], [4, 2], [3, 1], [3, 4]]
    while not env.step(0)[2]:  # type: ignore[arg-type]
        pass
    assert loopwright.replay(path).exact


@pytest.mark.parametrize("action", ["discrete", "flat"])
def test_masks_close_what_changes_nothing(action: str) -> None:
    names = "+".join(KNOBS)
    knobs = KnobSet(names, action)
    rng = np.random.default_rng(0)
    edges = [LoopPlan(), LoopPlan(optimizer="sgd", momentum=0.0, clip=1 / 32, batch=16, depth=0.25, keep=0.125,
                                  order="easy-first", echo=8, sweep="top-down", learning_rate=1e-6)]  # fmt: skip
    for plan in [*edges, *(Spread(1.0, 0.5).draw(rng, LoopPlan()) for _ in range(20))]:
        plans = stack_plans([plan])
        found = knobs.find_open(plans, np.zeros((1, len(KNOBS)), bool))[0]
        still = np.array([knob.still for knob in knobs.knobs])
        expected = []
        for column, knob in enumerate(knobs.knobs):
            for own in range(len(knob.steps)):
                tried = still.copy()
                tried[column] = own
                moved, unmoved = knobs.apply([tried], plans), knobs.apply([still], plans)
                expected.append(own == knob.still or not torch.allclose(moved, unmoved, rtol=1e-5))
        if action == "flat":
            places = np.cumsum([0, *(len(knob.steps) for knob in knobs.knobs)])[:-1]
            expected = [True, *np.delete(expected, places + still)]
        assert found.tolist() == expected, plan
    held = np.array([[name == "lr" for name in KNOBS]])
    assert knobs.find_open(plans, held)[0].sum() < found.sum()


def test_environments_give_their_masks() -> None:
    env = TrainingLoopEnv(tasks=TASK, knobs="lr+batch", plan={"batch": 16})
    with pytest.raises(LoopwrightError, match=r"action_masks\(\) before reset"):
        env.action_masks()
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True] * 7 + [True, True, False]
    vector = TrainingLoopVectorEnv(2, tasks=TASK, knobs="lr+batch", plan={"batch": 16}, autoreset_mode="SameStep")
    envs = SB3VecEnv(vector)
    envs.reset()
    assert np.array_equal(envs.env_method("action_masks", indices=[1])[0], env.action_masks())
    boxes = TrainingLoopEnv(tasks=TASK, action="box")
    boxes.reset(seed=0)
    with pytest.raises(LoopwrightError, match="these are box actions"):
        boxes.action_masks()


def test_a_picture_is_drawn_quickly_and_shows_what_changed() -> None:
    env = TrainingLoopEnv(tasks=TASK, render_mode="rgb_array")
    env.reset(seed=0)
    still = np.array([knob.still for knob in env.knobs.knobs])
    images, spent = [], []
    for step in range(40):
        env.step(still if step % 4 else env.action_space.sample())
        begun = time.process_time()
        image = env.render()
        spent.append(time.process_time() - begun)
        assert isinstance(image, np.ndarray)
        images.append(image)
        if env._episode is not None and not env._episode.live.any():
            env.reset()
    assert np.median(spent) < 0.05
    assert all((one != other).any() for one, other in itertools.pairwise(images))
    env.step(still)
    fresh = TrainingLoopEnv(tasks=TASK, render_mode="rgb_array")
    fresh.__dict__.update(env.__dict__, _picture=None)
    np.testing.assert_array_equal(fresh.render(), env.render())  # whatever was drawn before


def test_a_run_in_words() -> None:
    hard = "mixtures:100000"  # nothing hits it so soon
    env = TrainingLoopEnv(tasks=hard, knobs="lr", plan={"learning_rate": 0.01}, render_mode="ansi")
    assert env.render() is None
    env.reset(seed=0)
    for action in (3, 5, 3):
        env.step(np.array([action]))
    said = env.render()
    assert isinstance(said, str)
    title, first, second, third = said.splitlines()
    assert title.startswith("mixtures:100000, budget ")
    assert "learning_rate 0.01," in first
    assert second.endswith("learning_rate 0.02")
    assert third.split()[-1] == "running"
    vector = TrainingLoopVectorEnv(3, tasks=hard, knobs="lr", plan={"learning_rate": 0.01}, render_mode="ansi")
    vector.reset(seed=0)
    vector.step(np.array([[3], [3], [3]]))
    whole = vector.render()
    assert whole is not None
    assert vector.render(1) == (whole[1],)
    assert whole[0].splitlines()[:2] == [title, first]
    with pytest.raises(LoopwrightError, match="index must be below 3, the number of environments; got 3"):
        vector.render(3)
