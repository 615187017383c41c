"""The judge: agents against everything people would use instead, on tasks nobody trained on, with paired seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.simple import RandomPolicy
from loopwright.agents.controllers.tuned import find_best_single
from loopwright.agents.judging.contest import Contest, Progress
from loopwright.agents.judging.entrants import (
    AGENT,
    Entrant,
    describe_method,
    expand_competitors,
    give_always,
    group_trainings,
    list_rivals,
    make_oracle,
)
from loopwright.agents.judging.evaluation import OPEN_LOOP, ORACLE, TUNING, Evaluation, Method
from loopwright.agents.judging.parts import PARTS, PartsFile
from loopwright.agents.judging.results import ResultsFile, RunRecord
from loopwright.agents.judging.search import list_searches
from loopwright.agents.judging.timing import Timing, TimingsFile
from loopwright.agents.judging.typical_schedule import SCHEDULE_SEEDS, list_training_tasks, make_typical_schedule
from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.checks import check_number, check_some, check_whole
from loopwright.envs.loop.controller import Controller
from loopwright.envs.loop.holding import holding_folder
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.inner_tasks.registry import get_shape, get_tasks
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.task import Task

FIRST_SEED = 1_000_000
RANDOM_POLICY = "random policy"
NOT_JUDGED = ("compile", "device", "discount")  # settings that a run does not depend on
RESULTS, TIMINGS = "runs.jsonl", "timings.jsonl"


def judge(
    controllers: Sequence[Controller],
    suites: Sequence[str],
    folder: Path,
    *,
    seeds: int = 20,
    competitors: str | Sequence[str] = "all",
    lanes: int = 64,
    settings: EpisodeSettings | None = None,
    searches: bool = True,
    rate_spread: float = 0.0,
    ledgers: bool = False,
    workers: int = 1,
    progress: Progress = lambda part, done: None,
) -> Evaluation:
    """Evaluate saved policies on the suites' tasks against the competitors, and keep every run in ``folder``.

    Args:
        controllers: policies, or any dataclasses that are controllers; see ``group_trainings`` for which count as
            trainings of one method.
        suites: names of suites.
        folder: where ``runs.jsonl``, ``timings.jsonl`` and, with "all", ``schedule.json`` are or will be; what is there
            is not done again.
        seeds: paired runs per task.
        competitors: "all", with searches, oracle and ablations; "basic"; or names.
        lanes, settings: inner runs side by side, and of the episodes.
        searches: whether "all" has the searches with a tuning budget too, which take as long as the rest.
        rate_spread: the *untuned* track: all that need a learning rate start from 10^U(-spread, spread) times the one
            they were tuned to, drawn per seed, and nobody searches. 0 is the *tuned* track.
        ledgers: keep an audit log of every run of the agents, in ``folder``/ledgers.
        workers: processes to divide the shapes of tasks among, each with one thread; one is this process.
        progress: called with the name of a part and how many of its runs are done beyond the last call.

    Raises:
        LoopwrightError: a count below 1, an unknown suite or competitor, or a folder with another evaluation's results,
            or that another process works in.
    """
    _check({"seeds": seeds, "lanes": lanes, "workers": workers}, rate_spread, (controllers, suites, competitors))
    settings, everything = settings or EpisodeSettings(), competitors == "all" and rate_spread == 0
    members = {name: tuple(get_suite(name).tasks()) for name in suites}
    tasks = get_tasks(list(dict.fromkeys(task for names in members.values() for task in names)))
    paired = list(range(FIRST_SEED, FIRST_SEED + seeds))
    contestants, names = group_trainings(controllers), expand_competitors(competitors)
    field = [*contestants, *list_rivals(names, settings.price_list.name)]
    rival = find_best_single(names, settings.price_list.name)
    header = {"suites": members, "seeds": paired, "settings": _describe(settings), "rate_spread": rate_spread}
    with holding_folder(folder):
        field += _list_extras(controllers[0], settings, folder, progress) if everything else []
        besides = (OPEN_LOOP, *(list_searches() if searches else ())) if everything else ()
        prints = _list_fingerprints(field, tasks[0], besides)
        results, parts = ResultsFile(folder / RESULTS, header, prints), PartsFile(folder / PARTS, header, prints)
        timings = TimingsFile(folder / TIMINGS, header, prints)
        contest = Contest(field, rival, tasks, paired, results, parts, lanes, settings, workers, progress, rate_spread)
        with limit_threads(1):
            contest.run_all(contestants if ledgers else (), searches=everything and searches, replays=everything)
        contest.time(timings, list_searches() if everything and searches else [])
    return _evaluate(contest, controllers, members, timings.records, searches)


def _describe(settings: EpisodeSettings) -> dict[str, Any]:
    """The settings that a run depends on."""
    return {name: value for name, value in settings.as_json().items() if name not in NOT_JUDGED}


def _check(counts: dict[str, int], rate_spread: float, given: Sequence[Sequence[object]]) -> None:
    for what, entries in zip(("controllers", "suites", "competitors"), given, strict=True):
        check_some(what, entries)
    for what, count in counts.items():
        check_whole(what, count, 1)
    check_number("rate_spread", rate_spread, "lie in [0, 2], orders of magnitude", 0, 2)


def _list_extras(first: Controller, settings: EpisodeSettings, folder: Path, progress: Progress) -> list[Entrant]:
    """Who else takes part in a whole comparison: the oracle, random actions, and the first agent's schedule."""
    knobs = first.knobs if isinstance(first, Policy) else KnobSet("all")
    random = RandomPolicy(first.start, knobs, RANDOM_POLICY)
    with limit_threads(1):
        schedule = make_typical_schedule(first, settings, folder, lambda done: progress("schedule", done))
    ablations = [Entrant(own.name, "ablation", (give_always(own),)) for own in (random, schedule)]
    return [Entrant(ORACLE, "oracle", (make_oracle,)), *ablations]


