"""One program trained once, and what it took to reach a loss."""

import math
import time
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
        purpose: "tuning", "target" or "contest".
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
    purpose: Annotated[str, AfterValidator(one_of("tuning", "target", "contest"))]
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


def run_trial(
    name: str, rival: str, seed: int, purpose: str, setting: CosineSetting, target: float | None, policy: Policy | None
) -> TrainingTrial:
    """Train the program ``name``, in one thread, until it reaches the ``target`` or its iterations are over.

    ``policy`` steers those that are steered.
    """
    torch.set_num_threads(1)
    program = get_program(name)
    data, watched, judged = program.load_data()
    model = program.build_model(seed)
    launch = Launch(model, program.iterations, len(data[0]), program.batch_size, setting, policy)
    driver = RIVALS[rival](launch)
    batches, looked_at = (draw_batches(own, program.batch_size, seed) for own in (data, watched))
    every, curve, seconds = max(1, program.iterations // LOOKS), [], 0.0
    for iteration in range(program.iterations + 1):
        if iteration % every == 0:
            with driver.judged():
                loss = judge_model(program, model, judged)
            curve.append((iteration, seconds, loss))
            if iteration == program.iterations or (target is not None and loss <= target):
                break
        batch, begun = next(batches), time.process_time()
        if driver.steering is not None and iteration % WATCHED_EVERY == 0:
            with driver.judged():
                driver.steering.validate(judge_model(program, model, next(looked_at)))
        loss_now = program.compute_loss(model, batch)
        loss_now.backward()  # type: ignore[no-untyped-call]
        driver.step(loss_now)
        for optimizer in driver.update.optimizers:
            optimizer.zero_grad()
        seconds += time.process_time() - begun
    hit = target is not None and curve[-1][2] <= target
    samples = curve[-1][0] * program.batch_size
    return TrainingTrial(
        name,
        rival,
        seed,
        purpose,
        "" if policy is None else policy.fingerprint,
        asdict(setting),
        target,
        hit,
        samples,
        seconds,
        tuple(curve),
    )


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
