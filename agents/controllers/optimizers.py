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
    parameters: Parameters,
    updates: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    horizon: float,
    second_momentum: float = 0.999,
) -> LibraryUpdate:
    """Dozat 2016, with decoupled decay; the cosine ends after the share ``horizon`` of all updates."""
    betas = (momentum, second_momentum)
    optimizer = NAdam(parameters, lr, betas=betas, weight_decay=weight_decay, decoupled_weight_decay=True)
    return LibraryUpdate((optimizer,), (make_cosine(optimizer, max(1, round(horizon * updates))),))


def make_schedule_free(
    parameters: Parameters,
    updates: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    warm_up: float,
    second_momentum: float = 0.999,
) -> LibraryUpdate:
    """Defazio et al. 2024. It averages on its own account."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.ScheduleFreeAdamW(
        parameters,
        lr,
        betas=(momentum, second_momentum),
        weight_decay=weight_decay,
        warmup_steps=round(warm_up * updates),
    )
    optimizer.train()
    return LibraryUpdate((optimizer,))


def make_prodigy(
    parameters: Parameters,
    updates: int,
    scale: float,
    momentum: float,
    weight_decay: float,
    first: float,
    second_momentum: float = 0.999,
) -> LibraryUpdate:
    """Mishchenko & Defazio 2024; ``scale`` is its d_coef, ``first`` its d0."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.Prodigy(
        parameters, betas=(momentum, second_momentum), d0=first, d_coef=scale, weight_decay=weight_decay,
        bias_correction=True, safeguard_warmup=True,
    )  # fmt: skip
    return LibraryUpdate((optimizer,))


def make_d_adaptation(
    parameters: Parameters,
    updates: int,
    scale: float,
    momentum: float,
    weight_decay: float,
    first: float,
    second_momentum: float = 0.999,
) -> LibraryUpdate:
    """DAdaptAdam, Defazio & Mishchenko 2023; ``scale`` is its learning rate, ``first`` its d0."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.DAdaptAdam(
        parameters, scale, betas=(momentum, second_momentum), d0=first, weight_decay=weight_decay, weight_decouple=True
    )
    return LibraryUpdate((optimizer,))


def make_ali_g(parameters: Parameters, updates: int, max_lr: float, momentum: float) -> LibraryUpdate:
    """Berrada et al. 2020."""
    library = import_extra("pytorch_optimizer", "competitors")
    return LibraryUpdate((library.AliG(parameters, max_lr=max_lr, momentum=momentum),))


def make_muon(
    parameters: Parameters,
    updates: int,
    lr: float,
    adamw_lr: float,
    momentum: float,
    weight_decay: float,
    second_momentum: float = 0.999,
) -> LibraryUpdate:
    """Jordan et al. 2024 for the matrices, AdamW for the rest."""
    matrices, others = divide_by_kind(parameters)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr, weight_decay=weight_decay, momentum=momentum))
    if others:
        betas = (0.9, second_momentum)
        optimizers.append(AdamW(others, adamw_lr, betas=betas, weight_decay=weight_decay, fused=True))
    return LibraryUpdate(tuple(optimizers))


def divide_by_kind(parameters: Parameters) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The matrices, and all else."""
    return [p for p in parameters if p.dim() == 2], [p for p in parameters if p.dim() != 2]


def make_normuon(
    parameters: Parameters,
    updates: int,
    lr: float,
    adamw_lr: float,
    momentum: float,
    weight_decay: float,
    second_momentum: float,
) -> LibraryUpdate:
    """Li et al. 2025: Muon with rows brought to equal size, AdamW for what is not a matrix."""
    library = import_extra("pytorch_optimizer", "competitors")
    matrices, others = divide_by_kind(parameters)
    groups: list[dict[str, Any]] = []
    if matrices:
        groups.append({"params": matrices, "lr": lr, "weight_decay": weight_decay, "use_muon": True})
    if others:
        betas = (0.9, second_momentum)
        groups.append(
            {"params": others, "lr": adamw_lr, "betas": betas, "weight_decay": weight_decay, "use_muon": False}
        )
    optimizer = library.NorMuon(groups, momentum=momentum, beta2=second_momentum, update_scale="match_rms")
    return LibraryUpdate((optimizer,))


def make_pilot(
    parameters: Parameters, updates: int, lr: float, momentum: float, weight_decay: float, second_momentum: float
) -> LibraryUpdate:
    """PILOT, 2026: Adam whose averages and steps follow a policy that it learns as it goes."""
    library = import_extra("pilot", "competitors")
    return LibraryUpdate((library.PILOT(parameters, lr, betas=(momentum, second_momentum), weight_decay=weight_decay),))


def make_soap(
    parameters: Parameters,
    updates: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    every: float,
    second_momentum: float = 0.99,
) -> LibraryUpdate:
    """Vyas et al. 2024; the basis is renewed ``every`` so many updates."""
    library = import_extra("pytorch_optimizer", "competitors")
    optimizer = library.SOAP(
        parameters,
        lr,
        betas=(momentum, second_momentum),
        weight_decay=weight_decay,
        precondition_frequency=int(every),
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
    "normuon": make_normuon,
    "soap": make_soap,
    "pilot": make_pilot,
}


BY_MATRIX = ("muon", "normuon", "soap")  # the others do not care which parameters belong together


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
