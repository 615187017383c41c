"""Train real PyTorch programs as people do, and with a policy attached; write docs/results/programs.

    loopwright programs
    loopwright programs --programs "GRU, names" --seeds 2 --folder runs/programs

Goes on where it was interrupted. Every program: 20 settings of AdamW with a cosine are tried, the best sets the target,
then everybody starts; and in the end all run by turns, for the time that an iteration takes.
"""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as Shown
from torch.quasirandom import SobolEngine
from tqdm import tqdm

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.judging.workers import work_apart
from loopwright.agents.steering.defaults import ADAM_POLICY, WHOLE_POLICY
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.holding import holding_folder
from loopwright.envs.loop.ledger import read_versions
from loopwright.envs.loop.storage import write_whole, writing
from loopwright.scripts.real_programs.program import PROGRAMS, get_program
from loopwright.scripts.real_programs.rivals import RIVALS, STEERED_BY, TUNED, CosineSetting
from loopwright.scripts.real_programs.standing import (
    compare_rivals,
    cut_at,
    draw_curves,
    retime,
    tabulate_ratios,
    write_contest_page,
)
from loopwright.scripts.real_programs.trial import TrainingTrial, TrialsFile, run_trial, time_rivals
from loopwright.scripts.run import run

TUNING_SEED = 1000
SHARE = 0.8  # of the tuned cosine's run, after which its loss is the target
TIMED_ROUNDS = 3  # in which all are timed


@dataclass
class Config:
    policy: str = ""
    """Policy to attach, a name or a file; by default the one that comes along for the optimizer."""
    programs: tuple[str, ...] = ()
    """Programs to train; all of them if none is named."""
    seeds: int = 5
    """Runs of each program by each rival."""
    tuning: int = 20
    """Settings of the cosine that are tried."""
    workers: int = 2
    """Processes, of one thread each."""
    folder: Path = Path("docs/results/programs")
    """Where trials, tables and the figure go."""


Work = tuple[str, str, int, str, CosineSetting, float | None, Policy | None]  # the arguments of run_trial


def list_settings(count: int) -> list[CosineSetting]:
    """Quasi-random settings: learning rates from 1e-4 to 10^-1.5, decay from 1e-3 to 0.3, warm-up in half of them."""
    points = SobolEngine(3, scramble=True, seed=0).draw(count).tolist()  # type: ignore[no-untyped-call]
    return [CosineSetting(10 ** (-4 + 2.5 * a), 10 ** (-3 + 2.5 * b), 0.1 if c > 0.5 else 0.0) for a, b, c in points]


def name_work(work: Work) -> tuple[object, ...]:
    """The key of the trial that ``work`` makes."""
    *which, setting, _, policy = work
    return *which, "" if policy is None else policy.fingerprint, tuple(asdict(setting).values())


