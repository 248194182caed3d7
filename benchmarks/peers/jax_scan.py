"""JAX with the whole epoch compiled: a scan over its steps, each with a scan over time.

python benchmarks/peers/jax_scan.py --batch 100 --epochs 12
"""

import functools

import jax
import jax.numpy as jnp
from network import start
from workload import LR, TOLERANCE, Record, parse, train_and_test

Weights = dict[str, jax.Array]
Data = tuple[jax.Array, jax.Array]
State = tuple[Weights, Weights | None]  # weights and, with momentum, their velocity


def layers(weights: Weights) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """Both matrices and the bias of each layer, the lowest first; torch's order of gates."""
    number = sum(name.startswith("rnn.weight_ih") for name in weights)
    return [
        (
            weights[f"rnn.weight_ih_l{layer}"].T,
            weights[f"rnn.weight_hh_l{layer}"].T,
            weights[f"rnn.bias_ih_l{layer}"] + weights[f"rnn.bias_hh_l{layer}"],
        )
        for layer in range(number)
    ]


def predict(weights: Weights, windows: jax.Array) -> jax.Array:
    """The value after each window; one scan over time, with all layers in each of its steps."""
    stack = layers(weights)
    zeros = jnp.zeros((len(windows), weights["rnn.weight_hh_l0"].shape[1]))

    def time_step(states: list[Data], values: jax.Array) -> tuple[list[Data], None]:
        new = []
        for (weight_ih, weight_hh, bias), (hidden, cell) in zip(stack, states, strict=True):
            gates = values @ weight_ih + hidden @ weight_hh + bias
            i, f, g, o = jnp.split(gates, 4, axis=1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            values = jax.nn.sigmoid(o) * jnp.tanh(cell)
            new.append((values, cell))
        return new, None

    start = [(zeros, zeros) for _ in stack]
    states, _ = jax.lax.scan(time_step, start, jnp.swapaxes(windows, 0, 1))
    hidden, _ = states[-1]
    return hidden @ weights["output_layer.weight"].T + weights["output_layer.bias"]


def loss(weights: Weights, windows: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean squared error and accuracy."""
    error = predict(weights, windows) - targets
    return jnp.mean(error**2), jnp.mean(jnp.abs(error) < TOLERANCE)


@functools.partial(jax.jit, static_argnames=("batch", "momentum"), donate_argnums=0)
def train_epoch(
    state: State, data: Data, key: jax.Array, *, batch: int, momentum: float
) -> tuple[State, jax.Array]:
    """Returns the state after an epoch in random order, and its mean loss."""

    def step(state: State, indices: jax.Array) -> tuple[State, Data]:
        weights, velocity = state
        inputs, targets = (array[indices] for array in data)
        metrics, slope = jax.value_and_grad(loss, has_aux=True)(weights, inputs, targets)
        if velocity is not None:  # as torch.optim.SGD
            slope = velocity = jax.tree.map(lambda v, s: momentum * v + s, velocity, slope)
        return (jax.tree.map(lambda value, s: value - LR * s, weights, slope), velocity), metrics

    order = jax.random.permutation(key, len(data[0])).reshape(-1, batch)
    state, (losses, _) = jax.lax.scan(step, state, order)
    return state, losses.mean()


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    jax.config.update("jax_platforms", "cpu")
    train_data, test_data = (tuple(map(jnp.asarray, arrays)) for arrays in train_and_test(workload))
    weights = {
        name: jnp.array(value.numpy()) for name, value in start(workload).state_dict().items()
    }
    velocity = jax.tree.map(jnp.zeros_like, weights) if workload.momentum else None
    state, test = (weights, velocity), jax.jit(loss)
    how = {"batch": workload.batch, "momentum": workload.momentum}
    key = jax.random.key(0)
    record = Record()
    record.start()
    for epoch in range(workload.epochs):
        key_of_epoch = jax.random.fold_in(key, epoch)
        state, train_loss = train_epoch(state, train_data, key_of_epoch, **how)
        test_loss, test_accuracy = test(state[0], *test_data)
        record.end_epoch(
            train_loss=float(train_loss),
            test_loss=float(test_loss),
            test_accuracy=float(test_accuracy),
        )
    record.print()


if __name__ == "__main__":
    main()
