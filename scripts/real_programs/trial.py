"""One program trained once, and what it took to reach a loss; or by everybody in turn, and what an iteration took."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, FailFast, Field
from torch import nn
from typing_extensions import TypedDict

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.judging.records import Header, RecordKind, RecordsFile
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.statistics import SECONDS
from loopwright.envs.episode.decision import HIT, MISS, OUTCOMES
from loopwright.envs.loop.untrusted import AnyFloat, Count, Name, demand, one_of, strict
from loopwright.scripts.real_programs.program import Batch, Program, draw_batches, get_program
from loopwright.scripts.real_programs.rivals import RIVALS, CosineSetting, Launch

LOOKS = 40  # times that a run is judged
WATCHED_EVERY = 16  # iterations between looks at data that is watched, of what is steered
TURN = 20  # iterations of one before the next has its turn, where all are timed
PURPOSES = ("tuning", "target", "contest", "timing")


def _check_setting(values: dict[str, float]) -> dict[str, float]:
    names = [field.name for field in fields(CosineSetting)]
    demand(list(values) == names, f"must be {', '.join(names)}")
    return values


@strict
@dataclass(frozen=True)
class TrainingTrial:
    """What became of one run.

    Attributes:
        program, rival, seed: which run it is.
        purpose: "tuning", "target", "contest" or "timing".
        policy: fingerprint of the one that steered, empty where none did.
        setting: the cosine's that was used.
        target: the loss it had to reach, None where it had none.
        hit: whether it did; it then ended there.
        samples, seconds: that it took, processor time of one thread; of a miss, all of its run.
        curve: iterations, seconds and loss on judged data, whenever that was looked at.
    """

    program: Name
    rival: Name
    seed: Count
    purpose: Annotated[str, AfterValidator(one_of(*PURPOSES))]
    policy: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    setting: Annotated[dict[str, float], AfterValidator(_check_setting)]
    target: float | None
    hit: bool
    samples: Count
    seconds: Annotated[float, Field(ge=0)]
    curve: Annotated[tuple[tuple[Count, Annotated[float, Field(ge=0)], AnyFloat], ...], Field(min_length=1), FailFast()]

    @property
    def key(self) -> tuple[Any, ...]:
        return self.program, self.rival, self.seed, self.purpose, self.policy, tuple(self.setting.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def final_loss(self) -> float:
        return self.curve[-1][2]

    def as_record(self, unit: str) -> RunRecord:
        """The run as the judge keeps one, its cost in samples or in seconds."""
        cost = self.seconds if unit == SECONDS else float(self.samples)
        outcome = OUTCOMES[HIT if self.hit else MISS]
        return RunRecord(self.rival, self.program, self.seed, outcome, cost, cost, self.final_loss(), math.nan)


def judge_model(program: Program, model: nn.Module, data: Batch) -> float:
    """The loss on ``data``, the model as it is for use."""
    model.eval()
    with torch.no_grad():
        loss = float(program.compute_loss(model, data))
    model.train()
    return loss


class ProgramRun:
    """A program under one of its rivals, as far as it has come, in one thread.

    Attributes:
        iteration, seconds: made so far, and the processor time they took, with all that steering does inside.
    """

    def __init__(self, program: str, rival: str, seed: int, setting: CosineSetting, policy: Policy | None) -> None:
        torch.set_num_threads(1)
        self.program, self.rival, self.seed, self.setting, self.policy = program, rival, seed, setting, policy
        self._program = get_program(program)
        data, watched, self._judged = self._program.load_data()
        self._model = self._program.build_model(seed)
        size = self._program.batch_size
        launch = Launch(self._model, self._program.iterations, len(data[0]), size, setting, policy)
        self._driver = RIVALS[rival](launch)
        self._batches, self._looked_at = (draw_batches(own, size, seed) for own in (data, watched))
        self.iteration, self.seconds = 0, 0.0

    def judge(self) -> tuple[int, float, float]:
        """A point of its curve."""
        with self._driver.judged():
            return self.iteration, self.seconds, judge_model(self._program, self._model, self._judged)

    def advance(self, iterations: int) -> None:
        for _ in range(iterations):
            batch, begun = next(self._batches), time.process_time()
            if self._driver.steering is not None and self.iteration % WATCHED_EVERY == 0:
                with self._driver.judged():
                    watched = judge_model(self._program, self._model, next(self._looked_at))
                self._driver.steering.validate(watched)
            loss = self._program.compute_loss(self._model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self._driver.step(loss)
            for optimizer in self._driver.update.optimizers:
                optimizer.zero_grad()
            self.seconds += time.process_time() - begun
            self.iteration += 1

    def finish(self, purpose: str, target: float | None, curve: list[tuple[int, float, float]]) -> TrainingTrial:
        """What became of it."""
        hit = target is not None and curve[-1][2] <= target
        samples = curve[-1][0] * self._program.batch_size
        fingerprint = "" if self.policy is None else self.policy.fingerprint
        return TrainingTrial(
            self.program, self.rival, self.seed, purpose, fingerprint, asdict(self.setting), target, hit, samples,
            curve[-1][1], tuple(curve),
        )  # fmt: skip


def run_trial(
    name: str, rival: str, seed: int, purpose: str, setting: CosineSetting, target: float | None, policy: Policy | None
) -> TrainingTrial:
    """Train the program ``name``, in one thread, until it reaches the ``target`` or its iterations are over.

    ``policy`` steers those that are steered.
    """
    run = ProgramRun(name, rival, seed, setting, policy)
    iterations = get_program(name).iterations
    every, curve = max(1, iterations // LOOKS), [run.judge()]
    while run.iteration + every <= iterations and (target is None or not curve[-1][2] <= target):
        run.advance(every)
        curve.append(run.judge())
    return run.finish(purpose, target, curve)


def time_rivals(name: str, seed: int, setting: CosineSetting, policies: Mapping[str, Policy]) -> list[TrainingTrial]:
    """The whole run of every rival, all by turns: whatever else the machine does, it does to all of them.

    ``policies`` are those of the rivals that are steered.
    """
    runs = [ProgramRun(name, rival, seed, setting, policies.get(rival)) for rival in RIVALS]
    curves = [[run.judge()] for run in runs]
    iterations = get_program(name).iterations
    for done in range(0, iterations, TURN):
        for run in runs:
            run.advance(min(TURN, iterations - done))
    for run, curve in zip(runs, curves, strict=True):
        curve.append(run.judge())
    return [run.finish("timing", None, curve) for run, curve in zip(runs, curves, strict=True)]


@strict
class _Header(TypedDict):
    """Under what circumstances: versions of libraries, how many settings are tried, and what the programs are."""

    format: str
    versions: dict[str, str]
    tuning: Count
    programs: dict[Name, dict[str, Any]]


def _check(header: Header, trial: TrainingTrial) -> None:
    demand(trial.program in header["programs"], f"the header names no program {trial.program!r}")
    demand(trial.target is not None or trial.curve[-1][0] > 0, "a run without a target that ended at once")


TRIALS_KIND = RecordKind[TrainingTrial](
    "trials", "loopwright-programs-2", _Header, TrainingTrial, _check, "run loopwright programs again"
)


class TrialsFile(RecordsFile[TrainingTrial]):
    """All trials of a contest on disk, and under what circumstances they were made: see ``RecordsFile``."""

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__(path, TRIALS_KIND, header)
