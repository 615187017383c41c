"""How the learning rate that AdamW wants falls with the size of a network.

The best static configurations of the tasks trained on say so: from ten parameters to ten thousand their learning rate
falls with a power of the size, as it does on far larger networks with their width (Yang et al. 2022). Policies go by
what was right on networks that small, so that of a larger one is shown to them as on the largest of these.
"""

EXPONENT = -0.36  # of the number of parameters
USUAL_RATE, USUAL_SIZE = 0.019, 2_000  # of AdamW, and the parameters at which it is
TRAINED_ON = 10_000  # parameters: no network that policies are trained on has more, but a few


def find_rate_scale(parameters: int) -> float:
    """What a learning rate that a policy chose is multiplied by: 1 up to ``TRAINED_ON``, and less beyond."""
    return float(max(1.0, parameters / TRAINED_ON) ** EXPONENT)


def find_usual_rate(parameters: int) -> float:
    """The learning rate of AdamW that lies on that line."""
    return float(USUAL_RATE * (parameters / USUAL_SIZE) ** EXPONENT)
