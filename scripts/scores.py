"""Train every family's plain problem with PyTorch's default AdamW, and write what it reaches to docs/tasks.md.

    loopwright scores

The metric on the target split is read where the loss on the control split is lowest; mean and standard deviation over
draws. The figures as JSON go to docs/results/scores.json.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.loop.errors import UnknownNameError
from loopwright.envs.loop.holding import holding_file
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.envs.loop.sealed import make_json_value
from loopwright.envs.loop.storage import write_whole
from loopwright.envs.loop.untrusted import AnyFloat, Count, Name, Reader, strict
from loopwright.inner_tasks.family import TaskFamily
from loopwright.inner_tasks.losses import METRICS
from loopwright.inner_tasks.registry import list_families
from loopwright.inner_tasks.suites import get_suite
from loopwright.scripts.run import run

SCORED_MICROBATCH = 16
TICKS_BETWEEN_LOOKS = 64


@dataclass
class Config:
    families: tuple[str, ...] = ()
    """Families to train; empty for all. The figures of the others stay."""
    samples: int = 60_000
    """Samples read in each training."""
    draws: int = 3
    """Draws of each family."""
    docs: Path = Path("docs")
    """Where tasks.md and results/scores.json lie."""


@strict
@dataclass(frozen=True)
class Score:
    """What default AdamW reaches on a family: mean and standard deviation of metric and loss over ``draws``."""

    family: Name
    metric: AnyFloat
    metric_std: AnyFloat
    loss: AnyFloat
    samples: Count
    draws: Count


_SCORES = Reader[list[Score]](list[Score])


def score(family: TaskFamily, samples: int, draws: int) -> Score:
    tasks = [family.make_plain(seed) for seed in range(draws)]
    lanes = Lanes(tasks[0], draws, microbatch=SCORED_MICROBATCH)
    lanes.load(range(draws), tasks, range(draws))
    plans = stack_plans([LoopPlan()] * draws)
    best, loss, metric = (torch.full((draws,), math.inf) for _ in range(3))
    for _ in range(math.ceil(samples / (SCORED_MICROBATCH * TICKS_BETWEEN_LOOKS))):
        lanes.run(plans, TICKS_BETWEEN_LOOKS)
        control, _ = lanes.evaluate("control")
        found = lanes.evaluate("target")
        better = control < best
        best = torch.where(better, control, best)
        loss, metric = (torch.where(better, new, old) for new, old in zip(found, (loss, metric), strict=True))
    return Score(family.name, float(metric.mean()), float(metric.std()), float(loss.mean()), samples, draws)


def page(scores: dict[str, Score]) -> str:
    """docs/tasks.md: one row per family."""
    role = {
        family: suite
        # the last one counts: a family of train may be one of others as well
        for suite in ("spikes", "spikes-new", "varied", "train", "new")
        for family in get_suite(suite).families
    }
    lines = [
        "# Task families",
        "",
        "Written by `loopwright scores`: PyTorch's default AdamW (learning rate 1e-3, batch 16) on the plain problem",
        "of each family, without the variations of `inner_tasks/task.py`. The metric is read on the target split where",
        "the loss on the control split is lowest; mean and standard deviation over draws. *Known* is what is reached",
        "elsewhere, mostly with larger models and all of the data, or what cannot be beaten.",
        "",
        "| family | data | suite | model | metric | default AdamW | loss | known | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, family in list_families().items():
        models = "; ".join(f"`{model}`" for model in family.models)
        own = scores.get(name)
        reached, loss = ("", "") if own is None else (f"{own.metric:.3f} ± {own.metric_std:.3f}", f"{own.loss:.3f}")
        what = (f"`{name}`", family.kind, role.get(name, ""), models)
        lines.append(f"| {' | '.join((*what, METRICS[family.loss], reached, loss, family.known, family.source))} |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    known = list_families()
    for name in config.families:
        if name not in known:
            raise UnknownNameError("task family", name, list(known))
    with holding_file(config.docs / "results" / "scores.json"):
        score_families(config)


def score_families(config: Config) -> None:
    """Score the families that are asked for, and write each as it is found."""
    known, results = list_families(), config.docs / "results" / "scores.json"
    scores = {own.family: own for own in (_SCORES.read(results) if results.exists() else [])}
    for name in tqdm(config.families or list(known), desc="scores", unit="family"):
        scores[name] = score(known[name], config.samples, config.draws)
        ordered = [asdict(scores[family]) for family in known if family in scores]
        write_whole(results, json.dumps(make_json_value(ordered), indent=1) + "\n")
        write_whole(config.docs / "tasks.md", page(scores))
    print(f"wrote {config.docs / 'tasks.md'} and {results}")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
