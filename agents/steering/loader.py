"""SteeredLoader: a DataLoader whose order of samples and repetition of batches follow the plan."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import CHOICES

if TYPE_CHECKING:
    from loopwright.agents.steering.steering import Steering

_DRAWS = 3  # drawn for each place in a batch, as in the environments
_HARD_FIRST, _SHUFFLED = CHOICES["order"].index("hard-first"), CHOICES["order"].index("shuffled")


class SampleOrder(Sampler[list[int]]):
    """Positions of samples, a list for each batch of an epoch.

    Shuffled, an epoch has every sample once, but for those that do not fill a batch. Otherwise each place is given to
    the sample with the largest or smallest last seen loss of three that are drawn, unseen ones first.
    """

    def __init__(self, samples: int, batch_size: int, steering: "Steering", seed: int) -> None:
        self.batch_size, self._steering = batch_size, steering
        self.losses = torch.full((samples,), torch.inf)  # last seen, of each sample
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: deque[torch.Tensor] = deque()  # batches that were drawn and not yet handed out

    def __len__(self) -> int:
        return len(self.losses) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        self.drawn.clear()
        shuffled = torch.randperm(len(self.losses), generator=self.generator)
        for number in range(len(self)):
            order = round(self._steering.read_in_force("order"))
            if order == _SHUFFLED:
                chosen = shuffled[number * self.batch_size : (number + 1) * self.batch_size]
            else:
                shape = (_DRAWS, self.batch_size)
                candidates = torch.randint(len(self.losses), shape, generator=self.generator)
                losses = self.losses[candidates]
                scores = torch.where(losses.isinf(), losses, losses if order == _HARD_FIRST else -losses)
                chosen = candidates.gather(0, scores.argmax(dim=0, keepdim=True))[0]
            self.drawn.append(chosen)
            yield chosen.tolist()


class SteeredLoader(DataLoader[Any]):
    """Batches of a ``dataset``, as often in a row as the plan's ``echo`` says. Made by ``Steering.loader``.

    Raises ``LoopwrightError`` for a dataset without a length, or with less than a batch in it.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, steering: "Steering", *, by_loss: bool, seed: int, **options: Any
    ) -> None:
        samples = len(dataset) if hasattr(dataset, "__len__") else 0
        if not 1 <= batch_size <= samples:
            raise LoopwrightError(
                f"batch_size must lie between 1 and the {samples} samples there are, got {batch_size}"
            )
        self.by_loss, self._steering, self._order = by_loss, steering, SampleOrder(samples, batch_size, steering, seed)
        self._current: torch.Tensor | None = None
        super().__init__(dataset, batch_sampler=self._order, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self._current = self._order.drawn.popleft()
            yield batch
            for _ in range(round(self._steering.read_in_force("echo")) - 1):
                yield batch

    @property
    def fields(self) -> set[str]:
        """The plan's fields that it follows."""
        return {"echo", "order"} if self.by_loss else {"echo"}

    def take_losses(self, losses: torch.Tensor) -> None:
        """The losses of the samples handed out last, ``[batch_size]``."""
        if not self.by_loss:
            return
        if self._current is None or losses.shape != self._current.shape:
            wanted = "none: no batch was read" if self._current is None else list(self._current.shape)
            raise LoopwrightError(
                f"a loader by_loss wants the loss of each sample: step() takes shape {wanted}, got {list(losses.shape)}"
            )
        self._order.losses[self._current] = losses.detach().float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed job needs to go on with another epoch; the rest of the one it is in is not done again."""
        return {"losses": self._order.losses, "generator": self._order.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.losses = state["losses"].clone()
        self._order.generator.set_state(state["generator"])
