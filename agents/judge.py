"""The judge: agents against everything people would use instead, on tasks nobody trained on, with paired seeds.

Four parts, each resumable: the runs that go side by side, the searches with a tuning budget, the agent's own schedules
replayed without feedback, and how long everything takes in a plain loop.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loopwright.agents.bundle import Bundle
from loopwright.agents.comparison import OPEN_LOOP, ORACLE, TUNING, Evaluation, Method
from loopwright.agents.competitors import (
    COMPETITORS,
    DEFAULT,
    best_single,
    default_adamw,
    find_competitor,
    from_description,
    stored,
)
from loopwright.agents.controller import Controller, OpenLoop, RandomPolicy, Static
from loopwright.agents.evaluation import Job, run_jobs
from loopwright.agents.figures import DRAWN_RUNS
from loopwright.agents.results import Key, ResultsFile, RunRecord
from loopwright.agents.schedules import Scheduled
from loopwright.agents.search import run_searches, search_names
from loopwright.agents.timing import TimingsFile, spread_plans, time_methods
from loopwright.envs.calibration import DECISIONS, StaticConfiguration
from loopwright.envs.cost import measure_cost
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.knobs import KnobSet
from loopwright.envs.plan import LoopPlan
from loopwright.envs.threads import compute_threads
from loopwright.inner_tasks.errors import LoopwrightError, UncalibratedTaskError
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.task import Task, get_tasks, shape_of

FIRST_SEED = 1_000_000
AGENT, RANDOM = "agent", "random policy"
# What ``competitors`` may be, besides a list of names.
BASIC = ("constant", "warm-up cosine", "plateau")
NOT_JUDGED = ("compile", "device", "discount")  # settings that a run does not depend on
RESULTS, TIMINGS = "runs.jsonl", "timings.jsonl"
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Entrant:
    """A method under evaluation: its name and group, and who controls its runs on a task, one for each training."""

    name: str
    group: str
    trainings: tuple[Callable[[Task], Controller], ...]

    def jobs(self, tasks: Iterable[Task], seeds: Sequence[int], traced: int) -> list[Job]:
        """All its runs; of the first training and so many seeds with their traces."""
        return [
            Job(controller, task, seed, training, training == 0 and position < traced)
            for task in tasks
            for training, make in enumerate(self.trainings)
            for controller in [make(task)]
            for position, seed in enumerate(seeds)
        ]


def agents(controllers: Sequence[Controller]) -> list[Entrant]:
    """Bundles trained alike but for the seed are trainings of one method, other controllers those with one name.

    The first one's method is called "agent", whatever its name was. Raises ``LoopwrightError`` where there is none, or
    one twice.
    """
    if not controllers:
        raise LoopwrightError("give at least one bundle to evaluate")
    if len({controller.fingerprint for controller in controllers}) < len(controllers):
        raise LoopwrightError("a bundle was given twice: it would count as two trainings")
    methods: dict[tuple[Any, ...], list[Any]] = {}
    for controller in controllers:
        methods.setdefault(_kind(controller), []).append(controller)
    labels = Counter(_label(members[0]) for members in methods.values())
    found: list[Entrant] = []
    for number, members in enumerate(methods.values()):
        label = _label(members[0])
        if labels[label] > 1:
            label += f", {number + 1}"
        name = AGENT if number == 0 else f"{AGENT} ({label})"
        own = tuple(_always(replace(member, name=name)) for member in members)
        found.append(Entrant(name, "agent" if number == 0 else "ablation", own))
    return found


def _label(controller: Controller) -> str:
    return controller.knobs.name if isinstance(controller, Bundle) else controller.name


def _kind(controller: Controller) -> tuple[Any, ...]:
    """What independent trainings of one method have in common."""
    if not isinstance(controller, Bundle):
        return (controller.name,)
    made = {name: value for name, value in controller.training.items() if name != "seed"}
    return (
        controller.knobs.name, controller.knobs.action, controller.squashed, controller.start,
        str(controller.network), json.dumps(made, sort_keys=True),
    )  # fmt: skip


def _always(controller: Controller) -> Callable[[Task], Controller]:
    return lambda task: controller


def oracle(task: Task) -> Controller:
    """The best of the 64 static configurations that the task's target was made of: nobody could have known it."""
    winner = task.calibration.winner if task.calibration else None
    if winner is None:
        raise UncalibratedTaskError(
            f"task {task.name}: the configuration that set its target was not kept; run: "
            f"loopwright calibrate --again --tasks {task.name}"
        )
    return Static(StaticConfiguration.from_json(winner), DECISIONS, ORACLE)


def competitor_names(competitors: str | Sequence[str]) -> list[str]:
    """ "all", "basic", or names of ``COMPETITORS``; raises ``UnknownNameError`` for others."""
    if competitors == "all":
        return list(COMPETITORS)
    names = BASIC if competitors == "basic" else [competitors] if isinstance(competitors, str) else competitors
    return [find_competitor(name).name for name in names]


