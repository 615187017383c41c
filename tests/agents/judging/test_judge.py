"""The judge as a whole, on one small task: every method runs, ties are ties, and nobody sees the target split."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loopwright.agents.controllers.competitors import COMPETITORS
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.simple import Constant, OpenLoop
from loopwright.agents.controllers.tuned import find_best_single, get_starting_plan, load_competitors
from loopwright.agents.judging import entrants
from loopwright.agents.judging.contest import Contest
from loopwright.agents.judging.entrants import AGENT, find_factor, group_trainings, scale_start
from loopwright.agents.judging.evaluation import OPEN_LOOP, ORACLE, Evaluation
from loopwright.agents.judging.judge import RANDOM_POLICY, RESULTS, count_runs, judge
from loopwright.agents.judging.parts import PARTS, cut_parts, read_parts
from loopwright.agents.judging.report import write_report
from loopwright.agents.judging.results import ResultsFile, RunRecord, TracePoint, read_results
from loopwright.agents.judging.runner import Job, JobsPart, run_controller, run_jobs
from loopwright.agents.judging.search import TRIALS, Search, list_searches, run_searches
from loopwright.agents.judging.statistics import GEQ, SECONDS
from loopwright.agents.judging.timing import ROUNDS, convert_to_seconds, time_methods
from loopwright.agents.judging.typical_schedule import SCHEDULE, TYPICAL, find_typical_plans
from loopwright.envs.engine.plain import PlainLoop
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.compiled_observer import CompiledObserver
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks import Task, get_task
from loopwright.inner_tasks.suites import _SUITES, Draws, Suite
from loopwright.inner_tasks.task import Split
from loopwright.scripts.compare import compare

TINY, TASK = "tiny", "breast-cancer:100000"
SHORT = EpisodeSettings(budget_factor=0.6)


def bundle(seed: int, knobs: str = "all") -> Policy:
    torch.manual_seed(seed)
    kept = KnobSet(knobs)
    outputs = sum(len(knob.steps) for knob in kept.knobs)
    network = torch.nn.Sequential(torch.nn.Linear(len(OBSERVATION_NAMES), outputs))
    return Policy(network, kept, get_starting_plan("tuned"), training={"decisions": 1000, "suite": TINY})


@pytest.fixture(scope="module")
def tiny_suite() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_SUITES, TINY, Suite(TINY, (Draws({"breast-cancer": 1}, 100_000),), "one small task"))
        yield


@pytest.fixture(scope="module")
def everything(tiny_suite: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path, Counter[str]]:
    """Two trainings of an agent, one of another, and all competitors, on one task from two seeds."""
    folder, counted = tmp_path_factory.mktemp("judge"), Counter[str]()

    def count(part: str, done: int) -> None:
        counted[part] += done

    controllers = [bundle(0), bundle(1), bundle(2, "lr")]
    found = judge(controllers, [TINY], folder, seeds=2, settings=SHORT, progress=count)
    return found, folder, counted


@pytest.mark.slow
def test_every_method_of_the_protocol_runs(everything: tuple[Evaluation, Path, Counter[str]]) -> None:
    evaluation, folder, counted = everything
    names = [AGENT, "agent (lr)", "default AdamW", *COMPETITORS, ORACLE, RANDOM_POLICY, TYPICAL]
    names += [*list_searches(), OPEN_LOOP]
    assert sorted(evaluation.names) == sorted(names)
    runs = Counter(r.method for r in evaluation.records)
    assert runs == {name: 4 if name == AGENT else 2 for name in names}
    assert counted == count_runs([bundle(0), bundle(1), bundle(2, "lr")], 1, 2, "all")
    assert {timing.method for timing in evaluation.timings} == set(names)
    assert all(timing.seconds_per_geq > 0 and 0 <= timing.overhead < 1 for timing in evaluation.timings)
    assert evaluation.rival == find_best_single(COMPETITORS)
    assert {ratio.unit for ratio in evaluation.ratios} == {GEQ, SECONDS}
    for record in evaluation.records:
        assert record.easier_cost is not None
        assert record.easier_cost <= record.cost  # it is held when the target is, if not before
    _, kept = read_results(folder / RESULTS)
    assert [r.key for r in kept] == [r.key for r in evaluation.records]


@pytest.mark.slow
def test_workers_replay_beside_the_rest_and_come_to_the_same(
    everything: tuple[Evaluation, Path, Counter[str]], tmp_path: Path
) -> None:
    alone, counted = everything[0], Counter[str]()
    shutil.copy(everything[1] / SCHEDULE, tmp_path)
    controllers = [bundle(0), bundle(1), bundle(2, "lr")]
    shared = judge(
        controllers, [TINY], tmp_path, seeds=2, settings=SHORT, searches=False, workers=2,
        progress=lambda part, done: counted.update({part: done}),
    )  # fmt: skip
    expected = {r.key: (r.outcome, r.cost) for r in alone.records if r.method not in list_searches()}
    assert {r.key: (r.outcome, r.cost) for r in shared.records} == expected
    assert len(shared.records) == len(expected)
    wanted = count_runs(controllers, 1, 2, "all")
    assert {part: counted[part] for part in ("runs", "replays", "timings")} == {
        part: wanted[part] for part in ("runs", "replays", "timings")
    }
    times = read_parts(tmp_path / PARTS)
    assert {time.kind for time in times} == {"runs", "replays"}


def test_the_typical_schedule_is_the_median_of_what_goes_on() -> None:
    runs = [[LoopPlan("adamw", rate, batch=b) for rate, b in zip(rates, (1, 4, 4), strict=False)]
            for rates in ((1e-3, 1e-2, 1e-1), (1e-3, 2e-2), (3e-3, 4e-2), (5e-3,), (6e-3,))]  # fmt: skip
    runs[0][1] = replace(runs[0][1], optimizer="muon")
    plans = find_typical_plans(runs)
    assert [(plan.learning_rate, plan.batch, plan.optimizer) for plan in plans] == [
        (3e-3, 1, "adamw"),
        (2e-2, 4, "adamw"),
    ]


def test_the_typical_schedule_is_kept_and_replayed(everything: tuple[Evaluation, Path, Counter[str]]) -> None:
    evaluation, folder, _ = everything
    kept = json.loads((folder / SCHEDULE).read_text())
    assert kept["made_by"]["prices"] == "gradients"
    plans = tuple(LoopPlan.from_json(plan) for plan in kept["plans"])
    for record in (r for r in evaluation.records if r.method == TYPICAL):
        (again,) = run_controller(OpenLoop(plans), [get_task(TASK)], [record.seed], SHORT)
        assert (again.cost, again.outcome) == (record.cost, record.outcome)


def test_an_evaluation_that_is_there_is_not_run_again(
    everything: tuple[Evaluation, Path, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, folder, _ = everything

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a lane was started")

    monkeypatch.setattr(EpisodeBatch, "__init__", refuse)
    again = judge([bundle(0), bundle(1), bundle(2, "lr")], [TINY], folder, seeds=2, settings=SHORT)
    assert [replace(r, trace=()) for r in again.records] == [replace(r, trace=()) for r in evaluation.records]
    assert again.as_dict() == evaluation.as_dict()
    with pytest.raises(LoopwrightError, match=r"another evaluation \(agent differ\)"):
        judge([bundle(3)], [TINY], folder, seeds=2, settings=SHORT)


def test_the_report_holds_every_method_and_every_loss(everything: tuple[Evaluation, Path, Counter[str]]) -> None:
    evaluation, folder, _ = everything
    written = {path.name: path for path in write_report(evaluation, folder, {"made": "here"})}
    page = written["report.html"].read_text()
    for name in evaluation.names:
        assert name in page
        assert f"| {name} |" in written["tables.md"].read_text().replace("**", "")
    assert evaluation.headline(TINY) in page
    summary = json.loads(written["summary.json"].read_text())
    assert summary["provenance"] == {"made": "here"}
    assert len(summary["ratios"]) == len(evaluation.others) * 2
    assert written["evaluation.png"].stat().st_size > 10_000


def test_a_wrapped_competitor_ties_with_itself_in_every_statistic(tiny_suite: None, tmp_path: Path) -> None:
    best = next(c for c in load_competitors() if c.name == "constant")
    assert isinstance(best, Constant)
    evaluation = judge(
        [replace(best, name="mine")], [TINY], tmp_path, seeds=3, competitors=["constant"], settings=SHORT
    )
    for unit in (GEQ, SECONDS):
        ratio = evaluation.ratio(TINY, "constant", unit)
        assert (ratio.point, ratio.low, ratio.high) == (1, 1, 1)
        assert ratio.hit_rate == ratio.against_hit_rate
    assert evaluation.verdict(TINY, "constant") == "no difference shown"
    (row,) = evaluation.task_rows[TINY]
    assert (row.ratio.point, row.p, row.holm, row.outcome) == (1, 1, 1, "not testable")
    easier = evaluation.easier_ratios[TINY, "constant"]
    assert (easier.point, easier.low, easier.high) == (1, 1, 1)
    metric = evaluation.final_metric(TINY)
    assert (metric.difference, metric.low, metric.high, metric.no_worse) == (0, 0, 0, True)
    scores = {profile.method: (profile.steps, profile.score) for profile in evaluation.profiles[TINY]}
    assert scores[AGENT] == scores["constant"]
    compared = compare(str(tmp_path), f"{tmp_path}:constant")
    assert [(r.unit, r.point) for r in compared.ratios] == [(GEQ, 1), (SECONDS, 1)]
    assert compared.verdict == "no difference shown"


def test_comparing_says_what_is_missing(everything: tuple[Evaluation, Path, Counter[str]], tmp_path: Path) -> None:
    evaluation, folder, _ = everything
    compared = compare(str(folder), f"{folder}:constant")
    assert compared.ratios[0].point == pytest.approx(evaluation.ratio(TINY, "constant").point)
    with pytest.raises(LoopwrightError, match=r"no runs of 'nobody'; it has .*Ali-G, .*agent, "):
        compare(str(folder), f"{folder}:nobody")
    with pytest.raises(LoopwrightError, match="no results"):
        compare(str(tmp_path), str(folder))


def test_a_replay_is_the_agents_cheapest_schedule_from_another_seed(
    everything: tuple[Evaluation, Path, Counter[str]],
) -> None:
    evaluation, _, _ = everything
    for replayed in (r for r in evaluation.records if r.method == OPEN_LOOP):
        (other,) = (r for r in evaluation.records
                    if (r.method, r.training) == (AGENT, 0) and r.seed != replayed.seed)  # fmt: skip
        plans = tuple(point.plan for point in other.trace)
        (again,) = run_controller(OpenLoop(plans, OPEN_LOOP), [get_task(TASK)], [replayed.seed], SHORT)
        assert (replayed.cost, replayed.outcome) == (again.cost, again.outcome)
        assert replayed.final_loss == pytest.approx(again.final_loss, rel=1e-3)


def test_of_several_schedules_the_cheapest_is_replayed_and_never_on_its_own_seed(tmp_path: Path) -> None:
    paid = {0: 300.0, 1: 100.0, 2: 200.0}
    results = ResultsFile(
        tmp_path / RESULTS, {"suites": {"one": [TASK]}, "seeds": list(paid)}, {AGENT: ["one"], OPEN_LOOP: ["two"]}
    )
    contest = Contest([], "", [get_task(TASK)], list(paid), results, None, 1, SHORT, 1, lambda part, done: None)
    find_more = contest._find_replays()
    for seed, cost in paid.items():
        assert find_more() == ()  # a run is still missing
        trace = (TracePoint(cost, 1.0, LoopPlan(learning_rate=cost)),)
        results.append(RunRecord(AGENT, TASK, seed, "hit", cost, 900.0, 0.1, 0.9, trace=trace))
    (part,) = find_more()
    assert part.kind == "replays"
    jobs = part.jobs  # type: ignore[attr-defined]
    assert {job.seed: job.controller.start.learning_rate for job in jobs} == {0: 100.0, 1: 200.0, 2: 100.0}
    assert find_more() == ()  # once each
    results.append(RunRecord(OPEN_LOOP, TASK, 1, "hit", 100.0, 900.0, 0.1, 0.9))
    (rest,) = contest._find_replays()()
    assert [job.seed for job in rest.jobs] == [0, 2]  # type: ignore[attr-defined]


def test_all_trials_are_charged(small_task: Task) -> None:
    trials: list[float] = []
    records = {}
    search = Search([small_task], [1, 2], lambda record: records.update({record.key: record}))

    def follow(job: object, record: object) -> object:
        trials.append(record.cost)  # type: ignore[attr-defined]
        return search.follow(job, record)  # type: ignore[arg-type]

    run_jobs(search.list_first(), EpisodeSettings(budget_factor=0.2), follow=follow)  # type: ignore[arg-type]
    assert len(records) == len(list_searches()) * 2
    full = [r for r in records.values() if r.method.endswith(f" {TRIALS[-1]} trials")]
    assert sum(r.cost for r in full) == pytest.approx(sum(trials))
    for record in full:
        few = records[record.key._replace(method=record.method.replace(str(TRIALS[-1]), str(TRIALS[0])))]
        assert few.cost <= record.cost
        assert few.hit <= record.hit
        assert record.budget == TRIALS[-1] / TRIALS[0] * few.budget
    assert search.find_over({r.key for r in full}) == {job.key for job in search.list_first()}
    assert not search.find_over({r.key for r in records.values()} - {r.key for r in full})


def test_jobs_that_follow_others_wait_their_turn(small_task: Task) -> None:
    """Lest the study with the most trials run on alone when all others have ended."""
    jobs = [Job(Constant(LoopPlan()), small_task, seed) for seed in range(6)]
    ended: list[int] = []

    def follow(job: Job, record: RunRecord) -> Job | None:
        ended.append(job.seed)
        return job if ended.count(job.seed) < 3 else None

    run_jobs(jobs, EpisodeSettings(budget_factor=0.1), follow=follow)
    assert [sorted(ended[start : start + 3]) for start in range(0, 18, 3)] == [[0, 1, 2], [3, 4, 5]] * 3


def test_what_is_observed_does_not_depend_on_the_targets_labels(small_task: Task) -> None:
    """An agent that were given the target split by mistake would be found out here."""
    shuffled = small_task.target.labels[torch.randperm(len(small_task.target))]
    blind = replace(small_task, target=Split(small_task.target.inputs, shuffled))
    misled = replace(small_task, control=blind.target)
    batches = []
    agent = bundle(0)
    for task in (small_task, blind, misled):
        batch = EpisodeBatch(task, 1, EpisodeSettings(), rolls_back=True)
        batch.begin([0], [Start(task, 7, agent.start)])
        batches.append((batch, []))
    for _ in range(6):
        for batch, seen in batches:
            seen.append(batch.observation.clone())
            steps = agent.steps(batch.observation.numpy())
            decision = batch.decide(agent.knobs.move(steps, batch.plans, batch.step_ratio))
            seen.append(decision.loss)
    plain, of_blind, of_misled = (seen for _, seen in batches)
    assert all(torch.equal(a, b) for a, b in zip(plain[::2], of_blind[::2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain[1::2], of_blind[1::2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain[::2], of_misled[::2], strict=True))


def test_on_the_untuned_track_all_start_from_the_same_factor(tiny_suite: None, tmp_path: Path) -> None:
    names = ["constant", "warm-up cosine", "plateau", "Muon", "Prodigy"]
    found = judge([bundle(0)], [TINY], tmp_path, seeds=2, competitors=names, settings=SHORT, rate_spread=1.5)
    tuned = {own.name: own for own in [bundle(0), *load_competitors(names)]}
    factors = {seed: find_factor(seed, 1.5) for seed in {r.seed for r in found.records}}
    assert len(set(factors.values())) == 2
    assert all(10**-1.5 < factor < 10**1.5 for factor in factors.values())
    traced = [r for r in found.records if r.trace and r.method in ("constant", "default AdamW")]
    assert len(traced) == 2 + (found.rival == "constant")  # the rival's from both seeds, and one of others
    for record in traced:
        rate = tuned[record.method].start.learning_rate * factors[record.seed]  # type: ignore[union-attr]
        assert record.trace[0].plan.learning_rate == pytest.approx(rate, rel=1e-5)
    muon, prodigy = (scale_start(tuned[name], 10.0) for name in ("Muon", "Prodigy"))
    for setting in ("lr", "adamw_lr"):
        assert muon.settings[setting] == pytest.approx(10 * tuned["Muon"].settings[setting])  # type: ignore[attr-defined]
    assert muon.settings["momentum"] == tuned["Muon"].settings["momentum"]  # type: ignore[attr-defined]
    assert prodigy == tuned["Prodigy"]
    with pytest.raises(LoopwrightError, match="another evaluation"):
        judge([bundle(0)], [TINY], tmp_path, seeds=2, competitors=names, settings=SHORT)
    with pytest.raises(LoopwrightError, match=r"rate_spread must lie in \[0, 2\], orders of magnitude; got 3"):
        judge([bundle(0)], [TINY], tmp_path, rate_spread=3)


def test_agents_are_told_apart() -> None:
    entrants = group_trainings([bundle(0), bundle(1), bundle(2, "core")])
    assert [(e.name, e.group, len(e.trainings)) for e in entrants] == [
        ("agent", "agent", 2), ("agent (core)", "ablation", 1)
    ]  # fmt: skip
    made = {"algorithm": "PPO", "suite": "train", "seed": 0, "options": {}}
    one = replace(bundle(0), training=made)
    for change in ({"algorithm": "A2C"}, {"suite": "demo"}, {"options": {"gamma": 0.9}}, {"rate_spread": 0.5}):
        other = replace(bundle(1), training={**made, "seed": 1, **change})
        assert [(e.name, len(e.trainings)) for e in group_trainings([one, other])] == [
            ("agent", 1),
            ("agent (all, 2)", 1),
        ]
    elsewhere = replace(bundle(1), training={**made, "seed": 1}, start=LoopPlan())
    assert len(group_trainings([one, elsewhere])) == 2
    assert len(group_trainings([one, replace(bundle(1), training={**made, "seed": 1})])) == 1
    with pytest.raises(LoopwrightError, match="given twice"):
        group_trainings([bundle(0), bundle(0)])
    with pytest.raises(LoopwrightError, match="at least one policy"):
        group_trainings([])


def test_the_basic_competitors_are_a_constant_a_schedule_and_a_rule() -> None:
    assert entrants.expand_competitors("basic") == ["constant", "warm-up cosine", "plateau"]
    assert entrants.expand_competitors("all") == list(COMPETITORS)
    assert entrants.expand_competitors(["SOAP"]) == ["SOAP"]


def test_what_cannot_be_judged_is_refused(tiny_suite: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoopwrightError, match="seeds must be 1 or more, got 0"):
        judge([bundle(0)], [TINY], tmp_path, seeds=0)
    with pytest.raises(LoopwrightError, match="unknown competitor 'nobody'"):
        judge([bundle(0)], [TINY], tmp_path, competitors=["nobody"])
    with pytest.raises(LoopwrightError, match="unknown suite"):
        judge([bundle(0)], ["nothing"], tmp_path)
    monkeypatch.setattr(entrants, "read_tuned", lambda prices: {})
    with pytest.raises(LoopwrightError, match="not tuned yet: constant"):
        judge([bundle(0)], [TINY], tmp_path, competitors=["constant"])
    task = get_task(TASK)
    assert task.calibration is not None
    with pytest.raises(LoopwrightError, match="was not kept"):
        entrants.make_oracle(task.with_calibration(replace(task.calibration, winner=None)))


def test_costs_in_seconds_are_costs_times_what_a_geq_takes(everything: tuple[Evaluation, Path, Counter[str]]) -> None:
    evaluation, _, _ = everything
    rate = {(t.method, t.task): t.seconds_per_geq for t in evaluation.timings}
    timed = {r.key: r for r in convert_to_seconds(evaluation.records, evaluation.timings)}
    for record in evaluation.records:
        assert timed[record.key].cost == record.cost * rate[record.method, record.task]


def test_a_method_is_timed_for_what_it_needs_and_does(small_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which loops keep gradient statistics, who looks, who takes snapshots: counted, not measured."""
    kept: dict[str, list[bool]] = {}
    calls: Counter[tuple[str, str]] = Counter()
    now = ""
    for kind, name in ((PlainLoop, "run"), (PlainLoop, "snapshot"), (PlainLoop, "restore"),
                       (PlainLoop, "look"), (PlainLoop, "step_ratio"), (CompiledObserver, "observe")):  # fmt: skip
        real = getattr(kind, name)

        def counted(self: object, *a: object, real: Any = real, name: str = name, **k: object) -> object:
            calls[now, name] += 1
            if name == "run":
                kept.setdefault(now, []).append(self.probe is not None)  # type: ignore[attr-defined]
            return real(self, *a, **k)

        monkeypatch.setattr(kind, name, counted)
    rolling = OpenLoop((LoopPlan(), LoopPlan(rollback=True)), "rolling")
    methods = [*load_competitors(["constant", "plateau", "Muon"]), replace(bundle(0), name="agent"), rolling]
    plans = [LoopPlan(), LoopPlan(rollback=True), LoopPlan()]
    for method in methods:
        now = method.name
        (timing,) = time_methods([(method, plans if method.rolls_back else [LoopPlan()] * 3)], small_task, SHORT, 1)
        assert len(timing.rounds) == ROUNDS
        assert all(rate > 0 for rate in timing.rounds)
    assert not any(flag for name, flags in kept.items() if name != "agent" for flag in flags)
    assert {True, False} == set(kept["agent"])  # with and without, to know what looking costs
    decisions = 1 + 3 * ROUNDS
    for name, does in {
        "constant": {"snapshot": decisions + 1},
        "plateau": {"snapshot": decisions + 1, "look": decisions},
        "Muon": {"snapshot": 1},  # the guard leaves another library's optimizer alone
        "agent": {"snapshot": decisions + 1, "look": decisions, "observe": decisions, "restore": ROUNDS},
        "rolling": {"snapshot": decisions + 1, "restore": ROUNDS},
    }.items():
        for call in ("snapshot", "look", "observe", "restore"):
            assert calls[name, call] == does.get(call, 0), (name, call)


