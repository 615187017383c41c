"""TrainingLoopEnv: one inner training run as a Gymnasium environment. ``vector`` runs many at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from loopwright.envs.arguments import PriceArgument, choose_plan, choose_settings, choose_spread, choose_tasks
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import Decision
from loopwright.envs.episode.recorder import Recorder
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.averages import Mask
from loopwright.envs.loop.checks import check_kind
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.ledger import Author
from loopwright.envs.loop.plan import LoopPlan, unstack_plans
from loopwright.envs.page import write_page
from loopwright.envs.picture import RunPicture
from loopwright.envs.render import RENDER_MODES, Frame, check_render_mode, say_run
from loopwright.envs.sampling import Spread, TaskSampler, check_task
from loopwright.envs.spaces import make_action_space, make_observation_space
from loopwright.envs.torch_modes import in_own_modes
from loopwright.inner_tasks.task import Task

FloatArray = npt.NDArray[np.float32]
TEXTS = ("task", "outcome", "verdict")  # entries of an info that are no numbers
SHAPES_KEPT = 16  # task shapes whose lanes are kept from one episode to another


class TrainingLoopEnv(gym.Env[FloatArray, npt.NDArray[Any]]):
    __doc__ = write_page()

    metadata = {"render_modes": RENDER_MODES, "render_fps": 4}  # noqa: RUF012  (Gymnasium's convention)

    @in_own_modes()
    def __init__(
        self,
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
        render_mode: str | None = None,
        texts: bool = True,
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.settings = choose_settings(settings, prices)
        self.sampler = TaskSampler(
            suite, choose_tasks(tasks), choose_plan(plan), spread=choose_spread(spread), settings=self.settings,
            withheld=withheld, open_runs=open_runs, plain_runs=plain_runs,
        )  # fmt: skip
        self.knobs = KnobSet(knobs, action)
        check_kind("texts", texts, bool, "True or False")
        self.ledgers, self.texts = ledgers, texts
        self.observation_space = make_observation_space()  # type: ignore[assignment]
        self.action_space = make_action_space(self.knobs)
        self._batches: dict[object, EpisodeBatch] = {}
        self._episode: EpisodeBatch | None = None
        self._closed = False
        self._frames: list[Frame] = []
        self._picture: RunPicture | None = None
        self._held = self.knobs.find_held(())

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_picture": None}  # drawn anew

    @property
    def plan(self) -> LoopPlan:
        """What episodes start from."""
        return self.sampler.plan

    @in_own_modes()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        if self._closed:
            raise LoopwrightError("reset() after close(); make the environment anew")
        check_kind("reset options", options, (Mapping, type(None)), "a mapping, such as {'task': name}")
        chosen = dict(options or {})
        task = chosen.pop("task", None)
        if chosen:
            raise LoopwrightError(f"unknown reset option {next(iter(chosen))!r}; known: task")
        if task is not None:
            check_task(task)
        start = self.sampler.draw(self.np_random, chosen=task)
        key = start.task.shape_key
        episode = self._batches.pop(key, None) or make_batch(start.task, 1, self.settings, self.knobs, self.ledgers)
        self._batches[key] = self._episode = episode  # the last of them
        if len(self._batches) > SHAPES_KEPT:
            del self._batches[next(iter(self._batches))]
        self._held = self.knobs.find_held(start.held)
        episode.begin([0], [start])
        self._frames = []
        return self._observe(episode), self._inform(self._describe(episode, Decision.none(1)), episode)

    @in_own_modes()
    def step(self, action: npt.NDArray[Any]) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        episode = self._episode
        if self._closed or episode is None:
            raise LoopwrightError(f"step() {'after close()' if self._closed else 'before reset()'}")
        if not episode.live.any():
            raise LoopwrightError("step() after the episode has ended; call reset()")
        actions = self.knobs.hold(self.knobs.check([action], 1), self._held)
        decision = episode.decide(self.knobs.apply(actions, episode.plans, episode.step_ratio), actions)
        state = self._describe(episode, decision)
        if self.render_mode:
            self._frames.append(Frame(*(state[name] for name in Frame._fields)))
        reward, done = float(decision.reward[0]), bool(decision.done[0])
        return self._observe(episode), reward, done, False, self._inform(state, episode)

    def action_masks(self) -> Mask:
        """Which choices would change anything (``KnobSet.find_open``), flat, as sb3-contrib's MaskablePPO asks for it.

        Raises ``LoopwrightError`` for box actions, and before ``reset``.
        """
        if self._episode is None:
            raise LoopwrightError("action_masks() before reset()")
        masks: Mask = find_masks(self.knobs, self._episode, self._held[None])[0]
        return masks

    def render(self) -> npt.NDArray[np.uint8] | str | None:
        """The run so far: an image ``[600, 800, 3]`` of loss and plan over the cost, or a line for each decision."""
        if self.render_mode is None or self._episode is None:
            return None
        task, budget = self._episode.tasks[0], float(self._episode.budget.total[0])
        assert task is not None
        if self.render_mode == "ansi":
            return say_run(task.name, self._frames, budget)
        self._picture = self._picture or RunPicture(self.knobs)
        return self._picture.draw(task, self._frames, budget)

    def close(self) -> None:
        self._closed, self._episode, self._batches = True, None, {}

    @staticmethod
    def _observe(episode: EpisodeBatch) -> FloatArray:
        observation: FloatArray = episode.observation[0].numpy().copy()
        return observation

    @staticmethod
    def _describe(episode: EpisodeBatch, decision: Decision) -> dict[str, Any]:
        """Where the run stands after a decision, the plan included; where nothing was decided, the loss is NaN."""
        state = {name: values[0] for name, values in episode.describe(decision).items()}
        return state | {"plan": unstack_plans(episode.plans)[0].as_dict()}

    def _inform(self, state: dict[str, Any], episode: EpisodeBatch) -> dict[str, Any]:
        """The info that tells of a ``state``."""
        if self.texts:
            return state
        numbers = {name: np.float64(value) for name, value in state.items() if name not in (*TEXTS, "plan")}
        return numbers | {"plan": episode.plans[:, 0].double().numpy()}


def find_masks(knobs: KnobSet, batch: EpisodeBatch, held: Mask) -> Mask:
    """The open choices in every lane of a batch, ``[lanes, choices]``. Raises ``LoopwrightError`` for box actions."""
    if knobs.action == "box":
        raise LoopwrightError("action_masks() is for discrete and flat actions; these are box actions")
    return knobs.find_open(batch.plans, held)


def make_batch(
    task: Task, lanes: int, settings: EpisodeSettings, knobs: KnobSet, ledgers: Path | str | None
) -> EpisodeBatch:
    """The episodes behind an environment of so many lanes."""
    # A flat action is on record as the one of all knobs that it stands for.
    author = Author("through the environment", knobs=knobs.name, action="box" if knobs.action == "box" else "discrete")
    check_kind("ledgers", ledgers, (str, Path, type(None)), "a folder, or None for no audit logs")
    recorder = Recorder(Path(ledgers), author) if ledgers else None
    return EpisodeBatch(task, lanes, settings, rolls_back=knobs.rolls_back, recorder=recorder)