def rivals(names: Sequence[str]) -> list[Entrant]:
    """PyTorch's default AdamW and the tuned competitors. Raises ``LoopwrightError`` for one that was not tuned yet."""
    entries = stored()
    missing = [name for name in names if name not in entries]
    if missing:
        raise LoopwrightError(f"not tuned yet: {', '.join(missing)}; run: loopwright tune")
    found = [Entrant(DEFAULT, "fixed default", (_always(default_adamw()),))]
    for name in names:
        controller = from_description(name, entries[name]["settings"])
        found.append(Entrant(name, COMPETITORS[name].group, (_always(controller),)))
    return found


def judge(
    controllers: Sequence[Controller],
    suites: Sequence[str],
    folder: Path,
    *,
    seeds: int = 20,
    competitors: str | Sequence[str] = "all",
    lanes: int = 64,
    settings: EpisodeSettings | None = None,
    ledgers: bool = False,
    workers: int = 1,
    progress: Progress = lambda part, done: None,
) -> Evaluation:
    """Evaluate saved policies on the suites' tasks against the competitors, and keep every run in ``folder``.

    Args:
        controllers: bundles, or any dataclasses that are controllers; see ``agents`` for which count as trainings of
            one method.
        suites: names of suites.
        folder: where ``runs.jsonl`` and ``timings.jsonl`` are or will be; what is there is not done again.
        seeds: paired runs per task.
        competitors: "all", with searches, oracle and ablations; "basic"; or names.
        lanes: inner runs side by side.
        settings: of the episodes.
        ledgers: keep an audit log of every run of the agents, in ``folder``/ledgers.
        workers: processes to divide the shapes of tasks among, each with one thread; one is this process.
        progress: called with the name of a part and how many of its runs are done beyond the last call.

    Raises:
        LoopwrightError: fewer than one seed, lane or worker, an unknown suite or competitor, or a folder that holds the
            results of another evaluation.
    """
    for what, count in (("seeds", seeds), ("lanes", lanes), ("workers", workers)):
        if count < 1:
            raise LoopwrightError(f"{what} must be 1 or more, got {count}")
    settings = settings or EpisodeSettings()
    members = {name: tuple(get_suite(name).tasks()) for name in suites}
    tasks = get_tasks(list(dict.fromkeys(task for names in members.values() for task in names)))
    run_seeds = [FIRST_SEED + number for number in range(seeds)]
    contestants = agents(controllers)
    names = competitor_names(competitors)
    field = [*contestants, *rivals(names)]
    if competitors == "all":
        first = controllers[0]
        knobs = first.knobs if isinstance(first, Bundle) else KnobSet("all")
        field.append(Entrant(ORACLE, "oracle", (oracle,)))
        field.append(Entrant(RANDOM, "ablation", (_always(RandomPolicy(first.start, knobs, RANDOM)),)))
    rival = best_single(names)
    header = {
        "suites": members,
        "seeds": run_seeds,
        "settings": {name: value for name, value in asdict(settings).items() if name not in NOT_JUDGED},
    }
    fingerprints = {entrant.name: [make(tasks[0]).fingerprint for make in entrant.trainings] for entrant in field}
    results = ResultsFile(folder / RESULTS, header, fingerprints)
    contest = _Contest(field, rival, tasks, run_seeds, results, lanes, settings, workers, progress)
    try:
        with compute_threads(1):
            contest.run_side_by_side(contestants if ledgers else ())
            if competitors == "all":
                contest.run_searches()
                contest.run_replays()
    finally:
        results.close()
    timings = TimingsFile(folder / TIMINGS)
    contest.time(timings)
    methods = [Method(entrant.name, entrant.group) for entrant in field]
    if competitors == "all":
        methods += [Method(name, TUNING) for name in search_names()] + [Method(OPEN_LOOP, "ablation")]
    judged = [c for c in controllers if _kind(c) == _kind(controllers[0])]
    meta = [training_flops(controller, settings) for controller in judged]
    return Evaluation(
        agent=AGENT,
        rival=rival,
        methods=tuple(methods),
        suites=members,
        records=tuple(_of(results.records, methods, len(judged))),
        timings=tuple(timings.timings),
        meta_flops=sum(meta) / len(meta),
        flops={task.name: measure_cost(task.model).flops for task in tasks},
    )


def training_flops(controller: Controller, settings: EpisodeSettings) -> float:
    """What training a bundle took, nearly: its decisions on the shapes of its suite by turns; 0 where unknown."""
    if not isinstance(controller, Bundle) or not {"decisions", "suite"} <= controller.training.keys():
        return 0.0
    shapes = {shape_of(name) for name in get_suite(controller.training["suite"]).tasks()}
    per_geq = sum(measure_cost(model).flops for model, *_ in shapes) / len(shapes)
    geq = controller.training["decisions"] * settings.ticks_per_decision * settings.microbatch
    return float(geq * per_geq)


def _of(records: Sequence[RunRecord], methods: Sequence[Method], trainings: int) -> list[RunRecord]:
    """Those of the methods, and of the agent so many trainings: a folder may hold more."""
    names = {method.name for method in methods}
    return [r for r in records if r.method in names and (r.method != AGENT or r.training < trainings)]


