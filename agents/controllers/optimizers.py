"""Optimizers of torch.optim and pytorch_optimizer as competitors: runs whose update is not the engine's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import AdamW, Muon, NAdam

from loopwright.agents.controllers.schedules import make_cosine
from loopwright.envs.loop.controller import Described, LibraryUpdate, View
from loopwright.envs.loop.errors import UnknownNameError
from loopwright.envs.loop.extras import import_extra
from loopwright.envs.loop.plan import LoopPlan

Parameters = Sequence[torch.Tensor]


def make_adamw(parameters: Parameters, updates: int, lr: float, momentum: float, weight_decay: float) -> LibraryUpdate:
    return LibraryUpdate((AdamW(parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay),))


def make_nadamw_cosine(
    parameters: Parameters, updates: int, lr: float, momentum: float, weight_decay: float, horizon: float
) -> LibraryUpdate:
    """Dozat 2016, with decoupled decay; the cosine ends after the share ``horizon`` of all updates."""
    betas = (momentum, 0.999)
    optimizer = NAdam(parameters, lr, betas=betas, weight_decay=weight_decay, decoupled_weight_decay=True)
    return LibraryUpdate((optimizer,), (make_cosine(optimizer, max(1, round(horizon * updates))),))


def make_schedule_free(
    parameters: Parameters, updates: int, lr: float, momentum: float, weight_decay: float, warm_up: float
) -> LibraryUpdate:
    """Defazio et al. 2024. It averages on its own account."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.ScheduleFreeAdamW(
        parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay, warmup_steps=round(warm_up * updates)
    )
    optimizer.train()
    return LibraryUpdate((optimizer,))


def make_prodigy(
    parameters: Parameters, updates: int, scale: float, momentum: float, weight_decay: float, first: float
) -> LibraryUpdate:
    """Mishchenko & Defazio 2024; ``scale`` is its d_coef, ``first`` its d0."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.Prodigy(
        parameters, betas=(momentum, 0.999), d0=first, d_coef=scale, weight_decay=weight_decay, bias_correction=True,
        safeguard_warmup=True,
    )  # fmt: skip
    return LibraryUpdate((optimizer,))


def make_d_adaptation(
    parameters: Parameters, updates: int, scale: float, momentum: float, weight_decay: float, first: float
) -> LibraryUpdate:
    """DAdaptAdam, Defazio & Mishchenko 2023; ``scale`` is its learning rate, ``first`` its d0."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.DAdaptAdam(
        parameters, scale, betas=(momentum, 0.999), d0=first, weight_decay=weight_decay, weight_decouple=True
    )
    return LibraryUpdate((optimizer,))


def make_ali_g(parameters: Parameters, updates: int, max_lr: float, momentum: float) -> LibraryUpdate:
    """Berrada et al. 2020."""
    library = import_extra("pytorch_optimizer", "competitors")
    return LibraryUpdate((library.AliG(parameters, max_lr=max_lr, momentum=momentum),))


def make_muon(
    parameters: Parameters, updates: int, lr: float, adamw_lr: float, momentum: float, weight_decay: float
) -> LibraryUpdate:
    """Jordan et al. 2024 for the matrices, AdamW for the rest."""
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr, weight_decay=weight_decay, momentum=momentum))
    if others:
        optimizers.append(AdamW(others, adamw_lr, weight_decay=weight_decay))
    return LibraryUpdate(tuple(optimizers))


def make_soap(
    parameters: Parameters, updates: int, lr: float, momentum: float, weight_decay: float, every: float
) -> LibraryUpdate:
    """Vyas et al. 2024; the basis is renewed ``every`` so many updates."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.SOAP(
        parameters, lr, betas=(momentum, 0.99), weight_decay=weight_decay, precondition_frequency=int(every)
    )
    return LibraryUpdate((optimizer,))


LIBRARY_OPTIMIZERS: dict[str, Callable[..., LibraryUpdate]] = {
    "adamw": make_adamw,
    "nadamw-cosine": make_nadamw_cosine,
    "schedule-free": make_schedule_free,
    "prodigy": make_prodigy,
    "d-adaptation": make_d_adaptation,
    "ali-g": make_ali_g,
    "muon": make_muon,
    "soap": make_soap,
}


BY_MATRIX = ("muon", "soap")  # the others do not care which parameters belong together


@dataclass(frozen=True)
class Optimized(Described):
    """A run left to the optimizer ``kind`` with ``settings``; of the plan ``batch``, ``clip`` and ``average`` count."""

    start: LoopPlan
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = "optimizer"

    def __post_init__(self) -> None:
        if self.kind not in LIBRARY_OPTIMIZERS:
            raise UnknownNameError("optimizer", self.kind, list(LIBRARY_OPTIMIZERS))

    @property
    def flat(self) -> bool:
        """Whether all parameters may be handed over as one vector."""
        return self.kind not in BY_MATRIX

    @property
    def sets_rate(self) -> bool:
        return False

    @property
    def own_optimizer(self) -> "Optimized":
        return self

    def decide(self, view: View) -> torch.Tensor:
        return view.plans

    def make(self, parameters: Parameters, updates: int) -> LibraryUpdate:
        """The update of one run that has so many updates at most."""
        return LIBRARY_OPTIMIZERS[self.kind](parameters, updates, **self.settings)
