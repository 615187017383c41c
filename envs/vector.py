"""TrainingLoopVectorEnv: many training runs at once, in one batch per task shape, as a Gymnasium vector environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from loopwright.envs.arguments import PriceArgument, choose_plan, choose_settings, choose_spread, choose_tasks
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import Decision
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.averages import Mask
from loopwright.envs.loop.checks import MOST_LANES, check_counts, check_kind, check_whole
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.plan import LoopPlan, unstack_plans
from loopwright.envs.picture import RunPicture
from loopwright.envs.render import RENDER_MODES, Frame, check_render_mode, say_run
from loopwright.envs.sampling import Spread, TaskSampler, check_task, draw_task
from loopwright.envs.spaces import make_action_space, make_observation_space
from loopwright.envs.torch_modes import in_own_modes
from loopwright.envs.training_loop import TEXTS, FloatArray, find_masks, make_batch
from loopwright.inner_tasks.registry import get_shape
from loopwright.inner_tasks.task import Task

Info = dict[str, Any]
CALLED = ("render", "action_masks")  # methods that ``call`` knows


class Group(NamedTuple):
    """Environments whose tasks share a shape: which they are, their episodes, and the tasks they draw from."""

    part: slice
    batch: EpisodeBatch
    tasks: list[str | Task]


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole shares as nearly proportional to ``weights`` as may be, each 1 or more."""
    counts = [1] * len(weights)
    for _ in range(total - len(weights)):
        # The one that has least for its weight (Webster's method).
        at = max(range(len(weights)), key=lambda i: weights[i] / (counts[i] + 0.5))
        counts[at] += 1
    return counts


