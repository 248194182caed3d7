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


def predict(weights: Weights, windows: jax.Array) -> jax.Array:
    """The value after each window; torch's LSTM in torch's order of gates."""
    bias = weights["rnn.bias_ih_l0"] + weights["rnn.bias_hh_l0"]
    zeros = jnp.zeros((len(windows), weights["rnn.weight_hh_l0"].shape[1]))

    def time_step(state: Data, values: jax.Array) -> tuple[Data, None]:
        hidden, cell = state
        gates = values @ weights["rnn.weight_ih_l0"].T + hidden @ weights["rnn.weight_hh_l0"].T
        i, f, g, o = jnp.split(gates + bias, 4, axis=1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    (hidden, _), _ = jax.lax.scan(time_step, (zeros, zeros), jnp.swapaxes(windows, 0, 1))
    return hidden @ weights["output_layer.weight"].T + weights["output_layer.bias"]


def loss(weights: Weights, windows: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean squared error and accuracy."""
    error = predict(weights, windows) - targets
    return jnp.mean(error**2), jnp.mean(jnp.abs(error) < TOLERANCE)


@functools.partial(jax.jit, static_argnames="batch", donate_argnums=0)
def train_epoch(
    weights: Weights, data: Data, key: jax.Array, *, batch: int
) -> tuple[Weights, jax.Array]:
    """Returns the weights after an epoch in random order, and its mean loss."""

    def step(weights: Weights, indices: jax.Array) -> tuple[Weights, Data]:
        inputs, targets = (array[indices] for array in data)
        metrics, gradient = jax.value_and_grad(loss, has_aux=True)(weights, inputs, targets)
        return jax.tree.map(lambda value, slope: value - LR * slope, weights, gradient), metrics

    order = jax.random.permutation(key, len(data[0])).reshape(-1, batch)
    weights, (losses, _) = jax.lax.scan(step, weights, order)
    return weights, losses.mean()


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    jax.config.update("jax_platforms", "cpu")
    train_data, test_data = (tuple(map(jnp.asarray, arrays)) for arrays in train_and_test(workload))
    weights = {name: jnp.array(value.numpy()) for name, value in start().state_dict().items()}
    test = jax.jit(loss)
    key = jax.random.key(0)
    record = Record()
    record.start()
    for epoch in range(workload.epochs):
        key_of_epoch = jax.random.fold_in(key, epoch)
        weights, train_loss = train_epoch(weights, train_data, key_of_epoch, batch=workload.batch)
        test_loss, test_accuracy = test(weights, *test_data)
        record.end_epoch(
            train_loss=float(train_loss),
            test_loss=float(test_loss),
            test_accuracy=float(test_accuracy),
        )
    record.print()


if __name__ == "__main__":
    main()
