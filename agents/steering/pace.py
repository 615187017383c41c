"""How far apart decisions lie. Late in a run less changes from one to the next, and looking is to cost less."""

STRETCH = 32  # decisions


def find_spacing(first: int, decisions: int) -> int:
    """Iterations until the next decision after so many: ``first``, and twice as many after every ``STRETCH``."""
    spacing: int = first * 2 ** (decisions // STRETCH)
    return spacing


def count_decisions(first: int, iterations: int) -> int:
    """How many decisions there are in so many iterations."""
    decisions = 0
    while (iterations := iterations - find_spacing(first, decisions)) >= 0:
        decisions += 1
    return decisions
