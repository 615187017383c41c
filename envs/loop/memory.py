"""What observers and guards remember, as plain values that ``torch.save`` can store and ``torch.load`` trusts."""

from typing import Any

import numpy as np

PLAIN = (bool, int, float, str, type(None))


def save_memory(thing: Any, leave: tuple[str, ...] = ()) -> Any:
    """Nested dicts, lists and numbers that say all that ``thing`` remembers, but for the attributes to ``leave``."""
    if isinstance(thing, PLAIN):
        return thing
    if isinstance(thing, np.ndarray):
        return {"array": thing.tolist(), "kind": str(thing.dtype)}
    if isinstance(thing, dict):
        return {key: save_memory(value, leave) for key, value in thing.items()}
    return {name: save_memory(value, leave) for name, value in vars(thing).items() if name not in leave}


def load_memory(thing: Any, saved: dict[str, Any]) -> None:
    """Bring ``thing`` back to what ``save_memory`` said. Raises KeyError for what it has no place for."""
    for name, value in saved.items():
        held = vars(thing)[name]
        if isinstance(held, dict):
            for key, own in value.items():
                if isinstance(held.get(key), PLAIN):
                    held[key] = own
                else:
                    load_memory(held[key], own)
        elif isinstance(value, dict) and set(value) == {"array", "kind"}:
            setattr(thing, name, np.array(value["array"], value["kind"]))
        elif isinstance(value, dict):
            load_memory(held, value)
        else:
            setattr(thing, name, value)
