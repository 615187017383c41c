"""Contest: the four stages of an evaluation, each of which goes on where it was interrupted.

The runs that go side by side, the searches with a tuning budget, the agent's own schedules replayed without feedback,
and how long everything takes in a plain loop. Workers have the first three in one pool, which the replays of a task
join when the agent's runs on it have ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loopwright.agents.controllers.schedules import Scheduled
from loopwright.agents.controllers.simple import OpenLoop
from loopwright.agents.judging.entrants import AGENT, Entrant
from loopwright.agents.judging.evaluation import OPEN_LOOP
from loopwright.agents.judging.parts import Part, PartsFile, work_on
from loopwright.agents.judging.results import Key, ResultsFile, RunRecord
from loopwright.agents.judging.runner import Job, make_parts, run_jobs
from loopwright.agents.judging.search import list_searches, make_searches, run_searches
from loopwright.agents.judging.timing import TimingsFile, pick_plans, time_methods
from loopwright.agents.judging.workers import works_here
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import Controller
from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks.task import Task

Progress = Callable[[str, int], None]
DRAWN_RUNS = 3  # per method and task, in figures


@dataclass
class Contest:
    """The stages of an evaluation, on the same tasks and seeds; each goes on where it was interrupted."""

    field: Sequence[Entrant]
    rival: str
    tasks: Sequence[Task]
    seeds: Sequence[int]
    results: ResultsFile
    parts: PartsFile
    lanes: int
    settings: EpisodeSettings
    workers: int
    progress: Progress
    rate_spread: float = 0.0

    def run_all(self, logged: Sequence[Entrant], *, searches: bool, replays: bool) -> None:
        """Every method's runs, with an audit log of those of the ``logged``, the searches with a tuning budget, and
        the agent's schedules replayed."""
        jobs, done = [job for entrant in self.field for job in self._jobs(entrant)], self.results.done
        self.progress("runs", len(done & {job.key for job in jobs}))
        if searches:
            names = list_searches()
            wanted = {Key(name, 0, task.name, seed) for name in names for task in self.tasks for seed in self.seeds}
            self.progress("searches", len(done & wanted))
        if replays:
            self.progress("replays", sum(key.method == OPEN_LOOP for key in done))
        for entrant in logged:
            self._run(self._jobs(entrant), "runs", self.results.path.parent / "ledgers" / entrant.name)
        if works_here(self.workers):
            self._run(jobs, "runs")
            if searches:
                self._search()
        else:
            self._share(jobs, searches, replays)
        if replays:
            self._run(self._list_replays(), "replays")

    def _share(self, jobs: Sequence[Job], searches: bool, replays: bool) -> None:
        """Workers do it all, but for such replays as came too late to join them."""
        first, others = list[Part](), list[Part]()
        for part in make_parts(jobs, self.settings, self.lanes, self.results.done):
            awaited = any(job.controller.name == AGENT for job in part.jobs)
            (first if awaited else others).append(part)
        if searches:
            others += make_searches(self.tasks, self.seeds, self.settings, self.lanes, self.results.done)
        find_more = self._find_replays() if replays else tuple
        for done, found in work_on(others, self.workers, self.parts.add, first=first, find_more=find_more):
            for _, record in found:
                self._keep(record, done.kind)

    def _find_replays(self) -> Callable[[], Sequence[Part]]:
        """A function that gives, whenever it is called, the replays that have become possible since."""
        waiting = {task.name for task in self.tasks}

        def find() -> Sequence[Part]:
            done = self.results.done
            ready = {name for name in waiting if all(Key(AGENT, 0, name, seed) in done for seed in self.seeds)}
            if not ready:
                return ()
            waiting.difference_update(ready)
            jobs = self._list_replays()
            others = {job.key for job in jobs if job.task.name not in ready or job.key in done}
            return make_parts(jobs, self.settings, self.lanes, others, kind="replays")

        return find

    def _search(self) -> None:
        run_searches(
            self.tasks, self.seeds, self.settings, lanes=self.lanes, done=self.results.done,
            on_record=lambda record: self._keep(record, "searches"), on_part=self.parts.add,
        )  # fmt: skip

    def _keep(self, record: RunRecord, kind: str) -> None:
        """Keep a record. Of a study all come, though a kill between them may have left some; of runs none twice."""
        if kind == "searches" and record.key in self.results.done:
            return
        self.results.append(record)
        self.progress(kind, 1)

    def _list_replays(self) -> list[Job]:
        """The agent's cheapest schedule on a task, from every other seed: what is left of it without feedback.

        From the seed that it comes from, the second cheapest is replayed; with a single seed, the agent's only one. Of
        tasks that it has not run on yet there are jobs too, for how wide batches are hangs on how many there will be.
        """
        jobs = list[Job]()
        of_task: dict[str, list[RunRecord]] = {}
        for record in list(self.results.records):
            if (record.method, record.training) == (AGENT, 0):
                of_task.setdefault(record.task, []).append(record)
        for task in self.tasks:
            own = sorted(of_task.get(task.name, ()), key=lambda r: (r.cost, r.seed))
            for seed in self.seeds:
                source = next((r for r in own if r.seed != seed), own[0] if own else None)
                plans = (LoopPlan(),) if source is None else tuple(point.plan for point in source.trace)
                jobs.append(Job(OpenLoop(plans, OPEN_LOOP), task, seed))
        return jobs

    def time(self, timings: TimingsFile, searches: Sequence[str] = ()) -> None:
        """What a geq of every method costs in seconds, task by task; the ``searches`` as one of their trials."""
        records = self.results.records
        traced = {(r.method, r.task): r for r in records if r.training == 0 and r.seed == self.seeds[0] and r.trace}
        replayed = any(r.method == OPEN_LOOP for r in records)
        names = {entrant.name for entrant in self.field} | ({OPEN_LOOP, *searches} if replayed else set())
        for task in self.tasks:
            if names <= timings.methods(task.name):
                self.progress("timings", 1)
                continue
            timed: list[tuple[Controller, list[LoopPlan]]] = []
            for entrant in self.field:
                plans = pick_plans(traced[entrant.name, task.name])
                timed.append((entrant.trainings[0](task), plans))
                if entrant.name == AGENT and replayed:
                    timed.append((OpenLoop(tuple(plans), OPEN_LOOP), plans))
            if searches:
                # A trial of a search is a run under a schedule, whatever its settings.
                plans = [LoopPlan()] * len(timed[0][1])
                timed += [(Scheduled(LoopPlan(), "cosine", name=name), plans) for name in searches]
            timings.replace(task.name, time_methods(timed, task, self.settings, self.seeds[0]))
            self.progress("timings", 1)

    def _jobs(self, entrant: Entrant) -> list[Job]:
        """Its runs; of the agent all are traced, to be replayed, of its rival some, to be drawn, of others one."""
        traced = {self.field[0].name: len(self.seeds), self.rival: DRAWN_RUNS}.get(entrant.name, 1)
        return entrant.jobs(self.tasks, self.seeds, traced, self.rate_spread)

    def _run(self, jobs: Sequence[Job], kind: str, ledgers: Path | None = None) -> None:
        run_jobs(
            jobs, self.settings, lanes=self.lanes, done=self.results.done, ledgers=ledgers, workers=self.workers,
            on_run=lambda record: self._keep(record, kind), on_part=self.parts.add, kind=kind,
        )  # fmt: skip
