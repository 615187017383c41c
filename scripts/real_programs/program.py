"""The programs: data, model, loss, and how long each is trained."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn

from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Program:
    """One ordinary program.

    Attributes:
        module, load, build, loss: its module, and there the names of what loads data, builds the model and computes
            the loss of a batch (in ``loss_module`` where that is another's).
        batch_size: samples of an update.
        iterations: that it is trained for at most.
        judged: samples that are kept for judging.
        needs: the extra that brings its data.
    """

    name: str
    module: str
    load: str
    build: str
    loss: str
    batch_size: int
    iterations: int
    judged: int
    needs: str
    loss_module: str = ""

    def _find(self, name: str, module: str = "") -> Callable[..., torch.Tensor]:
        try:
            found = import_module(f"loopwright.scripts.real_programs.{module or self.module}")
        except ModuleNotFoundError as missing:
            raise LoopwrightError(
                f"the program {self.name} needs {missing.name}; pip install 'loopwright[{self.needs}]'"
            ) from missing
        value: Callable[..., torch.Tensor] = getattr(found, name)
        return value

    @functools.cache  # noqa: B019 - a handful of programs, for as long as the process lives
    def load_data(self) -> tuple[Batch, Batch, Batch]:
        """To train on, to watch while training, and to judge by; always the same division."""
        inputs, labels = self._find(self.load)()
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        judged, watched, rest = order.tensor_split((self.judged, 2 * self.judged))
        return (inputs[rest], labels[rest]), (inputs[watched], labels[watched]), (inputs[judged], labels[judged])

    def build_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = self._find(self.build)()
        assert isinstance(model, nn.Module)
        return model

    def compute_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._find(self.loss, self.loss_module)(model, *batch)


def draw_batches(data: Batch, batch_size: int, seed: int) -> Iterator[Batch]:
    """Shuffled epochs without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data[0]), generator=generator)
        for chosen in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
            yield data[0][chosen], data[1][chosen]


PROGRAMS = {
    program.name: program
    for program in (
        Program("conv net, MNIST-5k", "convnet", "load_digits", "build_convnet", "classify", 64, 300, 500, "image"),
        Program("residual MLP, segments", "residual_mlp", "load_segments", "build_residual_mlp", "classify",
                64, 400, 300, "tabular", "convnet"),
        Program("transformer, speeches", "transformer", "load_speeches", "LetterTransformer", "predict_letters",
                8, 240, 64, "text"),
        Program("GRU, names", "names", "load_names", "Speller", "predict_letters", 64, 400, 512, "text", "transformer"),
        Program("1-D conv net, leaves", "series", "load_leaves", "build_series_net", "classify",
                16, 500, 80, "timeseries", "convnet"),
    )
}  # fmt: skip


def get_program(name: str) -> Program:
    """Raises ``UnknownNameError`` for a name that is none's."""
    if name not in PROGRAMS:
        raise UnknownNameError("program", name, list(PROGRAMS))
    return PROGRAMS[name]
