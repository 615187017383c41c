"""What pictures of runs have in common, and what an environment renders: the fields of a plan over the cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.plan import CHOICES

RENDER_MODES = ["rgb_array", "ansi"]
LOGARITHMIC = ("learning_rate", "clip", "batch", "keep", "echo")


def check_render_mode(mode: str | None) -> str | None:
    """The mode. Raises ``LoopwrightError`` for one there is not."""
    if mode not in (None, *RENDER_MODES):
        raise LoopwrightError(f"render_mode must be None, {' or '.join(map(repr, RENDER_MODES))}; got {mode!r}")
    return mode


class Frame(NamedTuple):
    """One decision: geq spent so far, target-split loss, what came of it, and the plan's fields."""

    cost: float
    loss: float
    outcome: str
    verdict: str
    plan: dict[str, Any]


def say_run(task: str, frames: Sequence[Frame], budget: float) -> str:
    """A line for each decision: what it cost, how far the run has come, and what the decision changed."""
    lines, before = [f"{task}, budget {budget:.0f} geq"], None
    for number, (cost, loss, outcome, verdict, plan) in enumerate(frames):
        known = plan if before is None else {name: value for name, value in plan.items() if value != before[name]}
        changed = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in known.items())  # fmt: skip
        said = "" if verdict == "fine" else f", {verdict}: restored"
        lines.append(f"{number:4}  {cost / budget:5.1%}  loss {loss:<8.4g}  {outcome}{said}  {changed}".rstrip())
        before = plan
    return "\n".join(lines)


def find_changed_fields(plans: Sequence[dict[str, Any]]) -> list[str]:
    """The fields that knobs move and that differ among these plans; the learning rate in any case."""
    fields = [knob.field for knob in KNOBS.values()]
    return [f for f in fields if f == "learning_rate" or len({plan[f] for plan in plans}) > 1]


def plot_plan(axes: Any, costs: Sequence[float], values: Sequence[Any], field: str, **style: Any) -> None:
    """One field of the plan as steps over the cost; a threshold that is off (infinite) leaves a gap."""
    if field in CHOICES:
        values = [CHOICES[field].index(value) for value in values]
        axes.set_yticks(range(len(CHOICES[field])), CHOICES[field])
    numbers = np.asarray(values, dtype=float)
    axes.step(costs, np.where(np.isfinite(numbers), numbers, np.nan), **{"where": "pre", **style})
    if field in LOGARITHMIC:
        axes.set_yscale("log")
        label_plainly(axes.yaxis)
    axes.set_ylabel(field.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    axes.tick_params(labelsize=7)


def label_plainly(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # slow to load, and only to draw

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