@dataclass
class _Contest:
    """The parts of an evaluation, on the same tasks and seeds; each goes on where it was interrupted."""

    field: Sequence[Entrant]
    rival: str
    tasks: Sequence[Task]
    seeds: Sequence[int]
    results: ResultsFile
    lanes: int
    settings: EpisodeSettings
    workers: int
    progress: Progress

    def run_side_by_side(self, logged: Sequence[Entrant]) -> None:
        """Every method's runs, with an audit log of those of the ``logged``."""
        jobs = [job for entrant in self.field for job in self._jobs(entrant)]
        self.progress("runs", len(self.results.done & {job.key for job in jobs}))
        for entrant in logged:
            self._run(self._jobs(entrant), "runs", self.results.path.parent / "ledgers" / entrant.name)
        self._run(jobs, "runs")

    def run_searches(self) -> None:
        """The searches with a tuning budget."""

        def keep(record: RunRecord) -> None:
            # The results of a study come one by one: a kill between them leaves some that are there already.
            if record.key not in self.results.done:
                self.results.append(record)
                self.progress("searches", 1)

        done = self.results.done
        runs = {Key(name, 0, task.name, seed) for name in search_names() for task in self.tasks for seed in self.seeds}
        self.progress("searches", len(done & runs))
        run_searches(
            self.tasks, self.seeds, self.settings, lanes=self.lanes, done=done, on_record=keep, workers=self.workers
        )

    def run_replays(self) -> None:
        """The agent's cheapest schedule on a task, from every other seed: what is left of it without feedback.

        From the seed that it comes from, the second cheapest is replayed; with a single seed, the agent's only one.
        """
        jobs = []
        for task in self.tasks:
            own = [r for r in self.results.records if (r.method, r.training, r.task) == (AGENT, 0, task.name)]
            own.sort(key=lambda r: (r.cost, r.seed))
            for seed in self.seeds:
                source = next((r for r in own if r.seed != seed), own[0])
                plans = tuple(point.plan for point in source.trace)
                jobs.append(Job(OpenLoop(plans, OPEN_LOOP), task, seed))
        self.progress("replays", len(self.results.done & {job.key for job in jobs}))
        self._run(jobs, "replays")

    def time(self, timings: TimingsFile) -> None:
        """What a geq of every method costs in seconds, task by task."""
        records = self.results.records
        traced = {(r.method, r.task): r for r in records if r.training == 0 and r.seed == self.seeds[0] and r.trace}
        replayed = any(r.method == OPEN_LOOP for r in records)
        names = {entrant.name for entrant in self.field} | ({OPEN_LOOP, *search_names()} if replayed else set())
        for task in self.tasks:
            if names <= timings.methods(task.name):
                self.progress("timings", 1)
                continue
            timed: list[tuple[Controller, list[LoopPlan]]] = []
            for entrant in self.field:
                plans = spread_plans(traced[entrant.name, task.name])
                timed.append((entrant.trainings[0](task), plans))
                if entrant.name == AGENT and replayed:
                    timed.append((OpenLoop(tuple(plans), OPEN_LOOP), plans))
            if replayed:
                # A trial of a search is a run under a schedule, whatever its settings.
                plans = [LoopPlan()] * len(timed[0][1])
                timed += [(Scheduled(LoopPlan(), "cosine", name=name), plans) for name in search_names()]
            timings.replace(task.name, time_methods(timed, task, self.settings, self.seeds[0]))
            self.progress("timings", 1)

    def _jobs(self, entrant: Entrant) -> list[Job]:
        """Its runs; of the agent all are traced, to be replayed, of its rival some, to be drawn, of others one."""
        traced = {self.field[0].name: len(self.seeds), self.rival: DRAWN_RUNS}.get(entrant.name, 1)
        return entrant.jobs(self.tasks, self.seeds, traced)

    def _run(self, jobs: Sequence[Job], part: str, ledgers: Path | None = None) -> None:
        def keep(record: RunRecord) -> None:
            self.results.append(record)
            self.progress(part, 1)

        run_jobs(
            jobs, self.settings, lanes=self.lanes, done=self.results.done, ledgers=ledgers, on_run=keep,
            workers=self.workers,
        )  # fmt: skip


def parts(bundles: int, tasks: int, seeds: int, competitors: str | Sequence[str]) -> dict[str, int]:
    """How many runs each part of an evaluation has, for a progress bar."""
    names = competitor_names(competitors)
    runs = tasks * seeds
    if competitors != "all":
        return {"runs": (bundles + 1 + len(names)) * runs, "timings": tasks}
    return {
        "runs": (bundles + 1 + len(names) + 2) * runs,
        "searches": len(search_names()) * runs,
        "replays": runs,
        "timings": tasks,
    }


def count_tasks(suites: Sequence[str]) -> int:
    return len({task for name in suites for task in get_suite(name).tasks()})
