"""Optimizers and schedules of other libraries: the same update in lanes and in a plain loop, and the libraries' own."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from loopwright.agents.controllers.competitors import COMPETITORS
from loopwright.agents.controllers.optimizers import Optimized
from loopwright.agents.controllers.schedules import RESOLUTION, SCHEDULES, Scheduled
from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.runner import run_controller
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.library_lanes import LibraryLanes
from loopwright.envs.engine.reference import ReferenceLoop
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import LibraryUpdate
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.inner_tasks import Task

SHORT = EpisodeSettings(budget_factor=0.5)
OPTIMIZED = [c for c in COMPETITORS.values() if c.controller is Optimized]
# SOAP turns to eigenvectors of matrices that have none in particular at first: a rounding error decides.
DETERMINED = [c for c in OPTIMIZED if c.name != "SOAP"]


@pytest.mark.parametrize("clip", [math.inf, 0.1])
@pytest.mark.parametrize("competitor", DETERMINED, ids=lambda c: c.name)
def test_lanes_and_plain_loop_agree_on_every_optimizer(competitor: object, clip: float, small_task: Task) -> None:
    controller = list(competitor.candidates(4))[2]  # type: ignore[attr-defined]
    plan = LoopPlan(batch=2, average=controller.start.average, clip=clip)
    plain = ReferenceLoop(small_task, 5, dtype=torch.float64, own_optimizer=controller, updates=50)
    lanes = LibraryLanes(small_task, 2, dtype=torch.float64)
    lanes.load([0, 1], [small_task] * 2, [5, 6])
    for lane in (0, 1):
        lanes.equip(lane, controller, 50)
    for _ in range(2):
        sums = plain.run(plan, 10).sums[:, 0]
        of_lanes = lanes.run(stack_plans([plan] * 2), 10).sums[:, 0]
    np.testing.assert_allclose(sums, of_lanes, rtol=1e-5, atol=1e-5)
    weights = torch.cat([p.flatten() for p in plain.average])
    # Clipping, and what three optimizers estimate over all parameters, goes through float32 in these libraries.
    loose = clip < 1 or controller.kind in ("prodigy", "d-adaptation", "ali-g")
    torch.testing.assert_close(weights, lanes.state.average[0], rtol=0, atol=1e-4 if loose else 1e-9)
    assert (lanes.state.average[0] != lanes.state.average[1]).any()
    assert plain.evaluate(small_task.target)[0] == pytest.approx(lanes.evaluate("target")[0][0].item(), rel=1e-3)


def test_the_engines_adamw_is_that_of_torch(small_task: Task) -> None:
    plan = LoopPlan(learning_rate=1e-2, momentum=0.8, weight_decay=0.1, batch=2, average=32.0)
    own, library = (kind(small_task, 1, dtype=torch.float64) for kind in (Lanes, LibraryLanes))
    for lanes in (own, library):
        lanes.load([0], [small_task], [5])
    assert isinstance(library, LibraryLanes)
    library.equip(0, Optimized(plan, "adamw", {"lr": 1e-2, "momentum": 0.8, "weight_decay": 0.1}), 1)
    for lanes in (own, library):
        lanes.run(stack_plans([plan], torch.float64), 60)
    torch.testing.assert_close(own.state.average, library.state.average, rtol=0, atol=1e-9)


def test_soap_takes_the_same_first_steps(small_task: Task) -> None:
    controller = next(COMPETITORS["SOAP"].candidates(1))
    plan = LoopPlan(batch=2)
    plain = ReferenceLoop(small_task, 5, dtype=torch.float64, own_optimizer=controller)  # type: ignore[attr-defined]
    lanes = LibraryLanes(small_task, 1, dtype=torch.float64)
    lanes.load([0], [small_task], [5])
    lanes.equip(0, controller, 1)  # type: ignore[attr-defined]
    plain.run(plan, 2)
    lanes.run(stack_plans([plan]), 2)
    torch.testing.assert_close(torch.cat([p.flatten() for p in plain.average]), lanes.state.average[0])


class Told(torch.optim.SGD):
    """Keeps the losses that it is told."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(parameters, lr=0.0)
        self.losses: list[float] = []

    def step(self, closure: Callable[[], float]) -> None:  # type: ignore[override]
        self.losses.append(closure())


