"""What learning rate AdamW usually wants on a network of so many parameters.

The best static configurations of the tasks trained on say so: from ten parameters to ten thousand their learning rate
falls with a power of the size, as it does on far larger networks with their width (Yang et al. 2022). Policies go by
what was right on networks that small, so that of a larger one is shown to them as on the largest of these.
"""

RATE, PARAMETERS, EXPONENT = 0.019, 2_000, -0.36  # what is usual at so many parameters, and the power it falls with
TRAINED_ON = 10_000  # parameters: no network that policies are trained on has more, but a few
SPREAD = 0.48  # decades: standard deviation of what is best about that
RATE_TRUST = 0.5  # in an optimizer's own rate: as if it were as far off as the usual one


def find_usual_rate(parameters: int) -> float:
    """The learning rate that is usual for a network of so many."""
    return float(RATE * (parameters / PARAMETERS) ** EXPONENT)


def find_rate_scale(parameters: int) -> float:
    """What a learning rate that a policy chose is multiplied by: 1 up to ``TRAINED_ON``, and less beyond."""
    return float(max(1.0, parameters / TRAINED_ON) ** EXPONENT)


def blend_rates(own: float, usual: float, trust: float) -> float:
    """A learning rate between two on a logarithmic scale: the first with a ``trust`` of 1, the second with 0."""
    return float(own**trust * usual ** (1 - trust)) if own > 0 else own
