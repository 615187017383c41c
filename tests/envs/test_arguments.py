"""Arguments that cannot be: refused where they are given, in one line that names them and says what is accepted."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.judge import judge
from loopwright.agents.training.config import TrainingConfig
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.episode.replay import replay
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import InvalidActionError, LedgerError, LoopwrightError
from loopwright.envs.loop.ledger import Ledger, read_ledger
from loopwright.envs.loop.plan import LoopPlan, stack_plans, unstack_plans
from loopwright.envs.sampling import Spread
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.envs.vector import TrainingLoopVectorEnv
from loopwright.inner_tasks import Task, get_task

TASKS = ["breast-cancer:1"]
ENDLESS = 10**5000  # Python itself refuses to write it out


def make(action: str = "discrete", **options: Any) -> TrainingLoopEnv:
    env = TrainingLoopEnv(**{"tasks": TASKS, "knobs": "lr-momentum", "action": action, **options})
    env.reset(seed=0)
    return env


def refuses(work: Callable[[], Any], message: str, kind: type[LoopwrightError] = LoopwrightError) -> None:
    with pytest.raises(kind, match=message) as caught:
        work()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([1, [2]], "actions are no array of numbers"),
        ([[1, 2], [1]], "actions are no array of numbers"),
        (np.zeros(2, complex), "actions must be finite numbers"),
        (np.zeros(2, np.complex64), "actions must be finite numbers"),
        (np.full(2, np.inf, np.longdouble), "actions must be finite numbers"),
        (np.array([0.0, None], object), "actions must be finite numbers"),
        (["a", "b"], "actions must be finite numbers"),
        (np.zeros(2, bool), "actions must be finite numbers"),
        (torch.zeros(2, requires_grad=True), "actions are no array of numbers"),
        (None, "actions have shape"),
        ({}, "actions have shape"),
    ],
)
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_actions(kind: str, action: Any, message: str) -> None:
    refuses(lambda: make(kind).step(action), message, InvalidActionError)
    envs = TrainingLoopVectorEnv(1, tasks=TASKS, knobs="lr-momentum", action=kind)
    envs.reset(seed=0)
    with pytest.raises(InvalidActionError):
        envs.step(action)


@pytest.mark.parametrize("dtype", [np.longdouble, np.float16, np.float32, np.float64, np.int8])
def test_any_real_numbers_are_an_action_and_on_record(dtype: type, tmp_path: Path) -> None:
    env, rng = make("box", ledgers=tmp_path), np.random.default_rng(0)
    for _ in range(5):
        env.step(rng.uniform(-1, 1, 2).astype(dtype))
    (path,) = tmp_path.glob("*.jsonl")
    assert replay(path).same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [3]}, r"a task must be a Task, or named family:seed, got 3"),
        ({"tasks": [None]}, "a task must be a Task, or named family:seed, got None"),
        ({"tasks": 3}, "tasks must be a task, a list of tasks, or None for the whole suite, got 3"),
        ({"tasks": "breast-cancer"}, "a task is named family:seed"),
        ({"tasks": "digits-mlp:99999"}, r"no calibrated target; calibrated are digits-mlp:\d+, digits-mlp:"),
        ({"tasks": ["mixtures:" + "9" * 5000]}, "the seed a number of up to 18 digits"),
        ({"tasks": None, "suite": 3}, "unknown suite 3"),
        ({"tasks": None, "suite": ["train"]}, r"unknown suite \['train'\]"),
        ({"plan": "x"}, "plan must be a LoopPlan, a mapping of its fields, or None, got 'x'"),
        ({"plan": {"lr": 1}}, "a plan has no field 'lr'"),
        ({"plan": {"batch": 0.5}}, "batch must be a whole number >= 1; got 0.5"),
        ({"knobs": 3}, "knobs must be a knob set"),
        ({"action": 3}, "unknown kind of action 3"),
        ({"spread": 0.3}, "spread must be a Spread, a mapping of its fields, or None, got 0.3"),
        ({"spread": {"rat": 1}}, "unknown field of spread 'rat'; known: rate, fields"),
        ({"prices": 3}, "prices must be the name of a price list"),
        ({"prices": {"sgd": "x"}}, "the price of an update of sgd must be finite and 0 or more; got 'x'"),
        ({"prices": {"sgd": math.nan}}, "the price of an update of sgd must be finite and 0 or more; got nan"),
        ({"withheld": "x"}, r"withheld must be a chance, in \[0, 1\]; got 'x'"),
        ({"open_runs": math.nan}, r"open_runs must be a chance, in \[0, 1\]; got nan"),
        ({"settings": "x"}, "settings must be an EpisodeSettings, a mapping of its fields, or None, got 'x'"),
        ({"settings": {"microbach": 3}}, "unknown field of settings 'microbach'; known: microbatch, "),
        ({"settings": {"microbatch": 0}}, "microbatch must be 1 or more, got 0"),
        ({"ledgers": 3}, "ledgers must be a folder"),
        ({"render_mode": "x"}, "render_mode must be None"),
    ],
)
def test_arguments_of_environments(options: dict[str, Any], message: str) -> None:
    refuses(lambda: make(**options), message)
    vector = {"tasks": TASKS, "knobs": "lr-momentum", **options}
    refuses(lambda: TrainingLoopVectorEnv(20, **vector).reset(seed=0), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 1.5}, "num_envs must be a whole number, got 1.5"),
        ({"num_envs": -1}, "num_envs must be 0 or more, got -1"),
        ({"num_envs": 10**8}, "num_envs must be 16384 or less, got 100000000"),
        ({"max_episode_steps": 1.5}, "max_episode_steps must be a whole number, got 1.5"),
        ({"max_episode_steps": "x"}, "max_episode_steps must be a whole number, got 'x'"),
        ({"autoreset_mode": "x"}, "unknown autoreset_mode 'x'; known: NextStep, SameStep, Disabled"),
    ],
)
def test_arguments_of_vector_environments(options: dict[str, Any], message: str) -> None:
    refuses(lambda: TrainingLoopVectorEnv(**{"tasks": TASKS, **options}), message)


def test_options_of_a_reset() -> None:
    env, envs = make(), TrainingLoopVectorEnv(1, tasks=TASKS)
    for options, message in (
        ({"task": 3}, "a task must be a Task, or named family:seed, got 3"),
        ({"task": "x"}, "unknown task family 'x'"),
        ([1], r"reset options must be a mapping, such as .*, got \[1\]"),
        ("task", "reset options must be a mapping"),
    ):
        refuses(lambda: env.reset(options=options), message)  # noqa: B023
        if not isinstance(options, dict):
            refuses(lambda: envs.reset(options=options), message)  # type: ignore[arg-type]  # noqa: B023
    _, info = env.reset(seed=0, options={"task": None})  # any of its own
    assert info["task"] == TASKS[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatch": 1.5}, "microbatch must be a whole number, got 1.5"),
        ({"microbatch": "x"}, "microbatch must be a whole number, got 'x'"),
        ({"microbatch": True}, "microbatch must be a whole number, got True"),
        ({"microbatch": 10**12}, "microbatch must be 1048576 or less, got 1000000000000"),
        ({"microbatch": ENDLESS}, "microbatch must be 1048576 or less, got a number of about 5000 digits"),
        ({"ticks_per_decision": 1.5}, "ticks_per_decision must be a whole number"),
        ({"control_batch": 1.5}, "control_batch must be a whole number"),
        ({"guard": 1.5}, "guard must be a whole number"),
        ({"budget_factor": "x"}, "budget_factor must be finite and above 0; got 'x'"),
        ({"budget_factor": 0}, "budget_factor must be finite and above 0; got 0"),
        ({"budget_factor": math.inf}, "budget_factor must be finite and above 0; got inf"),
        ({"discount": None}, r"discount must lie in \(0, 1\]; got None"),
        ({"compile": "no"}, "compile must be True, False or 'auto', got 'no'"),
        ({"device": "abacus"}, "device 'abacus' is not there: Expected one of cpu"),
        ({"device": "meta"}, "device 'meta' does not compute"),
        ({"device": 3}, "device must be a name"),
        ({"reward": 3}, "unknown reward 3"),
    ],
)
def test_settings(options: dict[str, Any], message: str) -> None:
    refuses(lambda: EpisodeSettings(**options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"batch": value}, "batch must be a whole number >= 1; got")
            for value in (1e400, 1.5, "x", None, math.nan, [])
        ),
        ({"echo": math.inf}, "echo must be a whole number >= 1; got inf"),
        ({"batch": ENDLESS}, "batch must be .*; got a number of about 5000 digits"),
        ({"learning_rate": "x"}, "learning_rate must be finite in float32 and >= 0; got 'x'"),
        ({"learning_rate": 1e39}, "learning_rate must be finite in float32"),
        ({"learning_rate": 1j}, "learning_rate must be finite"),
        ({"learning_rate": np.zeros(2)}, "learning_rate must be finite"),
        ({"momentum": "0.5"}, r"momentum must be in \[0, 1\)"),
        ({"second_momentum": 10**400}, r"second_momentum must be in \[0, 1\)"),
        ({"clip": "x"}, "clip must be above 0"),
        ({"average": None}, "average must be finite"),
        ({"rollback": 2}, "rollback must be true or false"),
        ({"optimizer": []}, "optimizer must be one of sgd"),
    ],
)
def test_plans(options: dict[str, Any], message: str) -> None:
    refuses(lambda: LoopPlan(**options), message)


def test_a_plan_of_other_fields_or_none() -> None:
    refuses(lambda: LoopPlan.from_json({"speed": 1}), "a plan has no field 'speed'; it has optimizer, learning_rate")
    refuses(lambda: LoopPlan.from_json([]), "a plan must be a mapping of its fields")  # type: ignore[arg-type]


def test_the_largest_plan_there_is_can_be_stacked() -> None:
    largest = float(np.finfo(np.float32).max)
    plan = LoopPlan(momentum=0.5, second_momentum=0.5, learning_rate=largest, weight_decay=largest, average=largest)
    assert unstack_plans(stack_plans([plan])) == [plan]


def test_a_spread_of_text() -> None:
    refuses(lambda: Spread("x"), r"rate of a spread must lie in \[0, 2\]")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"seed": 2**32}, "seed must be 4294967295 or less, got 4294967296"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"lanes": 10**8}, "lanes must be 16384 or less"),
        ({"steps": "x"}, "steps must be a whole number, got 'x'"),
    ],
)
def test_trainings(options: dict[str, Any], message: str) -> None:
    refuses(lambda: TrainingConfig(**options), message)


@pytest.mark.parametrize("empty", ["controllers", "suites", "competitors"])
def test_an_evaluation_of_nothing(empty: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"controllers": [Constant(LoopPlan())], "suites": ["demo-new"], "competitors": "basic"}
    refuses(lambda: judge(**given | {empty: ()}, folder=tmp_path), f"{empty} is empty; give at least one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [3, None])
def test_the_name_of_a_task(name: Any) -> None:
    refuses(lambda: get_task(name), "a task is named family:seed, in text; got a ")


def test_more_lanes_than_there_is_memory_for(small_task: Task) -> None:
    refuses(lambda: Lanes(small_task, 10**9), r"lanes must be \d+ or less for tasks of this shape: .* this machine has")


def test_a_file_in_place_of_the_folder_of_ledgers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuses(lambda: make(ledgers=tmp_path / "file"), "cannot write .*: File exists")


def test_the_name_of_a_task_is_no_path(tmp_path: Path, small_task: Task) -> None:
    """A ledger is called after its task, and lies in its folder."""
    from dataclasses import replace

    make(tasks=[replace(small_task, name="../../elsewhere")], ledgers=tmp_path / "inside")
    (path,) = (tmp_path / "inside").iterdir()
    assert read_ledger(path).header["task"] == "../../elsewhere"
    refuses(lambda: Ledger.create(path, {}), "never overwritten", LedgerError)
