"""RunPicture: the run so far as an image, drawn again after every decision.

Laying out a figure of fourteen rows takes half a second, drawing its lines a few milliseconds. So every knob has a row
whose bounds are those of the knob; what stands still is drawn once, and again only where the run leaves the frame.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loopwright.envs.loop.arithmetic import Many, One
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.knobs import Knob
from loopwright.envs.loop.plan import CHOICES
from loopwright.envs.render import Frame, label_plainly
from loopwright.inner_tasks.task import Task

SIZE, DOTS = (8.0, 6.0), 100  # inches, dots an inch
Bounds = tuple[float, float]


class RunPicture:
    """Draws one run after another of an environment with these knobs."""

    def __init__(self, knobs: KnobSet) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to load, and only to draw
        from matplotlib.figure import Figure

        self._knobs = knobs.knobs
        self._figure = Figure(figsize=SIZE, dpi=DOTS)
        self._canvas = FigureCanvasAgg(self._figure)
        self._laid_out: object = None
        self._still: Any = None  # the picture without its lines
        self._lines: list[tuple[Any, Any]] = []  # each with its axes

    def draw(self, task: Task, frames: Sequence[Frame], budget: float) -> npt.NDArray[np.uint8]:
        """An image ``[600, 800, 3]`` of the run so far."""
        places = [_place(knob, frames) for knob in self._knobs]
        losses = np.array([frame.loss for frame in frames])
        bounds = [
            _bound_losses(losses, task),
            *(_bound(knob, own) for knob, own in zip(self._knobs, places, strict=True)),
        ]
        wanted = (task.name, budget, bounds)
        if wanted != self._laid_out:
            self._lay_out(task, budget, bounds)
            self._laid_out = wanted
        self._canvas.restore_region(self._still)  # type: ignore[no-untyped-call]
        costs = np.array([frame.cost for frame in frames])
        for (line, axes), values in zip(self._lines, [losses, *places], strict=True):
            line.set_data(costs, values)
            axes.draw_artist(line)
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]

    def _lay_out(self, task: Task, budget: float, bounds: Sequence[Bounds]) -> None:
        figure, count = self._figure, len(self._knobs)
        figure.clear()
        figure.subplots_adjust(left=0.22, right=0.98, top=0.95, bottom=0.08, hspace=0.25)
        rows = figure.subplots(1 + count, 1, height_ratios=[4] + [1] * count)
        rows = list(np.atleast_1d(rows))
        for axes, own in zip(rows, bounds, strict=True):
            axes.set(xlim=(0, budget), ylim=own)
            axes.tick_params(labelsize=7, labelbottom=axes is rows[-1])
        rows[0].set_title(task.name, fontsize=10, parse_math=False)
        rows[0].set_ylabel("loss", fontsize=8)
        rows[0].set_yscale("log")
        rows[0].set_ylim(bounds[0])
        label_plainly(rows[0].yaxis)
        if task.calibration is not None:
            rows[0].axhline(task.calibration.target, color="grey", linestyle="--", linewidth=1, label="target")
            rows[0].legend(fontsize=8, loc="upper right")
        for axes, knob, (low, high) in zip(rows[1:], self._knobs, bounds[1:], strict=True):
            margin = 0.1 * (high - low)
            axes.set_ylim(low - margin, high + margin)
            axes.set_yticks([low, high], [_say(knob, low), _say(knob, high)], fontsize=6)
            name = knob.field.replace("_", " ")
            axes.text(-0.1, 0.5, name, ha="right", va="center", fontsize=8, transform=axes.transAxes)
        rows[-1].set_xlabel("cost (geq)", fontsize=8)
        (first,) = rows[0].plot([], [], marker=".", animated=True)
        self._lines = [(first, rows[0])]
        self._lines += [(axes.step([], [], where="pre", animated=True)[0], axes) for axes in rows[1:]]
        self._canvas.draw()  # type: ignore[no-untyped-call]
        self._still = self._canvas.copy_from_bbox(figure.bbox)  # type: ignore[no-untyped-call]


def _place(knob: Knob, frames: Sequence[Frame]) -> npt.NDArray[np.floating]:
    """Where the knob stood in every decision, encoded, within its bounds."""
    values = [frame.plan[knob.field] for frame in frames]
    if knob.field in CHOICES:
        values = [CHOICES[knob.field].index(value) for value in values]
    numbers = np.asarray(values, dtype=float)
    return np.clip(knob.encode(Many, numbers), knob.low, knob.high) if len(numbers) else numbers


def _bound(knob: Knob, places: npt.NDArray[np.floating]) -> Bounds:
    """The knob's bounds; the learning rate's are eight orders of magnitude apart, of which those visited are shown."""
    if knob.name != "lr" or not len(places):
        return knob.low, knob.high
    decade = math.log(10)
    low = math.floor(places.min() / decade + 1e-9)
    return low * decade, max(math.ceil(places.max() / decade - 1e-9), low + 1) * decade


def _bound_losses(losses: npt.NDArray[np.floating], task: Task) -> Bounds:
    """Half orders of magnitude around the losses and the target."""
    target = [] if task.calibration is None else [task.calibration.target]
    seen = [loss for loss in (*losses.tolist(), *target) if math.isfinite(loss) and loss > 0] or [1.0]
    low, high = math.floor(2 * math.log10(min(seen)) - 0.2), math.ceil(2 * math.log10(max(seen)) + 0.2)
    return 10 ** (low / 2), 10 ** (high / 2)


def _say(knob: Knob, place: float) -> str:
    value: float = knob.decode(One, place)
    if knob.field in CHOICES:
        return CHOICES[knob.field][round(value)]
    if knob.field == "rollback":
        return "yes" if value else "no"
    return "off" if math.isinf(value) else f"{value:.3g}"
