"""Files as nobody should write them: what damage, and what malice, makes of one that is whole."""

import copy
import os
import pickle
import random
from pathlib import Path
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e300, -1e-300, 2**63, 10**40, "", "nan", "inf", "-inf", "x" * 300, "\x1b[31m\n",
    "\0", "é", [], {}, [[]], [None], {"a": 1}, [1] * 50, [0.0, "x"], {"__class__": "os.system"},
)  # fmt: skip
ENDS = (
    b"[" * 3000,
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\n",
    b"\0",
    b"NaN",
    b"1e999",
    b"\xff\xfe",
    b'{"a":1,"a":2}',
    b"9" * 5000,
)


class Canary:
    """What makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def damage(whole: bytes, chance: random.Random, canary: Path) -> bytes:
    """Some bytes changed, cut out, put in or repeated; among what is put in is a pickle that makes the ``canary``."""
    content = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        begin = chance.randint(0, len(content))
        end = min(len(content), begin + chance.choice((1, 1, 8, 100, 10_000)))
        kind = chance.randrange(5)
        if kind == 0 and begin < len(content):
            content[begin] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[begin:end]
        elif kind == 2:
            content[begin:begin] = chance.choice((*ENDS, pickle.dumps(Canary(canary))))
        elif kind == 3:
            content[begin:begin] = content[begin:end]
        else:
            content[begin:end] = bytes(chance.randrange(256) for _ in range(min(end - begin, 8)))
    return bytes(content)


def forge(values: Any, chance: random.Random) -> Any:
    """JSON values of which some were put in place of others, left out or added."""
    found = copy.deepcopy(values)
    for _ in range(chance.randint(1, 2)):
        found = _forge_one(found, chance)
    return found


def _forge_one(values: Any, chance: random.Random) -> Any:
    if not isinstance(values, dict | list) or not values or chance.random() < 0.1:
        return copy.deepcopy(chance.choice(STRANGE))
    places: list[Any] = list(values) if isinstance(values, dict) else list(range(len(values)))
    place, kind = chance.choice(places), chance.randrange(8)
    if kind == 0:
        del values[place]
    elif kind == 1 and isinstance(values, dict):
        values[chance.choice(("more", "format", "name", "", "\x1b"))] = copy.deepcopy(chance.choice(STRANGE))
    elif kind == 1:
        values.insert(place, copy.deepcopy(chance.choice((*STRANGE, values[place]))))
    else:
        values[place] = _forge_one(values[place], chance)
    return values
