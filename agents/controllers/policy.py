"""Policy: a learned network that maps observations to actions, as a controller. ``bundle`` saves and loads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from loopwright.agents.controllers.carded import compute_digest
from loopwright.agents.controllers.compiled_network import CompiledNetwork, is_possible
from loopwright.agents.controllers.recollection import Memory, Recollection
from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.controller import Described, View
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES, OBSERVATION_VERSION, Needs
from loopwright.envs.loop.plan import LoopPlan

POLICY_FORMAT = "loopwright-policy-1"
LSTM = "lstm"  # the entry of a card that says how wide its layers are, and what their weights' names begin with
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "leaky-relu": nn.LeakyReLU,
}  # fmt: skip


@dataclass(frozen=True)
class Policy(Described):
    """A policy network and what it needs to know: it is a ``Controller``.

    One with an ``lstm`` remembers: it keeps a ``Memory`` of every run, which is empty where the run begins.

    Attributes:
        network: observation ``[lanes, features]``, or what the ``lstm`` makes of it, to logits (discrete), values
            (flat) or the mean action (box).
        knobs: the knobs its actions move.
        start: the plan it was trained to start from.
        squashed: whether tanh is applied to the network's output (SAC, TQC, TD3).
        training: how it was trained; provenance, not used.
        lstm: what comes before the network in a recurrent policy, else None.
    """

    network: nn.Sequential
    knobs: KnobSet
    start: LoopPlan
    squashed: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    name: str = "agent"
    lstm: nn.LSTM | None = None
    _kept: dict[str, Memory] = field(default_factory=dict, init=False, repr=False, compare=False)

    def begin(self, lanes: int) -> Memory | None:
        """What it remembers at the beginning of so many runs; None where it does not."""
        return None if self._recollection is None else self._recollection.begin(lanes)

    def act(self, observation: Floats, memory: Memory | None = None) -> npt.NDArray[np.generic]:
        """The most probable actions for observations ``[lanes, features]``, as the environment's.

        They are ``[lanes, knobs]``, and flat ones ``[lanes]``. ``memory`` is what ``begin`` gave, and is brought on in
        place; without it the runs are at their beginning.
        """
        outputs = self._run(observation, memory)
        if self.knobs.action == "box":
            return outputs
        if self.knobs.action == "flat":
            best: npt.NDArray[np.int64] = outputs.argmax(axis=1)
            return best
        return np.stack([outputs[:, part].argmax(axis=1) for part in self.knobs.parts], axis=1)

    def steps(self, observation: Floats, memory: Memory | None = None) -> Floats:
        """How far to move each knob, ``[lanes, knobs]`` in its encoding; ``memory`` is as in ``act``.

        A discrete policy is a distribution over a knob's ordered steps. Its mean is what the knob is moved by, since
        the most probable step is often "none" where two or three steps share the rest; a knob that takes rungs
        is moved by the most probable one. Of flat actions the best is taken.
        """
        outputs = self._run(observation, memory)
        if self.knobs.action == "box":
            return outputs * self._sizes
        if self.knobs.action == "flat":
            taken: Floats = self._flat_steps[outputs.argmax(axis=1)]
            return taken
        starts = [part.start for part in self.knobs.parts]
        highest = np.maximum.reduceat(outputs, starts, axis=1)
        chances = np.exp(outputs - np.repeat(highest, self.knobs.choices, axis=1))
        steps = np.add.reduceat(chances * self._sizes, starts, axis=1) / np.add.reduceat(chances, starts, axis=1)
        for column, knob in enumerate(self.knobs.knobs):
            if knob.whole:
                part = self.knobs.parts[column]
                steps[:, column] = self._sizes[part][outputs[:, part].argmax(axis=1)]
        return steps

    def steps_of_one(self, observation: Floats, memory: Memory | None = None) -> list[float]:
        """``steps`` of a single run, observed ``[1, features]``, to 1e-4; compiled where there is a C compiler."""
        if self._compiled is None:
            return [float(step) for step in self.steps(observation, memory)[0]]
        return self._compiled(observation[0])

    def predict(
        self,
        observation: npt.NDArray[np.float32],
        state: tuple[npt.NDArray[np.float32], ...] | None = None,
        episode_start: npt.ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.generic], tuple[npt.NDArray[np.float32], ...] | None]:
        """The most probable actions for one observation ``[features]`` or many ``[envs, features]``, and the state.

        As the ``predict`` of Stable-Baselines3 and, where the policy has an LSTM, of sb3-contrib's recurrent ones, with
        which it shares its arguments: ``state`` is what the last call gave, hidden and cell ``[layers, envs, width]``,
        and ``episode_start`` says for which of the ``envs`` it counts no more. Raises ``LoopwrightError`` for another
        shape, or for ``deterministic=False``: a saved policy draws no random numbers.
        """
        if not deterministic:
            raise LoopwrightError("a saved policy is deterministic; deterministic must be True, got False")
        seen, features = np.asarray(observation, dtype=np.float32), self.features
        if seen.ndim not in (1, 2) or seen.shape[-1] != features:
            raise LoopwrightError(f"observations have shape {seen.shape}; want ({features},) or (envs, {features})")
        many = np.atleast_2d(seen)
        memory = self.begin(len(many))
        if memory is not None and state is not None:
            if np.shape(state) != memory.shape:
                raise LoopwrightError(
                    f"state has shape {np.shape(state)}; want {memory.shape}, as the last call gave it"
                )
            memory = np.array(state, np.float32)
            if episode_start is not None:
                memory[:, :, np.broadcast_to(np.asarray(episode_start, bool), len(many))] = 0
        actions = self.act(many, memory)
        return (actions if seen.ndim == 2 else actions[0]), None if memory is None else tuple(memory)

    @property
    def features(self) -> int:
        """How many an observation has."""
        return int(self.network[0].in_features if self.lstm is None else self.lstm.input_size)  # type: ignore[arg-type]

    @property
    def needs(self) -> Needs:
        return Needs.OBSERVATION

    @property
    def sets_rate(self) -> bool:
        return False

    def decide(self, view: View) -> torch.Tensor:
        steps = self.steps(view.observation.numpy(), self._remember(view))
        return self.knobs.move(steps, view.plans, view.step_ratio)

    def _remember(self, view: View) -> Memory | None:
        """What is remembered of the runs in view, empty where one begins."""
        memory = self._kept.get("runs")
        if memory is None or memory.shape[2] != len(view.decisions):
            memory = self.begin(len(view.decisions))
        if memory is not None:
            memory[:, :, view.decisions.numpy() == 0] = 0
            self._kept["runs"] = memory
        return memory

    @property
    def rolls_back(self) -> bool:
        return self.knobs.rolls_back

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the card and the weights, as a bundle carries it."""
        return compute_digest(self.describe(), self.weights)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the parameters by name, those of the network by the number of the layer."""
        found = self.network.state_dict()
        if self.lstm is not None:
            found |= {f"{LSTM}.{name}": value for name, value in self.lstm.state_dict().items()}
        return {name: value.detach().clone() for name, value in found.items()}

    def describe(self) -> dict[str, Any]:
        """The card of its bundle: everything but the weights, as JSON values."""
        linear = list_linear(self.network)
        kinds = [name for layer in self.network for name, kind in ACTIVATIONS.items() if type(layer) is kind]
        remembered = {} if self.lstm is None else {LSTM: [self.lstm.hidden_size] * self.lstm.num_layers}
        return {
            "format": POLICY_FORMAT,
            "observation_version": OBSERVATION_VERSION,
            "observation_names": list(OBSERVATION_NAMES),
            "knobs": self.knobs.name,
            "action": self.knobs.action,
            "squashed": self.squashed,
            "activation": kinds[0] if kinds else "tanh",
            "widths": [linear[0].in_features, *(layer.out_features for layer in linear)],
            "start": self.start.as_json(),
            "training": self.training,
            **remembered,
        }

    @cached_property
    def _sizes(self) -> Floats:
        """The step of each discrete action, knob after knob; of a box action of 1, that of each knob."""
        box = self.knobs.action == "box"
        return np.array([s for k in self.knobs.knobs for s in (k.steps[-1:] if box else k.steps)], np.float32)

    @cached_property
    def _flat_steps(self) -> Floats:
        """How far each flat action moves each knob, ``[flat actions, knobs]``."""
        moves = self.knobs.flat_moves.T
        steps = [np.array(knob.steps, np.float32)[own] for knob, own in zip(self.knobs.knobs, moves, strict=True)]
        return np.stack(steps, axis=1)

    @cached_property
    def _layers(self) -> list[Callable[[Floats], Floats]]:
        """The network, layer by layer, on arrays: for one run torch's own calls take longer than the arithmetic."""
        return [_read_layer(layer) for layer in self.network]

    @cached_property
    def _compiled(self) -> CompiledNetwork | None:
        """The network for one run; None where it is of another kind, or there is no compiler."""
        kinds = {type(layer) for layer in self.network}
        if self.lstm is not None or self.knobs.action != "discrete" or kinds - {nn.Linear, nn.Tanh}:
            return None
        if not is_possible():
            return None
        sizes, whole = [knob.steps for knob in self.knobs.knobs], [knob.whole for knob in self.knobs.knobs]
        return CompiledNetwork(list_linear(self.network), sizes, whole)

    @cached_property
    def _recollection(self) -> Recollection | None:
        return None if self.lstm is None else Recollection(self.lstm)

    def _run(self, observation: Floats, memory: Memory | None) -> Floats:
        """The network's outputs ``[lanes, outputs]``; of a box policy its actions."""
        if self._recollection is not None:
            memory = self._recollection.begin(len(observation)) if memory is None else memory
            observation = self._recollection.advance(observation, memory)
        for layer in self._layers:
            observation = layer(observation)
        if self.knobs.action == "box":
            return np.tanh(observation) if self.squashed else np.minimum(np.maximum(observation, -1), 1)
        return observation


def _read_layer(layer: nn.Module) -> Callable[[Floats], Floats]:
    if isinstance(layer, nn.Linear):
        weight, bias = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
        return lambda values: values @ weight + bias
    if isinstance(layer, nn.Tanh):
        return np.tanh
    return lambda values: layer(torch.from_numpy(values)).detach().numpy()


def list_linear(network: nn.Sequential) -> list[nn.Linear]:
    """The layers that have weights, first layer first."""
    return [layer for layer in network if isinstance(layer, nn.Linear)]


def build_network(widths: list[int], activation: str) -> nn.Sequential:
    """Linear layers of these widths, inputs first, with an activation of ``ACTIVATIONS`` between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def assemble_network(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], activation: str) -> nn.Sequential:
    """The network of ``build_network`` with these weights ``[outputs, inputs]`` and biases, first layer first."""
    network = build_network([weights[0].shape[1], *(len(weight) for weight in weights)], activation)
    values = [value for pair in zip(weights, biases, strict=True) for value in pair]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.copy_(value)
    return network