def _list_fingerprints(field: Sequence[Entrant], task: Task, besides: Sequence[str]) -> dict[str, list[str]]:
    """By the name of a method, one for each training; what takes part ``besides`` is what it is by its name."""
    own = {entrant.name: [make(task).fingerprint for make in entrant.trainings] for entrant in field}
    return own | {name: [name] for name in besides}


def _evaluate(
    contest: Contest,
    controllers: Sequence[Controller],
    members: dict[str, tuple[str, ...]],
    timings: Sequence[Timing],
    searches: bool,
) -> Evaluation:
    """What there is to say about the contest, of the agent's trainings among the ``controllers``."""
    methods = [Method(entrant.name, entrant.group) for entrant in contest.field]
    if any(method.name == ORACLE for method in methods):
        methods += [Method(name, TUNING) for name in list_searches() if searches] + [Method(OPEN_LOOP, "ablation")]
    judged = [c for c in controllers if describe_method(c) == describe_method(controllers[0])]
    meta = [count_training_flops(controller, contest.settings) for controller in judged]
    return Evaluation(
        agent=AGENT,
        rival=contest.rival,
        methods=tuple(methods),
        suites=members,
        records=tuple(_pick(contest.results.records, methods, len(judged))),
        timings=tuple(timings),
        meta_flops=sum(meta) / len(meta),
        flops={task.name: measure_cost(task.model).flops for task in contest.tasks},
    )


def count_training_flops(controller: Controller, settings: EpisodeSettings) -> float:
    """What training a policy took, nearly: its decisions on the shapes of its suite by turns; 0 where unknown."""
    if not isinstance(controller, Policy) or not {"decisions", "suite"} <= controller.training.keys():
        return 0.0
    shapes = {get_shape(name) for name in get_suite(controller.training["suite"]).tasks()}
    per_geq = sum(measure_cost(model).flops for model, *_ in shapes) / len(shapes)
    geq = controller.training["decisions"] * settings.ticks_per_decision * settings.microbatch
    return float(geq * per_geq)


def _pick(records: Sequence[RunRecord], methods: Sequence[Method], trainings: int) -> list[RunRecord]:
    """Those of the methods, and of the agent so many trainings: a folder may hold more."""
    names = {method.name for method in methods}
    return [r for r in records if r.method in names and (r.method != AGENT or r.training < trainings)]


def count_runs(
    policies: Sequence[Controller],
    tasks: int,
    seeds: int,
    competitors: str | Sequence[str],
    *,
    searches: bool = True,
    rate_spread: float = 0.0,
) -> dict[str, int]:
    """How many runs each part of an evaluation has, for a progress bar."""
    names = expand_competitors(competitors)
    runs = tasks * seeds
    if competitors != "all" or rate_spread:
        return {"runs": (len(policies) + 1 + len(names)) * runs, "timings": tasks}
    return {
        "schedule": len(list_training_tasks(policies[0])) * len(SCHEDULE_SEEDS),
        "runs": (len(policies) + 1 + len(names) + 3) * runs,
        **({"searches": len(list_searches()) * runs} if searches else {}),
        "replays": runs,
        "timings": tasks,
    }


def count_tasks(suites: Sequence[str]) -> int:
    return len({task for name in suites for task in get_suite(name).tasks()})