class Race:
    """The trials of all stages, those that are there already and those that are missing."""

    def __init__(self, config: Config, programs: Sequence[str]) -> None:
        chosen = {rival: config.policy or name for rival, name in STEERED_BY.items()}
        loaded = {name: load_policy(name) for name in set(chosen.values())}
        self.policies = {rival: loaded[name] for rival, name in chosen.items()}
        self._prints = {rival: policy.fingerprint for rival, policy in self.policies.items()}
        header = {"versions": read_versions(), "tuning": config.tuning}
        header |= {"programs": {name: asdict(get_program(name)) for name in programs}}
        self.config, self.programs = config, programs
        self.file = TrialsFile(config.folder / "trials.jsonl", header)

    def find(self, purpose: str, program: str) -> list[TrainingTrial]:
        return [t for t in self.file.records if t.purpose == purpose and t.program == program]

    def find_current(self, purpose: str, program: str) -> list[TrainingTrial]:
        """Without what other policies steered."""
        return [t for t in self.find(purpose, program) if t.policy == self._prints.get(t.rival, "")]

    def do(self, purpose: str, work: Iterable[Work]) -> None:
        """Run what is missing of ``work``."""
        done = {trial.key for trial in self.file.records}
        left = [w for w in work if name_work(w) not in done]
        parts = work_apart(run_trial, left, self.config.workers)
        for trial in tqdm(parts, total=len(left), desc=purpose, unit="run"):
            self.file.append(trial)

    def tune(self) -> None:
        settings = list_settings(self.config.tuning)
        self.do("tuning", ((p, TUNED, TUNING_SEED, "tuning", s, None, None) for p in self.programs for s in settings))

    def choose(self, program: str) -> CosineSetting:
        """The setting whose run ended lowest."""
        tried = [t for t in self.find("tuning", program) if math.isfinite(t.final_loss())]
        if not tried:
            raise LoopwrightError(f"no setting of {TUNED} trains {program}")
        return CosineSetting(**min(tried, key=TrainingTrial.final_loss).setting)

    def aim(self) -> None:
        seeds = range(self.config.seeds)
        self.do("target", ((p, TUNED, n, "target", self.choose(p), None, None) for p in self.programs for n in seeds))

    def find_target(self, program: str) -> float:
        """The median of what the seeds have reached after a share of their runs."""
        curves = [t.curve for t in self.find("target", program)]
        return statistics.median(min(loss for at, _, loss in curve if at <= SHARE * curve[-1][0]) for curve in curves)

    def race(self) -> None:
        """Those without a policy first: what they did stays when a policy is trained anew."""
        steers = {rival: self.policies.get(rival) for rival in RIVALS if rival != TUNED}
        self.do("contest", (
            (p, rival, seed, "contest", self.choose(p), self.find_target(p), policy)
            for rival, policy in steers.items() for seed in range(self.config.seeds) for p in self.programs
        ))  # fmt: skip

    def find_rounds(self, program: str) -> list[list[TrainingTrial]]:
        """Those in which every rival was timed, with the policies that steer now."""
        rounds: dict[int, list[TrainingTrial]] = {}
        for trial in self.find_current("timing", program):
            rounds.setdefault(trial.seed, []).append(trial)
        return [own for own in rounds.values() if {t.rival for t in own} == set(RIVALS)]

    def time(self) -> None:
        """Time all by turns, where that was not done often enough; a round that was interrupted does not count."""
        work = []
        for p in self.programs:
            first = 1 + max((t.seed for t in self.find("timing", p)), default=-1)
            rounds = range(first, first + TIMED_ROUNDS - len(self.find_rounds(p)))
            work += [(p, number, self.choose(p), self.policies) for number in rounds]
        parts = work_apart(time_rivals, work, self.config.workers)
        for trials in tqdm(parts, total=len(work), desc="timing", unit="round"):
            for trial in trials:
                self.file.append(trial)

    def find_pace(self, program: str) -> dict[str, float]:
        """The seconds that an iteration takes, by rival: the median of the rounds."""
        rounds = self.find_rounds(program)
        each = {rival: [t.seconds / t.curve[-1][0] for own in rounds for t in own if t.rival == rival]
                for rival in RIVALS}  # fmt: skip
        return {rival: statistics.median(own) for rival, own in each.items()}

    def collect(self) -> list[TrainingTrial]:
        """A trial of every rival on every program and seed, its seconds as timed by turns."""
        tuned = [cut_at(t, self.find_target(p)) for p in self.programs for t in self.find("target", p)]
        raced = [t for p in self.programs for t in self.find_current("contest", p)]
        paces = {p: self.find_pace(p) for p in self.programs}
        return [retime(t, paces[t.program][t.rival]) for t in tuned + raced if t.seed < self.config.seeds]


def main(config: Config) -> int:
    torch.set_num_threads(1)
    programs = list(config.programs) or list(PROGRAMS)
    with holding_folder(config.folder):
        return race_programs(config, programs)


def race_programs(config: Config, programs: Sequence[str]) -> int:
    """Run what is missing, and write and print what came of it."""
    contest = Race(config, programs)
    contest.tune()
    contest.aim()
    contest.race()
    contest.time()
    trials = contest.collect()
    tables = tabulate_ratios(compare_rivals(trials, programs))
    by_default = f"`{ADAM_POLICY}`, and `loopwright.optimizer` by `{WHOLE_POLICY}`"
    steered = f"`{config.policy}`" if config.policy else by_default
    provenance = {"policy": steered, "seeds": config.seeds, "tuning": config.tuning, "rounds": TIMED_ROUNDS}
    write_whole(config.folder / "README.md", write_contest_page(tables, provenance))
    with writing(config.folder / "programs.png") as picture:
        draw_curves(trials, programs, 0).savefig(picture, dpi=110)
    console = Console(width=max(150, Console().width))
    for table in tables:
        shown = Shown(*table.header, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
