"""Bundles: a policy as one safetensors file, weights and a JSON card. Loading one never executes code.

The card says how the observation was laid out, which knobs the actions move and from which plan, what network the
weights belong to, and how the policy was trained. It also carries the SHA-256 of the weights and of itself, so that a
file that was cut short or altered is refused. Policies that the package brings along are loaded by their names.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from loopwright.agents.controllers.policy import POLICY_FORMAT, Policy, build_network, fingerprint_policy
from loopwright.envs.loop.errors import BundleError, LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES, OBSERVATION_VERSION
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.storage import write_whole

CARD_KEYS = {"format", "observation_version", "observation_names", "knobs", "action", "squashed", "activation",
             "widths", "start", "training", "sha256"}  # fmt: skip
SHIPPED = Path(__file__).with_name("shipped")


def save_policy(policy: Policy, path: Path | str) -> None:
    """Write the policy's bundle to ``path``, a ``.safetensors`` file. Raises ``LoopwrightError`` where that fails."""
    card = policy.describe() | {"sha256": policy.fingerprint}
    write_whole(Path(path), save(policy.weights, metadata={"card": json.dumps(card)}))


def list_policies() -> list[str]:
    """The names of the policies that the package brings along."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def load_policy(path: Path | str) -> Policy:
    """Read a bundle: a ``.safetensors`` file, or the name of one that the package brings along (``list_policies``).

    Raises ``BundleError`` if it is missing, cut short, altered, or made for another observation.
    """
    if str(path) in list_policies():
        path = SHIPPED / f"{path}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError:
        raise BundleError(
            f"no bundle at {path}; the policies that come with the package are {', '.join(list_policies())}"
        ) from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as problem:
        raise BundleError(f"{path} is not a readable policy bundle: {problem}") from None
    if not isinstance(card, dict) or card.get("format") != POLICY_FORMAT or set(card) != CARD_KEYS:
        raise BundleError(f"{path}: card of format {card.get('format') if isinstance(card, dict) else card!r} with "
                          f"unexpected entries; this version reads {POLICY_FORMAT}")  # fmt: skip
    if card["sha256"] != fingerprint_policy(card, weights):
        raise BundleError(f"{path} was altered: its SHA-256 does not match the one on its card")
    if card["observation_version"] != OBSERVATION_VERSION or card["observation_names"] != list(OBSERVATION_NAMES):
        raise BundleError(
            f"{path} was made for observation version {card['observation_version']} with "
            f"{len(card['observation_names'])} features; this package has version {OBSERVATION_VERSION} with "
            f"{len(OBSERVATION_NAMES)}"
        )
    try:
        network = build_network(card["widths"], card["activation"])
        network.load_state_dict(weights)
        start = LoopPlan.from_json(card["start"])
        knobs = KnobSet(card["knobs"], card["action"])
    except (RuntimeError, TypeError, KeyError, LoopwrightError) as problem:
        raise BundleError(f"{path}: the card and the weights do not fit together: {problem}") from None
    return Policy(network, knobs, start, card["squashed"], card["training"])
