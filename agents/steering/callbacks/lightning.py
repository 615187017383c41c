"""A callback for the ``Trainer`` of Lightning (extra ``lightning``)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.steering.callbacks.shared import LossMean, describe_plan
from loopwright.agents.steering.steering import Steering
from loopwright.envs.loop.errors import LoopwrightError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as missing:
    raise LoopwrightError("this needs lightning; pip install 'loopwright[lightning]'") from missing


class LightningSteering(Callback):
    """Steers the one optimizer of a ``LightningModule``: ``Trainer(callbacks=[LightningSteering()])``.

    The plan is logged as ``steering/learning_rate`` and so on; losses on validation data are the metric ``validation``.
    Checkpoints hold the state of steering, and a resumed training goes on from it. The threshold of
    ``gradient_clip_val`` becomes the plan's, and the trainer leaves clipping to the plan.

    Args:
        policy, options: as of ``Steering``; the number of steps is taken from the trainer.
        validation: name of a logged metric that is a loss on validation data.

    Raises:
        LoopwrightError: when training begins, for several optimizers, or a schedule of the learning rate.
    """

    def __init__(
        self, policy: Policy | Path | str | None = None, *, validation: str = "val_loss", **options: Any
    ) -> None:
        self.policy, self.validation, self.options = policy, validation, options
        self.steering: Steering | None = None
        self._state: dict[str, Any] | None = None
        self._loss = LossMean()
        self._made = self._reported = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise LoopwrightError(f"one optimizer can be steered; configure_optimizers gave {len(trainer.optimizers)}")
        if trainer.lr_scheduler_configs:
            raise LoopwrightError("a steered LightningModule has no scheduler, or two would set its learning rate")
        steps = trainer.estimated_stepping_batches
        known = int(steps) if math.isfinite(steps) and steps > 0 else None
        self._clip = trainer.gradient_clip_val
        options = {"clip": float(self._clip or math.inf), **self.options}
        self.steering = Steering(trainer.optimizers[0], self.policy, known, **options)
        if not self.steering.advise:
            trainer.gradient_clip_val = None
        if self._state is not None:
            self.steering.load_state_dict(self._state)
        self._made, self._reported = self.steering.iterations, self.steering.decisions

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.steering is None:
            return
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._loss.add(loss)
        if self.steering.iterations == self._made and self.steering.stopped is None:
            return  # gradients were gathered, and no update made
        self._made = self.steering.iterations
        self.steering.step(self._loss.take())
        if self.steering.decisions > self._reported:
            self._reported = self.steering.decisions
            pl_module.log_dict(describe_plan(self.steering))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.validation)
        if self.steering is not None and value is not None and not trainer.sanity_checking:
            self.steering.validate(float(value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steering is not None:
            self.steering.detach()
            trainer.gradient_clip_val = self._clip

    def state_dict(self) -> dict[str, Any]:
        return {} if self.steering is None else self.steering.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None
