"""The training loop as an environment: ``TrainingLoopEnv`` for one run, ``TrainingLoopVectorEnv`` for many at once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from loopwright.envs.episodes import (
    OUTCOMES,
    RUNNING,
    Decision,
    EpisodeBatch,
    EpisodeSettings,
    lane_result,
    no_decision,
)
from loopwright.envs.guard import FINE, VERDICTS
from loopwright.envs.knobs import KNOB_SETS, KNOBS, KnobSet
from loopwright.envs.ledger import Author
from loopwright.envs.observation import FEATURES, HALF_LIVES, LIMIT, OBSERVATION_NAMES, OBSERVATION_VERSION
from loopwright.envs.plan import LoopPlan, unstack_plans
from loopwright.envs.render import Frame, draw_run
from loopwright.inner_tasks.datasets import require
from loopwright.inner_tasks.errors import LoopwrightError, UncalibratedTaskError
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.targets import calibration_of
from loopwright.inner_tasks.task import ShapeKey, Task, find_family, get_task, shape_of

FloatArray = npt.NDArray[np.float32]


def observation_space() -> gym.spaces.Box:
    return gym.spaces.Box(-LIMIT, LIMIT, (len(OBSERVATION_NAMES),), np.float32)


def choose_tasks(suite: str, tasks: Sequence[str | Task] | None) -> list[str | Task]:
    """The tasks an environment draws from: those given, by name or as they are, or those of the suite.

    A task given by name is drawn when an episode needs it; whether it can be is checked here.
    """
    if tasks is not None and len(tasks) == 0:
        raise LoopwrightError("tasks is empty; give at least one task, or None for the whole suite")
    chosen = list(get_suite(suite).tasks() if tasks is None else tasks)
    for task in chosen:
        if isinstance(task, str):
            family, _ = find_family(task)
            if family.requires is not None:
                require(family.requires)
        if (calibration_of(task) if isinstance(task, str) else task.calibration) is None:
            name = task if isinstance(task, str) else task.name
            raise UncalibratedTaskError(f"task {name} has no calibrated target; see envs.calibration.calibrate")
    return chosen


def drawn(task: str | Task) -> Task:
    return get_task(task) if isinstance(task, str) else task


def check_spread(spread: float) -> float:
    if not 0 <= spread <= 2:
        raise LoopwrightError(f"plan_spread must lie in [0, 2], orders of magnitude; got {spread}")
    return spread


def varied(plan: LoopPlan, spread: float, generator: np.random.Generator) -> LoopPlan:
    """The plan an episode starts from: the learning rate times 10^U(-spread, spread)."""
    if spread == 0:
        return plan
    return replace(plan, learning_rate=plan.learning_rate * 10 ** generator.uniform(-spread, spread))


class TrainingLoopEnv(gym.Env[FloatArray, npt.NDArray[Any]]):
    """
    ## Description

    An inner training run, controlled while it runs. The agent watches loss and gradient statistics and rewrites the
    loop: its hyperparameters, and its structure (batch size, gradient paths over layers and samples, the order of data
    and of updates). It is rewarded for bringing the loss on data it never sees down to the task's target with little
    computation. Each episode draws a task (data, network, initial weights) from a suite, so that what is learnt is a
    tuning *policy* rather than a schedule.

    One step, a *decision*, trains for ``ticks_per_decision`` microbatches under one plan.

    ## Action Space

    One dimension per knob of the knob set. By default `MultiDiscrete`: each entry picks one of the knob's steps, the
    one of step 0 leaves it alone. With `action="box"`, `Box(-1, 1)`: the step as a fraction of the largest.

    {knobs}

    Registered knob sets: {sets}.

    ## Observation Space

    `Box(-5, 5, float32)`, clipped there. L is the mean training loss of the last decision, V the loss on the last
    control batch, V0 that before training; v the running average of log V (fast); G the gradient of an update, m the
    momentum, d the step before, H the Hessian and P the optimizer's metric. Running averages have half-lives of
    {half_lives} decisions. *Blind to*: multiplying the loss by a constant ("scale"), or adding one as well ("affine"),
    changes nothing.

    {features}
    | `plan_...` | where each knob stands between its bounds, in the order above | -1 to 1 | |

    ## Cost

    Counted in geq: the measured FLOPs of forward and backward over one sample are 1. A frozen prefix costs no backward
    pass; keeping a share of a microbatch costs a forward pass over all of it; looks at the control split are charged,
    and what a rollback or the guard throws away stays charged.

    ## Rewards

    Chosen by `settings.reward` (`envs.reward.REWARDS`). "time": 1 on a hit, less the share of the budget spent, so that
    an episode that hits returns 1 - the share it used, and any other -1. "progress": the same, shaped by a potential,
    the progress towards the target counted in the cost at which the task's best static configuration gets as far;
    `settings.discount` is what the shaping discounts by. "anytime": the mean progress over the budget.

    ## Guard

    When a loss, gradient or step is not finite, or the loss or the gradient norm jumps far above its average, the run
    is brought back to its last good snapshot and the learning rate halved, `settings.guard` times an episode at most
    (`envs.guard`). It shows in the observation (`restored`, `guard_left`), in `info["verdict"]` and in the ledger.

    ## Starting State

    Freshly initialised weights and the starting ``plan``. The control split has been looked at once.

    ## Episode End

    *Terminated* when the target-split loss stays at or below the target for two decisions (`outcome` "hit"), when the
    budget is spent ("miss": the budget is part of what is observed, hence no truncation), or when the guard gives up
    or, with the guard off, the loss is no longer finite ("diverged", which costs the rest of the budget). Truncated
    only by `max_episode_steps`.

    ## Information

    `task`, `outcome`, `cost` and `budget` (geq: gradient equivalents, one forward and backward pass over one sample),
    `loss` and `metric` on the target split (the harness's, not for the agent), `verdict` of the guard, and `plan`.

    ## Arguments

    | parameter | type | default | description |
    |---|---|---|---|
    | `suite` | str | "train" | suite that tasks are drawn from |
    | `tasks` | list of names or `Task` | None | draw from these instead |
    | `knobs` | str | "all" | a knob set, or knob names joined by "+" |
    | `action` | str | "discrete" | or "box" |
    | `plan` | LoopPlan | LoopPlan() | the starting plan |
    | `plan_spread` | float | 0.0 | an episode starts with its learning rate times 10^U(-spread, spread) |
    | `settings` | EpisodeSettings | EpisodeSettings() | microbatch, ticks per decision, budget, reward, guard |
    | `ledgers` | path | None | folder for an audit log per episode (`envs.ledger`) |
    | `render_mode` | str | None | "rgb_array" draws the run so far |

    ``reset(options=dict(task=name))`` chooses the task of one episode.

    ## Vectorized environment

    `gymnasium.make_vec(id, num_envs=64)` gives `TrainingLoopVectorEnv`, which trains all runs in one batch, at many
    times the speed of as many separate environments; it takes `autoreset_mode` as well.

    ## Version History

    * v0: initial version. Observation version {version}: a saved policy fits one version only.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's convention)

    def __init__(
        self,
        *,
        suite: str = "train",
        tasks: Sequence[str | Task] | None = None,
        knobs: str = "all",
        action: str = "discrete",
        plan: LoopPlan | None = None,
        plan_spread: float = 0.0,
        settings: EpisodeSettings | None = None,
        ledgers: Path | str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise LoopwrightError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.tasks = choose_tasks(suite, tasks)
        self.knobs = KnobSet(knobs, action)
        self.plan, self.plan_spread = plan or LoopPlan(), check_spread(plan_spread)
        self.settings = settings or EpisodeSettings()
        self.ledgers = ledgers
        self.render_mode = render_mode
        self.observation_space = observation_space()  # type: ignore[assignment]
        self.action_space = self.knobs.space
        self._batches: dict[object, EpisodeBatch] = {}
        self._episode: EpisodeBatch | None = None
        self._frames: list[Frame] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        choice = self.tasks[int(self.np_random.integers(len(self.tasks)))]
        run_seed = int(self.np_random.integers(2**31))
        for name, value in (options or {}).items():
            if name != "task":
                raise LoopwrightError(f"unknown reset option {name!r}; known: task")
            (choice,) = choose_tasks("", [value])
        task = drawn(choice)
        if task.shape_key not in self._batches:
            self._batches[task.shape_key] = _make_batch(task, 1, self.settings, self.knobs, self.ledgers)
        self._episode = episode = self._batches[task.shape_key]
        episode.begin([0], [task], [run_seed], [varied(self.plan, self.plan_spread, self.np_random)])
        self._frames = []
        return episode.observation[0].numpy().copy(), lane_info(episode, 0, None)

    def step(self, action: npt.NDArray[Any]) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        if self._episode is None:
            raise LoopwrightError("step() before reset()")
        episode = self._episode
        actions = np.asarray(action)[None]
        decision = episode.decide(self.knobs.apply(actions, episode.plans, episode.step_ratio), actions)
        info = lane_info(episode, 0, decision)
        if self.render_mode:
            self._frames.append(Frame(info["cost"], info["loss"], info["plan"]))
        reward, done = float(decision.reward[0]), bool(decision.done[0])
        return episode.observation[0].numpy().copy(), reward, done, False, info

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The run so far as an image ``[height, width, 3]``: loss against cost, and the plan under it."""
        if self.render_mode is None or self._episode is None:
            return None
        task = self._episode.tasks[0]
        assert task is not None
        return draw_run(task, self._frames, float(self._episode.budget[0]))


def _make_batch(
    task: Task, lanes: int, settings: EpisodeSettings, knobs: KnobSet, ledgers: Path | str | None
) -> EpisodeBatch:
    author = Author("through the environment", knobs=knobs.name, action=knobs.action)
    return EpisodeBatch(
        task, lanes, settings, rolls_back=knobs.rolls_back, ledgers=Path(ledgers) if ledgers else None, author=author
    )


def lane_info(episode: EpisodeBatch, lane: int, decision: Decision | None) -> dict[str, Any]:
    task = episode.tasks[lane]
    assert task is not None
    return {
        "task": task.name,
        "budget": float(episode.budget[lane]),
        **lane_result(episode, lane, decision),
        "plan": unstack_plans(episode.plans[:, lane : lane + 1])[0].as_dict(),
    }


def _page(template: str) -> str:
    """The environment's page with its tables, which follow from the knobs and features there are."""
    knobs = ["| knob | moves; by; between | source |", "|---|---|---|"]
    knobs += [f"| `{knob.name}` | {knob.about} | {knob.source} |" for knob in KNOBS.values()]
    features = ["| name | formula | range | blind to |", "|---|---|---|---|"]
    features += ["| `{}` | {} | {} | {} |".format(f.name, f.formula.replace("|", r"\|"), *f[2:]) for f in FEATURES]
    return template.format(
        knobs="\n    ".join(knobs),
        features="\n    ".join(features),
        sets="; ".join(f"`{name}` ({', '.join(members)})" for name, members in KNOB_SETS.items()),
        half_lives=", ".join(f"{value:g} ({name})" for name, value in HALF_LIVES.items()),
        version=OBSERVATION_VERSION,
    )


TrainingLoopEnv.__doc__ = _page(TrainingLoopEnv.__doc__ or "")


class TrainingLoopVectorEnv(gym.vector.VectorEnv[FloatArray, npt.NDArray[Any], npt.NDArray[Any]]):
    """Many training loops at once, trained in one batch per task shape; see ``TrainingLoopEnv`` for the rest.

    The environments are divided evenly over the shapes among the tasks: environment i keeps its shape for good, and
    draws from the tasks of that shape.

    Args:
        num_envs: at least one per task shape.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default) or ``SAME_STEP`` (what Stable-Baselines3 wants).
        max_episode_steps: truncate after so many decisions, or None.

    The other arguments are those of ``TrainingLoopEnv``. ``info`` holds arrays ``[num_envs]`` for ``task``,
    ``outcome``, ``cost``, ``budget``, ``loss``, ``metric`` and ``verdict``.
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
        plan_spread: float = 0.0,
        settings: EpisodeSettings | None = None,
        ledgers: Path | str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise LoopwrightError("autoreset_mode must be NEXT_STEP or SAME_STEP, got DISABLED")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise LoopwrightError(f"max_episode_steps must be 1 or more, got {max_episode_steps}")
        shapes: dict[ShapeKey, list[str | Task]] = {}
        for task in choose_tasks(suite, tasks):
            shapes.setdefault(shape_of(task), []).append(task)
        if num_envs < len(shapes):
            raise LoopwrightError(
                f"num_envs must be at least {len(shapes)}, one per task shape; got {num_envs}. For "
                f"fewer, give tasks of fewer shapes, or suite='demo'"
            )
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.knobs = KnobSet(knobs, action)
        self.plan, self.plan_spread = plan or LoopPlan(), check_spread(plan_spread)
        self.single_observation_space = observation_space()
        self.single_action_space = self.knobs.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.render_mode = None

        settings = settings or EpisodeSettings()
        self._groups: list[tuple[slice, EpisodeBatch, list[str | Task]]] = []
        share, rest = divmod(num_envs, len(shapes))
        start = 0
        for number, members in enumerate(shapes.values()):
            stop = start + share + (number < rest)
            batch = _make_batch(drawn(members[0]), stop - start, settings, self.knobs, ledgers)
            self._groups.append((slice(start, stop), batch, members))
            start = stop
        self._generators: list[np.random.Generator] = []
        self._finished = np.zeros(num_envs, dtype=bool)
        self._decisions = np.zeros(num_envs, dtype=int)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start every episode afresh. An int seeds environment i with seed + i, as Gymnasium's own vectors do."""
        if options:
            raise LoopwrightError(f"unknown reset options {list(options)}; a vector environment takes none")
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is None:
            seeds = [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise LoopwrightError(f"{len(seeds)} seeds for {self.num_envs} environments")
        super().reset(seed=seeds[0])
        kept: Sequence[np.random.Generator | None] = self._generators or [None] * self.num_envs
        self._generators = [
            old if one is None and old is not None else seeding.np_random(one)[0]
            for one, old in zip(seeds, kept, strict=True)
        ]
        self._finished[:] = False
        self._begin(np.ones(self.num_envs, dtype=bool))
        return self._observations(), self._info({})

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[FloatArray, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        if not self._generators:
            raise LoopwrightError("step() before reset()")
        actions = self.knobs.check(actions, self.num_envs)
        decisions = [
            batch.decide(self.knobs.apply(actions[part], batch.plans, batch.step_ratio), actions[part])
            if batch.live.any()  # else all of them have ended, and wait for their next episode
            else no_decision(len(batch.tasks))
            for part, batch, _ in self._groups
        ]
        joined = {
            name: np.concatenate([getattr(d, name).numpy() for d in decisions])
            for name in ("reward", "outcome", "verdict", "loss", "metric")
        }
        rewards = joined["reward"].astype(np.float64)
        self._decisions += 1
        terminated = joined["outcome"] != RUNNING
        truncated = np.zeros_like(terminated)
        if self.max_episode_steps is not None:
            truncated = (self._decisions >= self.max_episode_steps) & ~terminated
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            for part, batch, _ in self._groups:
                batch.end(np.flatnonzero(truncated[part]).tolist())
            begun = self._finished.copy()  # the action of a finished episode only starts the next one
            rewards[begun], terminated[begun], truncated[begun] = 0.0, False, False
            if begun.any():
                self._begin(begun)
            self._finished = terminated | truncated
            return self._observations(), rewards, terminated, truncated, self._info(joined, begun)
        done = terminated | truncated
        info: dict[str, Any] = {}
        if done.any():
            final = self._observations()
            info["final_obs"] = np.empty(self.num_envs, dtype=object)
            for i in np.flatnonzero(done):
                info["final_obs"][i] = final[i]
            final_info = self._info(joined)
            info["final_info"] = {key: value for key, value in final_info.items() if not key.startswith("_")}
            info["final_info"] |= {f"_{key}": done for key in list(info["final_info"])}
            info["_final_obs"] = info["_final_info"] = done
            self._begin(done)
        return self._observations(), rewards, terminated, truncated, self._info(joined, done) | info

    def close_extras(self, **kwargs: Any) -> None:
        self._groups = []

    def _begin(self, mask: npt.NDArray[np.bool_]) -> None:
        self._decisions[mask] = 0
        for part, batch, tasks in self._groups:
            lanes = np.flatnonzero(mask[part]).tolist()
            if not lanes:
                continue
            generators = [self._generators[part.start + lane] for lane in lanes]
            chosen = [(drawn(tasks[int(g.integers(len(tasks)))]), int(g.integers(2**31))) for g in generators]
            starts = [varied(self.plan, self.plan_spread, g) for g in generators]
            batch.begin(lanes, [t for t, _ in chosen], [s for _, s in chosen], starts)

    def _observations(self) -> FloatArray:
        return np.concatenate([batch.observation.numpy() for _, batch, _ in self._groups])

    def _info(self, joined: dict[str, npt.NDArray[Any]], begun: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Arrays over all environments; those of ``begun`` describe a fresh episode, without loss or outcome."""
        fresh = np.zeros(self.num_envs, bool) if begun is None else begun
        names = [task.name for _, batch, _ in self._groups for task in batch.tasks if task is not None]
        info: dict[str, Any] = {
            "task": np.array(names, dtype=object),
            "cost": np.concatenate([batch.cost.numpy() for _, batch, _ in self._groups]),
            "budget": np.concatenate([batch.budget.numpy() for _, batch, _ in self._groups]),
        }
        if joined:
            outcome = np.where(fresh, RUNNING, joined["outcome"])
            info["outcome"] = np.array(OUTCOMES, dtype=object)[outcome]
            info["verdict"] = np.array(VERDICTS, dtype=object)[np.where(fresh, FINE, joined["verdict"])]
            info["loss"] = np.where(fresh, np.nan, joined["loss"])
            info["metric"] = np.where(fresh, np.nan, joined["metric"])
        return info | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in list(info)}
