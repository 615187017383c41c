"""One program trained once, and what it took to reach a loss."""

import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.judging.results import RunRecord, cut_unfinished_line
from loopwright.agents.judging.statistics import SECONDS
from loopwright.envs.episode.decision import HIT, MISS, OUTCOMES
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import append_line, write_whole
from loopwright.scripts.real_programs.program import Batch, Program, draw_batches, get_program
from loopwright.scripts.real_programs.rivals import RIVALS, CosineSetting, Launch

LOOKS = 40  # times that a run is judged
WATCHED_EVERY = 16  # iterations between looks at data that is watched, of what is steered
TRIALS_FORMAT = "loopwright-programs-1"


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

    program: str
    rival: str
    seed: int
    purpose: str
    policy: str
    setting: dict[str, float]
    target: float | None
    hit: bool
    samples: int
    seconds: float
    curve: tuple[tuple[int, float, float], ...]

    @property
    def key(self) -> tuple[Any, ...]:
        return self.program, self.rival, self.seed, self.purpose, self.policy, tuple(self.setting.values())

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


class TrialsFile:
    """All trials of a contest as JSON lines, only ever appended to; a line that was not finished is cut off.

    Raises ``LoopwrightError`` for a file that was made under other circumstances, or is damaged.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        header = json.loads(json.dumps({"format": TRIALS_FORMAT, **header}))
        self.trials: list[TrainingTrial] = []
        if path.exists() and path.stat().st_size:
            self._read(path, header)
        self.path = path
        if not path.exists() or not path.stat().st_size:
            write_whole(path, json.dumps(header) + "\n")

    def _read(self, path: Path, header: dict[str, Any]) -> None:
        cut_unfinished_line(path)
        lines = path.read_text().splitlines()
        try:
            found = json.loads(lines[0]) if lines else header
            self.trials = [_read_trial(json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError, KeyError) as problem:
            raise LoopwrightError(f"{path} is damaged: {problem}") from None
        differs = sorted(name for name in {*found, *header} if found.get(name) != header.get(name))
        if differs:
            raise LoopwrightError(f"{path} holds another contest ({', '.join(differs)} differ); choose another folder")

    def append(self, trial: TrainingTrial) -> None:
        append_line(self.path, json.dumps(asdict(trial)).encode() + b"\n")
        self.trials.append(trial)


def _read_trial(values: dict[str, Any]) -> TrainingTrial:
    if set(values) != {field.name for field in fields(TrainingTrial)}:
        raise ValueError(f"not a trial: {', '.join(values)}")
    return TrainingTrial(**{**values, "curve": tuple(tuple(point) for point in values["curve"])})
