"""What changes while lanes train, as flat tensors, and where each parameter of a model lies in them."""

from dataclasses import dataclass, fields

import torch

from loopwright.envs.loop.telemetry import SUMS
from loopwright.envs.loop.update_rules import view_matrix

COUNTERS = ("key", "ticks", "cursor", "uses", "updates")


@dataclass
class LaneState:
    """All that changes while lanes train. A snapshot is a copy of one row (or column) of each tensor.

    The first five are ``[lanes, parameters]``. ``last_loss`` is ``[lanes, training samples]``, infinite where a sample
    was not seen yet, and ``microbatch [lanes, samples]`` int64 the samples read last. ``scalars`` is
    ``[1 + 2 blocks, lanes]``: microbatches accumulated, and of each block the product of beta1 and that of beta2 over
    the updates it took part in. ``counters`` is ``[len(COUNTERS), lanes]`` int64: key of the random streams, ticks
    done, number of the microbatch read last, how often it was used, updates done. ``sums`` is ``[len(SUMS), lanes]``.
    """

    weights: torch.Tensor
    momentum: torch.Tensor
    second_moment: torch.Tensor
    gradient_sum: torch.Tensor
    average: torch.Tensor
    last_loss: torch.Tensor
    microbatch: torch.Tensor
    scalars: torch.Tensor
    counters: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def empty(
        cls, lanes: int, layout: "Layout", samples: int, microbatch: int, device: torch.device, dtype: torch.dtype
    ) -> "LaneState":
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, device=device, dtype=dtype)

        counters = torch.zeros(len(COUNTERS), lanes, dtype=torch.int64, device=device)
        counters[COUNTERS.index("cursor")] = -1  # the first tick reads microbatch 0 ...
        counters[COUNTERS.index("uses")] = 2**40  # ... however often one is used
        scalars = zeros(1 + 2 * layout.blocks, lanes)
        scalars[1:] = 1.0
        return cls(
            weights=zeros(lanes, layout.parameters),
            momentum=zeros(lanes, layout.parameters),
            second_moment=zeros(lanes, layout.parameters),
            gradient_sum=zeros(lanes, layout.parameters),
            average=zeros(lanes, layout.parameters),
            last_loss=zeros(lanes, samples).fill_(torch.inf),
            microbatch=torch.zeros(lanes, microbatch, dtype=torch.int64, device=device),
            scalars=scalars,
            counters=counters,
            sums=zeros(len(SUMS), lanes),
        )

    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def rows(self) -> list[torch.Tensor]:
        """Views of every tensor with the lane as the first axis, for copying lanes in and out."""
        return [*self.tensors()[:-3], *(tensor.T for tensor in self.tensors()[-3:])]

    def copy_lanes(self, lanes: torch.Tensor, source: "LaneState", source_lanes: torch.Tensor) -> None:
        """Overwrite ``lanes`` (indices) by the ``source_lanes`` of another state."""
        for new, old in zip(self.rows(), source.rows(), strict=True):
            new[lanes] = old[source_lanes]


class Layout:
    """Where each parameter of a model lies in a lane's flat vector, and to which block it belongs."""

    def __init__(self, model: torch.nn.Sequential) -> None:
        named = list(model.named_parameters())
        self.names = [name for name, _ in named]
        self.shapes = [parameter.shape for _, parameter in named]
        self.sizes = [parameter.numel() for _, parameter in named]
        self.parameters = sum(self.sizes)
        self.blocks = len(model)
        owner = [int(name.partition(".")[0]) for name in self.names]
        sizes = torch.tensor(self.sizes)
        self.block_of = torch.repeat_interleave(torch.tensor(owner).float(), sizes)  # [parameters]
        matrices = [view_matrix(shape) for shape in self.shapes]
        of_matrix = torch.tensor([matrix is not None for matrix in matrices])
        self.in_matrix = torch.repeat_interleave(of_matrix, sizes)  # whether it belongs to a matrix, [parameters]
        self.matrices: dict[tuple[int, int], list[int]] = {}  # where those of each shape begin
        for matrix, end, size in zip(matrices, sizes.cumsum(0).tolist(), self.sizes, strict=True):
            if matrix is not None:
                self.matrices.setdefault(matrix, []).append(end - size)

    def split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views ``[lanes, *shape]`` of a flat ``[lanes, parameters]`` tensor, in the order of ``names``."""
        pieces = torch.split(flat, self.sizes, dim=1)
        return tuple(p.view(-1, *s) for p, s in zip(pieces, self.shapes, strict=True))

    def join(self, pieces: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([piece.flatten(1) for piece in pieces], dim=1)

    def expand(self, per_block: torch.Tensor) -> torch.Tensor:
        """``[lanes, blocks]`` to ``[lanes, parameters]``: a chain of selections, which fuses, unlike an index."""
        block_of = self.block_of.to(per_block.device)
        columns = torch.split(per_block, 1, dim=1)
        expanded: torch.Tensor = columns[0].expand(-1, self.parameters)
        for block, column in enumerate(columns[1:], start=1):
            expanded = torch.where(block_of >= block, column, expanded)
        return expanded
