"""The same tick in JAX, without telemetry, for comparison: vmap over runs, scan over ticks."""

from collections.abc import Callable
from typing import Any

from loopwright.envs.loop.extras import import_extra
from loopwright.inner_tasks import Task

JAX_TICKS = 16
JAX_RULES = ("sgd", "adamw")


def make_jax_steps(task: Task, lanes: int, microbatch: int) -> dict[str, Callable[[], None]]:
    """For each of ``JAX_RULES`` a function that advances ``lanes`` runs of an MLP's task by ``JAX_TICKS``.

    Every run has its own weights, data and stream of samples, as in ``Lanes``. Raises ``LoopwrightError`` without JAX.
    """
    jax = import_extra("jax", "bench")
    jnp = jax.numpy
    inputs, labels = (jnp.asarray(each.numpy()) for each in (task.train.inputs, task.train.labels))
    inputs, labels = (jnp.repeat(each[None], lanes, axis=0) for each in (inputs, labels))
    network = task.model.build()
    weights = [jnp.repeat(jnp.asarray(p.detach().numpy())[None], lanes, axis=0) for p in network.parameters()]

    def loss_of(weights: Any, x: Any, y: Any) -> Any:
        for weight, bias in zip(weights[0:-2:2], weights[1:-2:2], strict=True):
            x = jax.nn.relu(x @ weight.T + bias)
        logits = x @ weights[-2].T + weights[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

    def move(kind: str, weight: Any, m: Any, v: Any, g: Any, tick: Any) -> tuple[Any, Any, Any]:
        m = 0.9 * m + 0.1 * g
        if kind == "sgd":
            return weight - 1e-2 * m, m, v
        v = 0.999 * v + 0.001 * g * g
        step = m / (1 - 0.9**tick) / (jnp.sqrt(v / (1 - 0.999**tick)) + 1e-8)
        return weight - 1e-3 * (step + 0.01 * weight), m, v

    def make(kind: str) -> Callable[[], None]:
        def tick(carry: Any, _: Any) -> tuple[Any, Any]:
            weights, momenta, squares, key, count, x, y = carry
            key, own = jax.random.split(key)
            index = jax.random.randint(own, (microbatch,), 0, x.shape[0])
            loss, gradient = jax.value_and_grad(loss_of)(weights, x[index], y[index])
            moved = [move(kind, *each, count) for each in zip(weights, momenta, squares, gradient, strict=True)]
            weights, momenta, squares = (list(each) for each in zip(*moved, strict=True))
            return (weights, momenta, squares, key, count + 1, x, y), loss

        def run(weights: Any, momenta: Any, squares: Any, key: Any, count: Any, x: Any, y: Any) -> Any:
            carry, losses = jax.lax.scan(tick, (weights, momenta, squares, key, count, x, y), None, JAX_TICKS)
            return carry[:5], losses

        advance = jax.jit(jax.vmap(run), donate_argnums=(0, 1, 2, 3, 4))
        state = [
            [jnp.array(w) for w in weights],
            *([jnp.zeros_like(w) for w in weights] for _ in range(2)),
            jax.random.split(jax.random.PRNGKey(0), lanes),
            jnp.ones(lanes),
        ]

        def step() -> None:
            nonlocal state
            state, losses = advance(*state, inputs, labels)
            losses.block_until_ready()

        return step

    return {kind: make(kind) for kind in JAX_RULES}
