"""Draws a run: loss against cost, and under it the plan that was followed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.plan import CHOICES
from loopwright.inner_tasks.task import Task

RENDER_MODES = ["rgb_array"]
LOGARITHMIC = ("learning_rate", "clip", "batch", "keep", "echo")


def check_render_mode(mode: str | None) -> str | None:
    """The mode. Raises ``LoopwrightError`` for one there is not."""
    if mode not in (None, *RENDER_MODES):
        raise LoopwrightError(f"render_mode must be None or 'rgb_array', got {mode!r}")
    return mode


class Frame(NamedTuple):
    """One decision: geq spent so far, target-split loss, and the plan's fields."""

    cost: float
    loss: float
    plan: dict[str, Any]


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


def draw_run(task: Task, frames: Sequence[Frame], budget: float) -> npt.NDArray[np.uint8]:
    """An image ``[600, 800, 3]`` of the run so far."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to load, and only to draw
    from matplotlib.figure import Figure

    fields = find_changed_fields([frame.plan for frame in frames])
    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    rows = figure.subplots(1 + len(fields), 1, sharex=True, height_ratios=[4] + [1] * len(fields))
    rows[0].set_title(task.name, fontsize=10)
    rows[0].set_ylabel("loss", fontsize=8)
    rows[0].set_xlim(0, budget)
    if task.calibration is not None:
        rows[0].axhline(task.calibration.target, color="grey", linestyle="--", linewidth=1, label="target")
        rows[0].legend(fontsize=8)
    if frames:
        costs = [frame.cost for frame in frames]
        rows[0].plot(costs, [frame.loss for frame in frames], marker=".")
        rows[0].set_yscale("log")
        for axes, field in zip(rows[1:], fields, strict=True):
            plot_plan(axes, costs, [frame.plan[field] for frame in frames], field)
    rows[-1].set_xlabel("cost (geq)", fontsize=8)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
