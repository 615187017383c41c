"""What a user with a tuning budget would do: optuna's random search and TPE, every trial charged.

A trial is a whole run, from the run's own seed, under a configuration that optuna suggests; the search ends with the
first trial that hits the target, and has paid for all until then. Trials are judged by the loss on the target split,
which is more than a user would know: it can only help the search.
"""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

from loopwright.agents.controllers.schedules import Scheduled
from loopwright.agents.judging.parts import Numbered, OnPart, estimate_flops, find_lanes, slice_evenly, work_on
from loopwright.agents.judging.results import Key, RunRecord
from loopwright.agents.judging.runner import Job, run_jobs
from loopwright.agents.judging.workers import works_here
from loopwright.envs.episode.decision import HIT, MISS, OUTCOMES
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import Controller
from loopwright.envs.loop.extras import import_extra
from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks.task import Task

TRIALS = (5, 20)  # the budgets; the larger search begins with the smaller one
SAMPLERS = ("random", "TPE")
STARTUP = 4  # trials after which TPE no longer guesses
TRIALS_EXPECTED = 8  # of a study, of the 20 it may have


def list_searches() -> list[str]:
    return [_name(sampler, trials) for sampler in SAMPLERS for trials in TRIALS]


def _name(sampler: str, trials: int) -> str:
    return f"{sampler}, {trials} trials"


def suggest_controller(trial: Any, name: str) -> Controller:
    """A configuration: optimizer, learning rate, momentum, decay, clipping, batch, averaging, and a cosine schedule."""
    optimizer = trial.suggest_categorical("optimizer", ["adamw", "sgd"])
    low, high = (1e-3, 5e-2) if optimizer == "adamw" else (3e-2, 4.0)
    plan = LoopPlan(
        optimizer=optimizer,
        learning_rate=trial.suggest_float(f"{optimizer} learning rate", low, high, log=True),
        momentum=trial.suggest_categorical("momentum", [0.5, 0.8, 0.9, 0.95]),
        weight_decay=trial.suggest_categorical("weight decay", [0.0, 0.01, 0.1, 0.5]),
        clip=trial.suggest_categorical("clip", [float("inf"), 1.0]),
        batch=trial.suggest_categorical("batch", [1, 2, 4]),
        average=trial.suggest_categorical("average", [0.0, 32.0, 128.0]),
    )
    horizon = trial.suggest_categorical("horizon", [0.25, 0.5, 1.0])
    return Scheduled(plan, "cosine", horizon, {"warm_up": trial.suggest_categorical("warm-up", [0.0, 0.1])}, name)


class Search:
    """All searches of an evaluation, a study for every sampler, task and seed, run side by side.

    ``list_first`` are the jobs to begin with, ``find_over`` says which of them need not be done, and ``follow`` gives
    the next trial of a study when one has ended (``runner.run_jobs``); ``on_record`` gets the records of a study when
    it is over.
    """

    def __init__(self, tasks: Iterable[Task], seeds: Iterable[int], on_record: Callable[[RunRecord], None]) -> None:
        self._optuna = import_extra("optuna", "competitors")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._on_record = on_record
        self._studies: dict[Key, _Study] = {}
        seeds = list(seeds)
        self._wanted = [(sampler, task, seed) for sampler in SAMPLERS for task in tasks for seed in seeds]

    def list_first(self) -> list[Job]:
        """The first trial of every study."""
        jobs = []
        for sampler, task, seed in self._wanted:
            kinds = self._optuna.samplers
            chosen = kinds.RandomSampler(seed) if sampler == "random" else kinds.TPESampler(
                n_startup_trials=STARTUP, seed=seed
            )  # fmt: skip
            study = _Study(sampler, self._optuna.create_study(sampler=chosen))
            jobs.append(Job(study.ask(), task, seed))
            self._studies[jobs[-1].key] = study
        return jobs

    def find_over(self, done: Container[Key]) -> set[Key]:
        """Keys of the jobs of studies whose results are among the ``done``."""
        return {
            Key(sampler, 0, task.name, seed)
            for sampler, task, seed in self._wanted
            if Key(_name(sampler, TRIALS[-1]), 0, task.name, seed) in done
        }

    def follow(self, job: Job, record: RunRecord) -> Job | None:
        """Charge a trial, and give the next one unless the study is over."""
        study = self._studies[job.key]
        study.tell(record)
        if not record.hit and len(study.records) < TRIALS[-1]:
            return job._replace(controller=study.ask())
        for result in study.results():
            self._on_record(result)
        return None


