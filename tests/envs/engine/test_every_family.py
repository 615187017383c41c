"""Every family, with every one of its models, under every knob set; and what the largest one takes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.knob_set import KNOB_SETS
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.inner_tasks import Calibration, list_families

QUICK = EpisodeSettings(ticks_per_decision=2)
CURVE = Calibration(0.01, 5000.0, ((100.0, 1.0), (5000.0, 0.01)))


@pytest.mark.parametrize("name", list_families())
def test_every_model_takes_a_decision_under_every_knob_set(name: str) -> None:
    family = list_families()[name]
    tasks = [family.make_plain(0, shape).with_calibration(CURVE) for shape in range(len(family.models))]
    for knobs in KNOB_SETS:
        env = TrainingLoopEnv(tasks=tasks, knobs=knobs, settings=QUICK)
        for task in tasks:
            env.reset(seed=0, options={"task": task})
            env.action_space.seed(1)
            observation, reward, _, _, info = env.step(env.action_space.sample())
            assert info["task"] == task.name
            assert np.isfinite(observation).all()
            assert np.isfinite([reward, info["loss"], info["metric"]]).all()


MEASURE = """
import re, sys
from pathlib import Path
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.inner_tasks import list_families
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
task = list_families()[sys.argv[1]].make_plain()
before = peak()
lanes = Lanes(task, 64)
lanes.load(range(64), [task] * 64, range(64))
lanes.run(stack_plans([LoopPlan()] * 64), 2)
lanes.evaluate("control"), lanes.evaluate("target")
print((peak() - before) / 1e6)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_64_lanes_of_the_largest_families_stay_under_2_gigabytes() -> None:
    """Those with the most to hold, and those with the most to compute, each in a process of its own."""
    held = {}
    for name, family in list_families().items():
        lanes = Lanes(family.make_plain(), 1)
        tensors = [*lanes.state.tensors(), *(tensor for pair in lanes.splits.values() for tensor in pair)]
        held[name] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    computed = {
        name: len(family.make_plain().target) * measure_cost(family.models[0]).flops
        for name, family in list_families().items()
    }
    largest = {max(sizes, key=sizes.__getitem__) for sizes in (held, computed)}
    for name in largest:
        command = [sys.executable, "-W", "ignore", "-c", MEASURE, name]
        gigabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert 0.05 < gigabytes < 2, name
