"""Price lists, and that what they say is paid: in cost, budget, reward, hit and ledger, in every way of running."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import loopwright
from loopwright.agents.controllers.optimizers import Optimized
from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.runner import run_controller
from loopwright.agents.judging.timing import time_methods
from loopwright.envs.engine.prices import (
    CHEAPEST,
    Drawn,
    PriceList,
    Prices,
    find_price_list,
    find_price_range,
    measure_prices,
    read_prices,
)
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.recorder import Recorder
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.context import LEAST_PRICE
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.ledger import read_ledger
from loopwright.envs.loop.observation import Needs
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan, stack_plans
from loopwright.inner_tasks import MLP, ModelSpec, Task, list_families

PRICES = {"sgd": 1.0, "adamw": 8.0, "sinkgd": 16.0, "muon": 160.0}
GRADIENTS = 256.0  # geq of a decision's gradients


def spent(task: Task, plan: LoopPlan, prices: str | Prices = "gradients") -> tuple[float, float]:
    """Geq of one decision, and the budget, where nobody looks."""
    batch = EpisodeBatch(task, 1, EpisodeSettings(prices=prices), needs=Needs.NOTHING)
    batch.begin([0], [Start(task, 0, plan)])
    batch.decide(batch.plans)
    return batch.budget.cost[0].item(), batch.budget.total[0].item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("microbatches", [1, 2, 8])
def test_every_update_is_paid_for(optimizer: str, microbatches: int, small_task: Task) -> None:
    plan = LoopPlan(optimizer=optimizer, batch=microbatches)
    assert spent(small_task, plan)[0] == GRADIENTS
    cost, budget = spent(small_task, plan, PRICES)
    assert cost == GRADIENTS + 16 / microbatches * PRICES[optimizer]
    # The budget is what the calibrated configuration, adamw with two microbatches an update, pays for the same.
    assert budget == pytest.approx(spent(small_task, plan)[1] * (1 + PRICES["adamw"] / 32))


def test_the_winners_own_price_is_in_the_budget(small_task: Task) -> None:
    assert small_task.calibration is not None
    winner = {**LoopPlan(optimizer="sgd", batch=2).as_json(), "warm_up": 0.0, "horizon": 1.0}
    by_sgd = small_task.with_calibration(replace(small_task.calibration, winner=winner))
    free = spent(by_sgd, LoopPlan())[1]
    assert spent(by_sgd, LoopPlan(), PRICES)[1] == pytest.approx(free * (1 + PRICES["sgd"] / 32))


def test_a_run_pays_until_it_hits(small_task: Task) -> None:
    settings = EpisodeSettings()
    controller = Constant(LoopPlan(learning_rate=1e-2, batch=1))
    (free,) = run_controller(controller, [small_task], [1], settings)
    (priced,) = run_controller(controller, [small_task], [1], replace(settings, prices=PRICES))
    assert free.hit
    assert priced.cost == pytest.approx(free.cost * (1 + PRICES["adamw"] / 16))
    own = Optimized(LoopPlan(batch=1), "adamw", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0})
    (library,) = run_controller(own, [small_task], [1], replace(settings, prices=PRICES))
    assert (library.budget, library.cost) == (pytest.approx(priced.budget), pytest.approx(priced.cost, rel=0.3))
    dear = Optimized(own.start, "soap", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "every": 10})
    with pytest.raises(LoopwrightError, match="no price for an update of soap"):
        run_controller(dear, [small_task], [1], replace(settings, prices=PRICES))
    (paid,) = run_controller(dear, [small_task], [1], replace(settings, prices={**PRICES, "soap": 48.0}))
    (unpaid,) = run_controller(dear, [small_task], [1], settings)
    assert paid.budget == pytest.approx(priced.budget)
    assert paid.cost == pytest.approx(4 * unpaid.cost)


def test_a_timing_counts_the_same_geq(small_task: Task) -> None:
    methods = [(Constant(LoopPlan(batch=1)), [LoopPlan(batch=1)])]
    dear = {**PRICES, "adamw": 1600.0}
    (free,), (paid,) = (
        time_methods(methods, small_task, EpisodeSettings(prices=prices), 0) for prices in ("gradients", dear)
    )
    # A decision counts as 101 times as many geq, in about the same time: two timings on a noisy machine.
    assert free.seconds_per_geq / 300 < paid.seconds_per_geq < free.seconds_per_geq / 30


def test_a_ledger_holds_the_prices_and_is_executed_with_them(small_task: Task, tmp_path: Path) -> None:
    """Four rules in one run, alone in the replay where they had company: to the bit."""
    batch = EpisodeBatch(small_task, 3, EpisodeSettings(prices=PRICES), recorder=Recorder(tmp_path))
    batch.begin(range(3), [Start(small_task, seed, withheld=("target",)) for seed in range(3)])
    rules = ("muon", "sinkgd", "adamw", "sgd", "muon")
    for number, rule in enumerate(rules):
        others = [LoopPlan(optimizer=rules[(number + lane) % 5], batch=lane) for lane in (1, 2)]
        batch.decide(stack_plans([LoopPlan(optimizer=rule, batch=1, learning_rate=1e-3), *others]))
    batch.end(range(3))
    path = sorted(tmp_path.iterdir())[0]
    content = read_ledger(path)
    assert content.header["prices"] == PRICES
    assert content.header["settings"]["prices"] == PRICES
    assert content.header["withheld"] == ["target"]
    assert content.entries[0]["cost"] > GRADIENTS + 16 * PRICES["muon"]
    assert loopwright.replay(path, small_task).same


def test_an_open_run_is_executed_again_as_one(small_task: Task, tmp_path: Path) -> None:
    batch = EpisodeBatch(small_task, 1, EpisodeSettings(reward="log-progress"), recorder=Recorder(tmp_path))
    batch.begin([0], [Start(small_task, 3, LoopPlan(learning_rate=1e-4), withheld=("target",), open_budget=0.5)])
    while batch.live.any():
        batch.decide(batch.plans)
    (path,) = tmp_path.iterdir()
    assert read_ledger(path).header["open_budget"] == 0.5
    assert read_ledger(path).entries[-1]["outcome"] == "miss"
    assert loopwright.replay(path, small_task).same


def test_an_environment_draws_prices_in_their_order(small_task: Task) -> None:
    low, high = find_price_range()
    rng, model = np.random.default_rng(0), small_task.model
    every = [Drawn().draw(rng, model, 16) for _ in range(600)]
    free = [prices for prices in every if not any(prices.values())]
    stored = [{name: 16 * entry[name] for name in OPTIMIZERS} for entry in read_prices().values()]
    measured = [prices for prices in every if prices in stored]
    drawn = [prices for prices in every if prices not in free and prices not in measured]
    assert all(150 < len(kind) < 250 for kind in (free, measured, drawn))
    for prices in drawn:
        assert sorted(prices, key=prices.__getitem__) == sorted(high, key=high.__getitem__)
    muon = [prices["muon"] / 16 for prices in drawn]
    assert min(muon) < 0.1 * max(muon)
    assert max(muon) <= high["muon"]
    assert min(prices["sgd"] / 16 for prices in drawn) >= min(low.values())
    assert low["adamw"] == pytest.approx(CHEAPEST * min(p["adamw"] for p in read_prices().values()))

    env = loopwright.TrainingLoopEnv(tasks=[small_task], prices="drawn")
    shown = [name for name in loopwright.OBSERVATION_NAMES if name.startswith("price_")]
    columns = [loopwright.OBSERVATION_NAMES.index(name) for name in shown]
    seen = [tuple(env.reset(seed=seed)[0][columns].tolist()) for seed in range(12)]
    assert len(set(seen)) >= 5
    assert max(min(seen)) == pytest.approx(math.log10(LEAST_PRICE))  # some are free
    assert tuple(env.reset(seed=3)[0][columns].tolist()) == seen[3]


class Doubled(PriceList):
    name = "doubled"

    def quote(self, model: ModelSpec, microbatch: int, names: object = OPTIMIZERS) -> dict[str, float]:
        return {name: 2 * price for name, price in PRICES.items()}


def test_prices_are_given_in_any_way(small_task: Task) -> None:
    for prices in (PRICES, "measured", "gradients", Doubled()):
        env = loopwright.TrainingLoopEnv(tasks=[small_task], knobs="lr", prices=prices)
        env.reset(seed=0)
        cost = env.step([3])[4]["cost"]
        expected = find_price_list(prices).quote(small_task.model, 16)["adamw"]
        looks = 2 * env._episode._price_of_look  # type: ignore[union-attr]
        assert cost == pytest.approx(GRADIENTS + 8 * expected + looks)
    assert json.dumps(EpisodeSettings(prices=Doubled()).as_json())
    with pytest.raises(UnknownNameError, match="unknown price list 'free'; known: gradients, measured, drawn"):
        EpisodeSettings(prices="free")
    with pytest.raises(LoopwrightError, match="no price for an update of adamw"):
        loopwright.TrainingLoopEnv(prices={"sgd": 1.0})
    with pytest.raises(LoopwrightError, match="is a distribution"):
        spent(small_task, LoopPlan(), "drawn")
    strange = replace(small_task, model=MLP(30, (31,), 2))
    with pytest.raises(LoopwrightError, match=r"no prices were measured for MLP\(inputs=30, hidden=\(31,\)"):
        spent(strange, LoopPlan(), "measured")


def test_every_family_has_measured_prices() -> None:
    known = read_prices()
    models = {model for family in list_families().values() for model in family.models}
    assert {(repr(model), 16) for model in models} <= set(known)
    for passes in known.values():
        assert set(OPTIMIZERS) <= set(passes)
        assert all(price > 0 for price in passes.values())
        assert passes["muon"] > passes["adamw"]


def test_measuring_prices_finds_that_muon_is_dearer() -> None:
    own = Optimized(LoopPlan(), "adamw", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0})
    found = measure_prices(MLP(64, (64, 64), 10), 16, {"adamw": own, "other": own})
    assert list(found) == [*OPTIMIZERS, "other"]
    assert found["muon"] > 2 * found["adamw"] > 0
    assert torch.get_num_threads() == 1