class _Study:
    def __init__(self, sampler: str, study: Any) -> None:
        self.sampler, self.study, self.trial = sampler, study, None
        self.records: list[RunRecord] = []

    def ask(self) -> Controller:
        self.trial = self.study.ask()
        return suggest_controller(self.trial, self.sampler)

    def tell(self, record: RunRecord) -> None:
        self.study.tell(self.trial, min(record.final_loss, 1e6) if record.final_loss == record.final_loss else 1e6)
        self.records.append(record)

    def results(self) -> list[RunRecord]:
        """One record per budget: what was paid until the first hit, or for all trials."""
        found = []
        for trials in TRIALS:
            paid = self.records[:trials]
            best = min(paid, key=lambda r: (not r.hit, r.final_loss))
            budget = trials * best.budget
            found.append(
                RunRecord(
                    method=_name(self.sampler, trials),
                    task=best.task,
                    seed=best.seed,
                    outcome=OUTCOMES[HIT if best.hit else MISS],
                    cost=sum(r.cost for r in paid),
                    budget=budget,
                    final_loss=best.final_loss,
                    final_metric=best.final_metric,
                    easier_cost=_easier_cost(paid, budget),
                )
            )
        return found


def _easier_cost(paid: list[RunRecord], budget: float) -> float | None:
    """What was paid until a trial held the easier target."""
    before = 0.0
    for record in paid:
        if record.easier_cost is None:
            return None
        if record.easier_cost < record.budget:
            return before + record.easier_cost
        before += record.cost
    return budget


def run_searches(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    settings: EpisodeSettings,
    *,
    lanes: int = 64,
    done: Container[Key] = (),
    on_record: Callable[[RunRecord], None],
    on_part: OnPart | None = None,
    workers: int = 1,
) -> None:
    """All searches but those that are ``done``, side by side; arguments as of ``runner.run_jobs``."""
    parts = make_searches(tasks, seeds, settings, lanes, done)
    if not works_here(workers):
        for _, found in work_on(parts, workers, on_part):
            for _, record in found:
                on_record(record)
        return
    for part in sorted(parts, key=lambda part: -part.flops):
        seconds = part.search(on_record)
        if on_part is not None:
            on_part(part, *seconds)


class SearchPart(NamedTuple):
    """The searches on tasks of one shape: a ``parts.Part``, whose ``runs`` are studies."""

    tasks: Sequence[Task]
    seeds: Sequence[int]
    settings: EpisodeSettings
    lanes: int
    done: Container[Key]
    kind: str = "searches"

    @property
    def model(self) -> str:
        return repr(self.tasks[0].model)

    @property
    def runs(self) -> int:
        return len(SAMPLERS) * len(self.tasks) * len(self.seeds)

    @property
    def least(self) -> int:
        """Studies of whole seeds, twice as many as lanes, so that a batch is as wide as if it were not cut."""
        return min(self.runs, self.full)

    @property
    def full(self) -> int:
        of_seed = len(SAMPLERS) * len(self.tasks)
        return of_seed * math.ceil(2 * find_lanes(self.tasks[0].model, self.lanes, 2) / of_seed)

    @property
    def flops(self) -> float:
        return TRIALS_EXPECTED * len(SAMPLERS) * len(self.seeds) * estimate_flops(self.tasks)

    def cut(self, pieces: int) -> list["SearchPart"]:
        return [self._replace(seeds=self.seeds[piece]) for piece in slice_evenly(len(self.seeds), pieces)]

    def work(self) -> tuple[list[Numbered], float, float]:
        found: list[Numbered] = []
        setup, seconds = self.search(lambda record: found.append((len(found), record)))
        return found, setup, seconds

    def search(self, on_record: Callable[[RunRecord], None]) -> tuple[float, float]:
        """Do it; the seconds until the first decision, and in all."""
        taken = [(0.0, 0.0)]
        search = Search(self.tasks, self.seeds, on_record)
        run_jobs(
            search.list_first(), self.settings, lanes=self.lanes, done=search.find_over(self.done),
            follow=search.follow, on_part=lambda part, setup, seconds: taken.append((setup, seconds)),
        )  # fmt: skip
        setups, seconds = zip(*taken, strict=True)
        return sum(setups), sum(seconds)


def make_searches(
    tasks: Sequence[Task], seeds: Sequence[int], settings: EpisodeSettings, lanes: int, done: Container[Key]
) -> list[SearchPart]:
    """The searches, one part for each shape; arguments as of ``run_searches``."""
    of_shape: dict[object, list[Task]] = {}
    for task in tasks:
        of_shape.setdefault(task.shape_key, []).append(task)
    return [SearchPart(members, seeds, settings, lanes, done) for members in of_shape.values()]
