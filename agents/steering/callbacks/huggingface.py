"""A callback for the ``Trainer`` of Hugging Face transformers (extra ``huggingface``)."""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.steering.callbacks.shared import LossMean, describe_plan
from loopwright.agents.steering.steering import Steering
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import write_whole

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as missing:
    raise LoopwrightError("this needs transformers; pip install 'loopwright[huggingface]'") from missing

STEERING_FILE = "steering.pt"  # beside a checkpoint's other files


class HuggingFaceSteering(TrainerCallback):
    """Steers a ``Trainer``: ``trainer.add_callback(HuggingFaceSteering(trainer))`` before ``trainer.train()``.

    The plan goes to all that the trainer reports to, as ``steering/learning_rate`` and so on; losses on validation data
    come from its evaluations. Checkpoints hold the state of steering, and a resumed training goes on from it. The
    threshold of ``max_grad_norm`` becomes the plan's, and the trainer leaves clipping to the plan.

    Args:
        trainer: whose optimizer is steered, with ``lr_scheduler_type="constant"``: two hands on one wheel do not go.
        policy, options: as of ``Steering``; the number of steps is taken from the trainer.

    Raises:
        LoopwrightError: when training begins, for another schedule of the learning rate.
    """

    def __init__(self, trainer: Trainer, policy: Policy | Path | str | None = None, **options: Any) -> None:
        self.trainer, self.policy, self.options = trainer, policy, options
        self.steering: Steering | None = None
        self._loss = LossMean()
        self._compute = trainer.compute_loss
        self._reported = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        if schedule != "constant":
            raise LoopwrightError(
                f'a steered Trainer needs lr_scheduler_type="constant", or two would set its rate; it has {schedule!r}'
            )
        optimizer, self._clip = find_inner(kwargs["optimizer"]), float(args.max_grad_norm or 0.0)
        options = {"clip": self._clip or math.inf, **self.options}
        self.steering = Steering(optimizer, self.policy, state.max_steps, **options)
        if not self.steering.advise:
            args.max_grad_norm = 0.0
        self._reported = 0
        saved = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STEERING_FILE
        if state.global_step and saved.is_file():
            self.steering.load_state_dict(torch.load(saved, weights_only=True))
        elif state.global_step:
            warnings.warn(f"steering begins at step {state.global_step}: the checkpoint has no {saved}", stacklevel=2)
        self.trainer.compute_loss = self._compute_loss  # type: ignore[method-assign]

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = self._compute(*args, **kwargs)
        model = args[0] if args else kwargs["model"]
        if model.training:
            self._loss.add(found[0] if isinstance(found, tuple) else found)
        return found

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.steering is not None:  # the schedule has its step next, and would set its own rate
            keep_rate(kwargs.get("lr_scheduler"), self.steering)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.steering is None:
            return
        self.steering.step(self._loss.take())
        if self.steering.decisions > self._reported:
            self._reported = self.steering.decisions
            self.trainer.log(describe_plan(self.steering))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs.get("metrics", {}).get("eval_loss", math.nan)
        if self.steering is not None and math.isfinite(loss):
            self.steering.validate(loss)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.steering is not None and folder.is_dir() and state.is_world_process_zero:
            content = io.BytesIO()
            torch.save(self.steering.state_dict(), content)
            write_whole(folder / STEERING_FILE, content.getvalue())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.steering is not None:
            self.steering.detach()
            args.max_grad_norm = self._clip
            self.trainer.compute_loss = self._compute  # type: ignore[method-assign]


def find_inner(optimizer: Any) -> Optimizer:
    """The optimizer of torch that accelerate has wrapped."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    found: Optimizer = optimizer
    return found


def keep_rate(scheduler: Any, steering: Steering) -> None:
    """A constant schedule sets the rate that it began with at every step: let that be the plan's."""
    groups = steering.groups.optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    if hasattr(scheduler, "base_lrs") and not steering.advise:
        scheduler.base_lrs = rates
