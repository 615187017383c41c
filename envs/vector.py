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

from loopwright.envs.engine.prices import PriceList
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import Decision
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.averages import Mask
from loopwright.envs.loop.checks import MOST_LANES, check_counts, check_kind, check_whole
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.plan import LoopPlan, unstack_plans
from loopwright.envs.render import RENDER_MODES, Frame, check_render_mode, draw_run
from loopwright.envs.sampling import Spread, TaskSampler, draw_task
from loopwright.envs.spaces import make_action_space, make_observation_space
from loopwright.envs.training_loop import FloatArray, choose_settings, make_batch
from loopwright.inner_tasks.task import Task

Info = dict[str, Any]
TEXTS = ("task", "outcome", "verdict")  # entries of an info that are not numbers


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
            ``DISABLED``: then whoever steps resets the environments whose episodes have ended.
        max_episode_steps: truncate after so many decisions, or None.
        render_mode: "rgb_array": ``render`` gives a picture of every run so far; or None.

    The other arguments are those of ``TrainingLoopEnv``. ``info`` holds arrays ``[num_envs]`` for ``task``,
    ``outcome``, ``cost``, ``budget``, ``loss``, ``metric`` and ``verdict``; at the start of an episode there is no loss
    and no metric yet, which are NaN. ``reset(options={"reset_mask": mask})`` resets the environments of a boolean mask
    ``[num_envs]`` only.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: str = "train",
        tasks: Sequence[str | Task] | None = None,
        knobs: str = "all",
        action: str = "discrete",
        plan: LoopPlan | None = None,
        spread: Spread | None = None,
        prices: str | Mapping[str, float] | PriceList | None = None,
        withheld: float = 0.0,
        open_runs: float = 0.0,
        plain_runs: float = 0.0,
        settings: EpisodeSettings | None = None,
        ledgers: Path | str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__()
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise UnknownNameError("autoreset_mode", autoreset_mode, modes)
        self.autoreset_mode, self.render_mode = AutoresetMode(autoreset_mode), check_render_mode(render_mode)
        check_counts(max_episode_steps=(max_episode_steps, 1))
        check_whole("num_envs", num_envs, 0, MOST_LANES)  # at least one per task shape, which _divide counts
        settings = choose_settings(settings, prices)
        self.sampler = TaskSampler(
            suite, tasks, plan, spread=spread, settings=settings, withheld=withheld, open_runs=open_runs,
            plain_runs=plain_runs,
        )  # fmt: skip
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.knobs = KnobSet(knobs, action)
        self.single_observation_space = make_observation_space()
        self.single_action_space = make_action_space(self.knobs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"render_modes": RENDER_MODES, "autoreset_mode": self.autoreset_mode}
        self._groups = self._divide(settings, ledgers)
        self._generators: list[np.random.Generator] = []
        self._finished = np.zeros(num_envs, dtype=bool)
        self._decisions = np.zeros(num_envs, dtype=int)
        self._held = np.zeros((num_envs, len(self.knobs.knobs)), dtype=bool)
        self._frames: list[list[Frame]] = [[] for _ in range(num_envs)]

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

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, Info]:
        """Start episodes afresh. An int seeds environment i with seed + i, as Gymnasium's own vectors do."""
        self._check_open("reset")
        mask = self._mask_of(options)
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
        self._begin(mask)
        return self._observe(), self._describe(self._nothing())

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

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Every run so far as an image ``[height, width, 3]``: loss against cost, and the plan under it."""
        if self.render_mode is None or not self._generators:
            return None
        frames = []
        for part, batch, _ in self._groups:
            for own, task, budget in zip(self._frames[part], batch.tasks, batch.budget.total.tolist(), strict=True):
                assert task is not None
                frames.append(draw_run(task, own, budget))
        return tuple(frames)

    def close_extras(self, **kwargs: Any) -> None:
        self._groups = []

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise LoopwrightError(f"{what}() after close(); make the environment anew")

    def _mask_of(self, options: dict[str, Any] | None) -> Mask:
        """The environments that are to be reset."""
        check_kind("reset options", options, (Mapping, type(None)), "a mapping, such as {'reset_mask': mask}")
        left = dict(options or {})
        mask = left.pop("reset_mask", np.ones(self.num_envs, dtype=bool))
        if left:
            raise LoopwrightError(f"unknown reset options {list(left)}; a vector environment takes reset_mask")
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise LoopwrightError(f"reset_mask must be a boolean array of shape ({self.num_envs},), got {mask!r}")
        if not mask.any():
            raise LoopwrightError("reset_mask must hold at least one True")
        if not self._generators and not mask.all():
            raise LoopwrightError("the first reset() is of all environments; reset_mask leaves some out")
        return mask

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
                costs, losses = batch.budget.cost.tolist(), decisions[-1].loss.tolist()
                for frames, cost, loss, plan in zip(
                    self._frames[part], costs, losses, unstack_plans(batch.plans), strict=True
                ):
                    frames.append(Frame(cost, loss, plan.as_dict()))
        return decisions

    def _nothing(self) -> list[Decision]:
        return [Decision.none(len(group.batch.tasks)) for group in self._groups]

    def _begin(self, mask: Mask) -> None:
        """Start a new episode in the environments of ``mask``."""
        self._decisions[mask] = 0
        for i in np.flatnonzero(mask):
            self._frames[i] = []
        for part, batch, tasks in self._groups:
            lanes = np.flatnonzero(mask[part]).tolist()
            if lanes:
                starts = [self.sampler.draw(self._generators[part.start + lane], among=tasks) for lane in lanes]
                self._held[part.start + np.array(lanes)] = [self.knobs.find_held(start.held) for start in starts]
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
        info = {name: np.array(values, dtype=object if name in TEXTS else float) for name, values in info.items()}
        return info | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in list(info)}