class TrainingLoopVectorEnv(gym.vector.VectorEnv[FloatArray, npt.NDArray[Any], npt.NDArray[Any]]):
    """Many training loops at once, trained in one batch per task shape; see ``TrainingLoopEnv`` for the rest.

    The environments are divided over the shapes among the tasks, by how many tasks have each: environment i keeps its
    shape for good, and draws from the tasks of that shape.

    Args:
        num_envs: at least one per task shape.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default), ``SAME_STEP`` (what Stable-Baselines3 wants), or
            ``DISABLED``: then whoever steps resets the environments whose episodes have ended; by name or value.
        max_episode_steps: truncate after so many decisions, or None.
        render_mode: "rgb_array" or "ansi": ``render`` gives a picture or a table of every run so far; or None.

    The other arguments are those of ``TrainingLoopEnv``. ``info`` holds for each entry of that environment's an array
    ``[num_envs]``, and ``plan`` always as numbers, ``[num_envs, fields]``, a field that takes names (``CHOICES``) as
    its position among them. ``reset(options={"reset_mask": mask})`` resets the environments of a boolean mask
    ``[num_envs]`` only; ``{"task": name}`` chooses their task, or a list of ``num_envs`` the task of each, all of the
    shape that the environment has.
    """

    @in_own_modes()
    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: str = "train",
        tasks: str | Task | Sequence[str | Task] | None = None,
        knobs: str = "all",
        action: str = "discrete",
        plan: LoopPlan | Mapping[str, Any] | None = None,
        spread: Spread | Mapping[str, Any] | None = None,
        prices: PriceArgument | None = None,
        withheld: float = 0.0,
        open_runs: float = 0.0,
        plain_runs: float = 0.0,
        settings: EpisodeSettings | Mapping[str, Any] | None = None,
        ledgers: Path | str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        texts: bool = True,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.autoreset_mode, self.render_mode = _find_mode(autoreset_mode), check_render_mode(render_mode)
        check_counts(max_episode_steps=(max_episode_steps, 1))
        check_kind("texts", texts, bool, "True or False")
        check_whole("num_envs", num_envs, 0, MOST_LANES)  # at least one per task shape, which _divide counts
        settings = choose_settings(settings, prices)
        self.sampler = TaskSampler(
            suite, choose_tasks(tasks), choose_plan(plan), spread=choose_spread(spread), settings=settings,
            withheld=withheld, open_runs=open_runs, plain_runs=plain_runs,
        )  # fmt: skip
        self.num_envs, self.max_episode_steps, self.texts = num_envs, max_episode_steps, texts
        self.knobs = KnobSet(knobs, action)
        self.single_observation_space = make_observation_space()
        self.single_action_space = make_action_space(self.knobs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"render_modes": RENDER_MODES, "autoreset_mode": self.autoreset_mode}
        self._groups = self._divide(settings, ledgers)
        if settings.compile == "auto":
            compiled = [group.batch.lanes for group in self._groups if group.batch.settings.compile]
            for lanes in tqdm(compiled, desc="compiling the inner loop", unit="shape", disable=not compiled):
                lanes.warm_up()
        self._generators: list[np.random.Generator] = []
        self._finished = np.zeros(num_envs, dtype=bool)
        self._decisions = np.zeros(num_envs, dtype=int)
        self._held = np.zeros((num_envs, len(self.knobs.knobs)), dtype=bool)
        self._frames: list[list[Frame]] = [[] for _ in range(num_envs)]
        self._pictures: dict[int, RunPicture] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pictures": {}}  # drawn anew

    @property
    def plan(self) -> LoopPlan:
        """What episodes start from."""
        return self.sampler.plan

    def _divide(self, settings: EpisodeSettings, ledgers: Path | str | None) -> list[Group]:
        """The environments over the shapes of the tasks, in proportion to the tasks, but one each at least."""
        shapes = self.sampler.by_shape()
        if self.num_envs < len(shapes):
            raise LoopwrightError(
                f"num_envs must be at least {len(shapes)}, one per task shape; got {self.num_envs}. For fewer, give "
                f"tasks of fewer shapes, or suite='demo'"
            )
        groups, start = [], 0
        counts = share_out(self.num_envs, [len(members) for members in shapes.values()])
        for count, members in zip(counts, shapes.values(), strict=True):
            stop = start + count
            batch = make_batch(draw_task(members[0]), stop - start, settings, self.knobs, ledgers)
            groups.append(Group(slice(start, stop), batch, members))
            start = stop
        return groups

    @in_own_modes()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, Info]:
        """Start episodes afresh. An int seeds environment i with seed + i, as Gymnasium's own vectors do."""
        self._check_open("reset")
        mask, tasks = self._read_options(options)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is None:
            seeds = [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise LoopwrightError(f"{len(seeds)} seeds for {self.num_envs} environments")
        super().reset(seed=seeds[0])
        kept: Sequence[np.random.Generator | None] = self._generators or [None] * self.num_envs
        self._generators = [
            old if old is not None and (one is None or not chosen) else seeding.np_random(one)[0]
            for one, old, chosen in zip(seeds, kept, mask, strict=True)
        ]
        self._finished[mask] = False
        self._begin(mask, tasks)
        return self._observe(), self._describe(self._nothing())

    @in_own_modes()
    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[FloatArray, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], Info]:
        self._check_open("step")
        if not self._generators:
            raise LoopwrightError("step() before reset()")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._finished.any():
            raise LoopwrightError(
                f"step() after the episodes of environments {np.flatnonzero(self._finished).tolist()} have ended; "
                f"reset them with reset(options={{'reset_mask': ...}})"
            )
        decisions = self._decide(self.knobs.hold(self.knobs.check(actions, self.num_envs), self._held))
        rewards = np.concatenate([d.reward.numpy() for d in decisions]).astype(np.float64)
        self._decisions += 1
        terminated = np.concatenate([d.done.numpy() for d in decisions])
        truncated = np.zeros_like(terminated)
        if self.max_episode_steps is not None:
            truncated = (self._decisions >= self.max_episode_steps) & ~terminated
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = self._begin_at_once(decisions, terminated | truncated)
            return self._observe(), rewards, terminated, truncated, info
        for group in self._groups:
            group.batch.end(np.flatnonzero(truncated[group.part]).tolist())
        begun = self._finished.copy()  # the action of a finished episode only starts the next one
        rewards[begun], terminated[begun], truncated[begun] = 0.0, False, False
        if begun.any():
            self._begin(begun)
        self._finished = terminated | truncated
        return self._observe(), rewards, terminated, truncated, self._describe(decisions, begun)

    def render(self, index: int | None = None) -> tuple[Any, ...] | None:
        """Every run so far, or that of the environment ``index`` alone, as ``TrainingLoopEnv.render`` has it."""
        check_counts(index=(index, 0))
        if index is not None and index >= self.num_envs:
            raise LoopwrightError(f"index must be below {self.num_envs}, the number of environments; got {index}")
        if self.render_mode is None or not self._generators:
            return None
        return tuple(self._render_one(i) for i in (range(self.num_envs) if index is None else [index]))

    def _render_one(self, number: int) -> npt.NDArray[np.uint8] | str:
        part, batch, _ = self._find_group(number)
        task, budget = batch.tasks[number - part.start], float(batch.budget.total[number - part.start])
        assert task is not None
        if self.render_mode == "ansi":
            return say_run(task.name, self._frames[number], budget)
        if number not in self._pictures:
            self._pictures[number] = RunPicture(self.knobs)
        return self._pictures[number].draw(task, self._frames[number], budget)

    def _find_group(self, number: int) -> Group:
        return next(group for group in self._groups if number < group.part.stop)

    def action_masks(self) -> Mask:
        """Which choices would change anything, ``[num_envs, choices]``, as ``TrainingLoopEnv.action_masks``."""
        masks = [find_masks(self.knobs, batch, self._held[part]) for part, batch, _ in self._groups]
        return np.concatenate(masks)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """What an attribute is in each environment: they share it."""
        return (getattr(self, name),) * self.num_envs

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """``name`` of each environment: what a method gives, one of ``CALLED``, or an attribute, as ``get_attr``."""
        if not callable(getattr(self, name)):
            return self.get_attr(name)
        if name not in CALLED:
            raise UnknownNameError("method of each environment", name, list(CALLED))
        found = getattr(self, name)(*args, **kwargs)
        return (None,) * self.num_envs if found is None else tuple(found)

    def close_extras(self, **kwargs: Any) -> None:
        self._groups = []

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise LoopwrightError(f"{what}() after close(); make the environment anew")

    def _read_options(self, options: dict[str, Any] | None) -> tuple[Mask, list[str | Task | None]]:
        """The environments that are to be reset, and the task of each, or None where it is drawn."""
        check_kind("reset options", options, (Mapping, type(None)), "a mapping, such as {'reset_mask': mask}")
        left = dict(options or {})
        mask, tasks = left.pop("reset_mask", np.ones(self.num_envs, dtype=bool)), left.pop("task", None)
        if left:
            raise LoopwrightError(f"unknown reset options {list(left)}; a vector environment takes reset_mask and task")
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise LoopwrightError(f"reset_mask must be a boolean array of shape ({self.num_envs},), got {mask!r}")
        if not mask.any():
            raise LoopwrightError("reset_mask must hold at least one True")
        if not self._generators and not mask.all():
            raise LoopwrightError("the first reset() is of all environments; reset_mask leaves some out")
        each = list(tasks) if isinstance(tasks, list | tuple) else [tasks] * self.num_envs
        if len(each) != self.num_envs:
            raise LoopwrightError(f"task names {len(each)} tasks, where there are {self.num_envs} environments")
        for i in np.flatnonzero(mask):
            if each[i] is not None:
                self._check_fits(each[i], int(i))
        return mask, each

    def _check_fits(self, task: str | Task, number: int) -> None:
        """Raise ``LoopwrightError`` for a task that cannot be an episode, or one of another shape."""
        check_task(task)
        own = self._find_group(number)
        if get_shape(task) != own.batch.lanes.shape_key:
            name = task if isinstance(task, str) else task.name
            raise LoopwrightError(
                f"task {name} has another shape than environment {number}, which draws {own.tasks[0]}"
            )

    def _decide(self, actions: npt.NDArray[np.generic]) -> list[Decision]:
        """A decision of every group; of one whose episodes have all ended, and wait for the next, none."""
        decisions = []
        for part, batch, _ in self._groups:
            if not batch.live.any():
                decisions.append(Decision.none(len(batch.tasks)))
                continue
            own = actions[part]
            decisions.append(batch.decide(self.knobs.apply(own, batch.plans, batch.step_ratio), own))
            if self.render_mode:
                state = batch.describe(decisions[-1])
                rows = zip(*(state[name] for name in Frame._fields[:-1]), unstack_plans(batch.plans), strict=True)
                for frames, (cost, loss, outcome, verdict, plan) in zip(self._frames[part], rows, strict=True):
                    frames.append(Frame(cost, loss, outcome, verdict, plan.as_dict()))
        return decisions

    def _nothing(self) -> list[Decision]:
        return [Decision.none(len(group.batch.tasks)) for group in self._groups]

    def _begin(self, mask: Mask, chosen: Sequence[str | Task | None] = ()) -> None:
        """Start a new episode in the environments of ``mask``, on the task ``chosen`` for each, or a drawn one."""
        chosen = chosen or [None] * self.num_envs
        self._decisions[mask] = 0
        for i in np.flatnonzero(mask):
            self._frames[i] = []
        for part, batch, tasks in self._groups:
            lanes = np.flatnonzero(mask[part]).tolist()
            if lanes:
                numbers = part.start + np.array(lanes)
                starts = [self.sampler.draw(self._generators[i], among=tasks, chosen=chosen[i]) for i in numbers]
                self._held[numbers] = [self.knobs.find_held(start.held) for start in starts]
                batch.begin(lanes, starts)

    def _begin_at_once(self, decisions: list[Decision], done: Mask) -> Info:
        """Start the next episode where one has ended; the info then says what it ended with (SAME_STEP)."""
        if not done.any():
            return self._describe(decisions)
        last = self._observe()
        ended: Info = {"final_obs": np.empty(self.num_envs, dtype=object)}
        for i in np.flatnonzero(done):
            ended["final_obs"][i] = last[i]
        final = {key: value for key, value in self._describe(decisions).items() if not key.startswith("_")}
        ended["final_info"] = final | {f"_{key}": done for key in final}
        ended["_final_obs"] = ended["_final_info"] = done
        self._begin(done)
        return self._describe(decisions, done) | ended

    def _observe(self) -> FloatArray:
        return np.concatenate([group.batch.observation.numpy() for group in self._groups])

    def _describe(self, decisions: list[Decision], begun: Mask | None = None) -> Info:
        """Arrays over all environments; where an episode has just ``begun`` nothing was decided yet."""
        info: Info = {}
        for (part, batch, _), decision in zip(self._groups, decisions, strict=True):
            fresh = None if begun is None else begun[part]
            for name, values in batch.describe(decision if fresh is None else decision.without(fresh)).items():
                info.setdefault(name, []).extend(values)
        info = {name: _make_array(values) for name, values in info.items() if self.texts or name not in TEXTS}
        info["plan"] = np.concatenate([group.batch.plans.T.double().numpy() for group in self._groups])
        return info | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in list(info)}


def _make_array(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Values as Gymnasium's own vectors keep them: numbers of their kind, and texts as objects."""
    return np.array(values, dtype=object if isinstance(values[0], str) else type(values[0]))


def _find_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode of that name or value. Raises ``UnknownNameError`` otherwise."""
    for each in AutoresetMode:
        if mode in (each, each.value, each.name):
            return each
    raise UnknownNameError("autoreset_mode", mode, [each.value for each in AutoresetMode])
