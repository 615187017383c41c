"""Fuses functions of tensors with torch's inductor, for shapes that never change."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch

# Passes over [lanes, parameters] are bound by memory: rather compute an intermediate again than store it.
PARAMETER_PASSES = {"realize_reads_threshold": 16, "realize_opcount_threshold": 60}
# Random indices are chains of hashes that use each value twice: inlined, they take ten times as long to compile.
CHAINS_OF_HASHES = {"realize_opcount_threshold": 8}
_FUSED: dict[tuple[object, ...], Callable[..., Any]] = {}


def has_compiler() -> bool:
    """Whether ``torch.compile`` can build kernels for the CPU here: it needs a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def fuse(
    function: Callable[..., Any],
    example: Sequence[torch.Tensor],
    key: tuple[object, ...],
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """``function`` compiled for the shapes of ``example``; one per key for the whole process.

    Shapes never change, so it is traced once and handed to inductor: dynamo's guards would cost a fifth of the
    throughput, and its cache holds only eight shapes of one function. What inductor made of a graph it keeps on disk,
    for other processes and later ones.
    """
    if key not in _FUSED:
        _FUSED[key] = _compile(function, example, {"size_asserts": False, **(options or {})})
    return _FUSED[key]


def _compile(
    function: Callable[..., Any], example: Sequence[torch.Tensor], options: dict[str, Any]
) -> Callable[..., Any]:
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile as inductor_compile  # seconds to import, and of use only here
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    graph = make_fx(function)(*example)
    # Inductor looks into its cache of graphs only where it is told of an environment of shapes, as by dynamo.
    shapes = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fixed: list[Any] = [shapes.from_tensor(tensor, static_shapes=True) for tensor in example]
    with tracing(TracingContext(shapes)):
        compiled: Callable[..., Any] = inductor_compile(graph, fixed, options=options)
    return compiled
