"""What ``loopwright bench --what clients`` measures: how fast the environments are for those who step them."""

import time
from collections.abc import Callable
from typing import Any

from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.envs.vector import TrainingLoopVectorEnv
from loopwright.scripts.benchmarks import measure_rate

LANES, FRAMES = 16, 100
Rows = list[dict[str, float | str]]


def measure_clients(seconds: float) -> Rows:
    """Decisions a second under random actions on the families of the suite demo, in one thread; seconds a picture."""
    rows: Rows = []
    with limit_threads(1):
        for knobs in ("core", "all"):
            env = TrainingLoopEnv(suite="demo", knobs=knobs)
            rate = measure_rate(_make_step(env), 1, seconds)
            rows.append({"": f"one environment, {knobs}: decisions/s", "value": rate})
        rows.append({"": "one environment, all: seconds a frame, the first included", "value": measure_frames()})
        for compile in ("eager", *(["compiled"] if has_compiler() else [])):
            begun = time.perf_counter()
            settings = {"compile": "auto" if compile == "compiled" else False}
            envs = TrainingLoopVectorEnv(LANES, suite="demo", knobs="core", settings=settings)
            made = time.perf_counter() - begun
            envs.action_space.seed(0)
            envs.reset(seed=0)
            step = lambda envs=envs: envs.step(envs.action_space.sample())  # noqa: E731
            rate = measure_rate(step, LANES, seconds)
            rows.append({"": f"{LANES} in one batch, {compile}: decisions/s", "value": rate})
        rows.append({"": f"{LANES} in one batch: seconds until they are compiled", "value": made})
    return rows


def measure_frames() -> float:
    """Processor seconds that a picture takes, the mean of so many as an episode has."""
    env = TrainingLoopEnv(suite="demo", knobs="all", render_mode="rgb_array", settings={"budget_factor": 1000.0})
    step, spent = _make_step(env), 0.0
    for _ in range(FRAMES):
        step()
        begun = time.process_time()
        env.render()
        spent += time.process_time() - begun
    return spent / FRAMES


def _make_step(env: TrainingLoopEnv) -> Callable[[], Any]:
    env.action_space.seed(0)
    env.reset(seed=0)

    def step() -> None:
        *_, ended, _, _ = env.step(env.action_space.sample())
        if ended:
            env.reset()

    return step
