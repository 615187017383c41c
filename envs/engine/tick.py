"""The first half of a tick of many lanes: choose a microbatch, forward, backward. ``update`` is the second half.

Everything between two decisions happens in these two, functions of tensors that are changed in place, so that inductor
can fuse them. Every lane does the same arithmetic whatever its plan: a frozen block is masked, samples that are not
kept weigh nothing, and what a plan leaves out is not charged. ``reference.ReferenceLoop`` is the same loop written
plainly, where it is left out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call, grad_and_value, vmap

from loopwright.envs.engine.lane_state import LaneState, Layout
from loopwright.envs.engine.randomness import draw_candidates
from loopwright.envs.engine.scope import SHUFFLED, Scope
from loopwright.envs.loop.plan import ROW
from loopwright.inner_tasks.losses import LossName, compute_losses, compute_metric
from loopwright.inner_tasks.models import ModelSpec


def count_kept(keep: torch.Tensor, microbatch: int) -> torch.Tensor:
    """How many samples of a microbatch are back-propagated, ``[lanes]``."""
    return (keep * microbatch).round().clamp(1, microbatch)


def make_forward(spec: ModelSpec) -> tuple[Callable[..., torch.Tensor], Layout]:
    """``forward(parameters, inputs [N, ...]) -> outputs [N, ...]`` for one lane, and the parameters' layout."""
    model = spec.build()
    layout = Layout(model)

    def forward(parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(layout.names, parameters, strict=True))
        outputs: torch.Tensor = functional_call(model, named, (inputs,))
        return outputs

    return forward, layout


def make_measure(spec: ModelSpec, loss: LossName) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``measure(weights, inputs, labels) -> (mean loss [lanes], metric [lanes])`` of flat ``weights``."""
    forward, layout = make_forward(spec)

    def measure_one(
        parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = forward(parameters, inputs)
        return compute_losses(loss, outputs, labels).mean(), compute_metric(loss, outputs, labels)

    measure_all = vmap(measure_one)

    def measure(weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, value = measure_all(layout.split(weights), inputs, labels)
        return mean, value

    return measure


def make_read(
    spec: ModelSpec, loss: LossName, microbatch: int, scope: Scope
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``read(plans, inputs, labels, state)``: chooses a microbatch and takes its gradient.

    ``plans`` is ``[len(PLAN_FIELDS), lanes]``; ``inputs`` ``[lanes, N, *input_shape]`` and ``labels``
    ``[lanes, N, ...]`` are the training splits. Returns the loss of each sample ``[lanes, microbatch]`` and the
    gradient of the kept ones ``[lanes, parameters]``; of the state it moves on the microbatch and the counters.
    """
    forward, layout = make_forward(spec)
    whole = scope is Scope.WHOLE
    one = _make_kept_loss(forward, loss, microbatch) if whole else _make_mean_loss(forward, loss)
    gradient_of = vmap(grad_and_value(one, has_aux=True))

    def read_microbatch(
        plans: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor, state: LaneState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lanes, population = labels.shape[:2]
        key, ticks, cursor, uses, updates = state.counters.unbind(0)
        # The samples of the last tick again, or new ones.
        renew = uses >= plans[ROW["echo"]]
        cursor = cursor + renew
        candidates = draw_candidates(key, cursor, microbatch, population)
        preferred = _prefer(candidates, plans[ROW["order"]], state.last_loss) if whole else candidates[0]
        sample = torch.where(renew[:, None], preferred, state.microbatch)
        row = sample + torch.arange(lanes, device=sample.device)[:, None] * population
        kept = [count_kept(plans[ROW["keep"]], microbatch)] if whole else []
        gradient, (_, losses) = gradient_of(
            layout.split(state.weights), inputs.flatten(0, 1)[row], labels.flatten(0, 1)[row], *kept
        )
        state.microbatch.copy_(sample)
        state.counters.copy_(torch.stack([key, ticks + 1, cursor, torch.where(renew, 0, uses) + 1, updates]))
        return losses, layout.join(gradient)

    return read_microbatch


def _make_mean_loss(forward: Callable[..., torch.Tensor], loss: LossName) -> Callable[..., Any]:
    """For one lane: the mean loss, and the losses of all."""

    def mean_loss(
        parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = compute_losses(loss, forward(parameters, inputs), labels)
        return (losses * (1 / len(losses))).sum(), losses

    return mean_loss


def _make_kept_loss(forward: Callable[..., torch.Tensor], loss: LossName, microbatch: int) -> Callable[..., Any]:
    """For one lane: the mean loss of the ``kept`` samples of largest loss, and the losses of all."""
    earlier = torch.ones(microbatch, microbatch).tril(-1) > 0  # settles ties between equal losses

    def kept_loss(
        parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor, labels: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = compute_losses(loss, forward(parameters, inputs), labels)
        seen = losses.detach()
        larger = (seen[None, :] > seen[:, None]) | ((seen[None, :] == seen[:, None]) & earlier.to(seen.device))
        chosen = (larger.sum(1) < kept) / kept
        return (losses * chosen).sum(), losses

    return kept_loss


def _prefer(candidates: list[torch.Tensor], order: torch.Tensor, last_loss: torch.Tensor) -> torch.Tensor:
    """Of the candidates for each sample, each ``[lanes, microbatch]``, the one that the data ``order`` prefers."""
    direction = (order - SHUFFLED)[:, None]
    best, best_score = None, None
    for candidate in candidates:
        seen = last_loss.gather(1, candidate)
        score = torch.where(seen == torch.inf, torch.inf, seen * direction)
        if best is None or best_score is None:
            best, best_score = candidate, score
        else:
            better = (direction != 0) & (score > best_score)
            best, best_score = torch.where(better, candidate, best), torch.where(better, score, best_score)
    assert best is not None
    return best