def test_parts_are_cut_until_every_worker_has_some_but_fill_their_lanes() -> None:
    jobs = [Job(bundle(0), get_task(name), seed) for name in (TASK, "digits-conv:0") for seed in range(100)]
    whole = [
        JobsPart(list(range(first, first + 100)), jobs[first : first + 100], EpisodeSettings(), lanes, None, lanes)
        for first, lanes in ((0, 8), (100, 64))
    ]
    for workers in (1, 2, 8, 64):
        parts = cut_parts(whole, workers)
        assert sorted(number for part in parts for number in part.numbers) == list(range(200))
        assert all(jobs[number] is job for part in parts for number, job in zip(part.numbers, part.jobs, strict=True))
        assert all(len(part.jobs) >= part.lanes for part in parts)
    dear = cut_parts(whole, 64)[-1]  # it fills its lanes once, and cannot be cut
    assert len(dear.jobs) == 100
    assert len(cut_parts([whole[0]], 64)) == 12


def test_workers_come_to_the_same_results(tiny_suite: None, tmp_path: Path) -> None:
    jobs = [
        Job(controller, get_task(name), seed)
        for controller in (bundle(0), load_competitors(["SOAP"])[1], load_competitors(["plateau"])[1])
        for name in (TASK, "mixtures:2")
        for seed in (1, 2)
    ]
    seen: list[RunRecord] = []
    alone = run_jobs(jobs, EpisodeSettings(budget_factor=0.2))
    shared = run_jobs(jobs, EpisodeSettings(budget_factor=0.2), workers=2, on_run=seen.append)
    assert [r.key for r in shared] == [r.key for r in alone] == [job.key for job in jobs]
    assert [(r.outcome, r.cost) for r in shared] == [(r.outcome, r.cost) for r in alone]
    assert sorted(r.key for r in seen) == sorted(r.key for r in shared)
    narrow = [run_jobs(jobs, EpisodeSettings(budget_factor=0.2), lanes=1, workers=workers) for workers in (1, 2)]
    assert [(r.key, r.outcome, r.cost) for r in narrow[0]] == [(r.key, r.outcome, r.cost) for r in narrow[1]]
    searched: list[list[RunRecord]] = [[], []]
    for found, workers in zip(searched, (1, 2), strict=True):
        run_searches([get_task(TASK)], [1], EpisodeSettings(budget_factor=0.1), on_record=found.append, workers=workers)
    assert [(r.key, r.cost) for r in searched[0]] == [(r.key, r.cost) for r in searched[1]]
    with pytest.raises(LoopwrightError, match="follow needs workers=1"):
        run_jobs(jobs, follow=lambda job, record: None, workers=2)