def test_an_optimizer_is_told_the_mean_loss_of_its_batch(small_task: Task) -> None:
    told: list[Told] = []

    class Brought:
        flat = True

        def make(self, parameters: Sequence[torch.Tensor], updates: int) -> LibraryUpdate:
            told.append(Told(parameters))
            return LibraryUpdate((told[-1],))

    plain = ReferenceLoop(small_task, 5, dtype=torch.float64, own_optimizer=Brought())
    lanes = LibraryLanes(small_task, 1, dtype=torch.float64)
    lanes.load([0], [small_task], [5])
    lanes.equip(0, Brought(), 1)
    for loop, run in ((told[0], plain.run), (told[1], lambda plan, ticks: lanes.run(stack_plans([plan]), ticks))):
        one_by_one = [run(LoopPlan(batch=2), 1).total("loss").item() for _ in range(6)]
        assert loop.losses == pytest.approx([sum(pair) / 2 for pair in zip(*[iter(one_by_one)] * 2, strict=True)])
        assert len(set(loop.losses)) == 3


def test_a_loop_without_telemetry_trains_the_same(small_task: Task) -> None:
    plan = LoopPlan(learning_rate=1e-2, clip=0.5, average=32.0)
    full, bare = ReferenceLoop(small_task, 3), ReferenceLoop(small_task, 3, telemetry=False)
    sums, few = full.run(plan, 20), bare.run(plan, 20)
    assert all(torch.equal(a, b) for a, b in zip(full.average, bare.average, strict=True))
    assert (sums.sums == few.sums).all()
    assert len(few.window) == 0 < len(sums.window)


@pytest.mark.parametrize("competitor", OPTIMIZED, ids=lambda c: c.name)
def test_every_optimizer_runs_as_a_controller(competitor: object, small_task: Task) -> None:
    controller = next(competitor.candidates(1))  # type: ignore[attr-defined]
    (record,) = run_controller(controller, [small_task], [1], SHORT, traced=True)
    assert record.cost > 0
    assert record.trace[-1].loss == record.final_loss < 10
    assert run_controller(controller, [small_task], [1], SHORT, traced=True) == [record]


def test_an_optimizer_that_diverges_ends_its_run(small_task: Task) -> None:
    wild = Optimized(LoopPlan(batch=1), "adamw", {"lr": 1e10, "momentum": 0.9, "weight_decay": 1e10})
    sane = Constant(LoopPlan(learning_rate=1e-2))
    records = [run_controller(c, [small_task], [1], SHORT)[0] for c in (wild, sane)]
    assert records[0].outcome == "diverged"
    assert records[0].cost == records[0].budget
    assert math.isfinite(records[1].final_loss)


def test_schedules_are_those_of_the_libraries() -> None:
    followed = Scheduled(LoopPlan(momentum=0.9), "one-cycle", settings={"warm_up": 0.25})._table
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = OneCycleLR(
        optimizer, 1.0, total_steps=RESOLUTION + 1, pct_start=0.25, base_momentum=0.81, max_momentum=0.9
    )
    for step in range(RESOLUTION):
        group = optimizer.param_groups[0]
        assert followed[:, step].tolist() == pytest.approx([group["lr"], group["momentum"]], rel=1e-5)
        optimizer.step()
        scheduler.step()
    for name in SCHEDULES:
        rates = Scheduled(LoopPlan(), name)._table[0]
        assert rates.min() >= 0
        assert rates.max() == pytest.approx(1, abs=0.01)
        assert rates[-1] <= 0.05
    stable = Scheduled(LoopPlan(), "warm-up-stable-decay", settings={"warm_up": 0.1, "decay": 0.2})._table[0]
    assert stable[RESOLUTION // 2] == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(LoopwrightError, match="unknown optimizer"):
        Optimized(LoopPlan(), "sgdx")
    with pytest.raises(LoopwrightError, match="unknown schedule"):
        Scheduled(LoopPlan(), "sine")
    with pytest.raises(LoopwrightError, match="horizon"):
        Scheduled(LoopPlan(), "cosine", 0.0)
    with pytest.raises(LoopwrightError, match="warm_up"):
        Scheduled(LoopPlan(), "cosine", 1.0, {"warm_up": 1.5})
