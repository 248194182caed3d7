"""The closed loop: the model is fed its own predictions, and its errors grow.

Each prediction reads the last W values from a zero state, as in training. To read W values for
every prediction would take W times as long, so each window has states that start one step after
the other, at most W. All states read a new value in one matrix product; the state that has now
read W values predicts the next value, and starts again from zero.

Shapes: N windows, W window (time steps), S states of each, H hidden size.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sinlstm_dist.differences import DIFFERENCE, MEAN, STD, Scale, differences, integrate
from sinlstm_dist.horizons import Fan

IN_CACHE = 2**16  # float32 gates at a time: several times faster than more
ROUNDING = 16  # units in the last place of a cycle's largest value: a smaller wave is not one


def roll_out(weights: Mapping[str, np.ndarray], windows: np.ndarray, *, steps: int) -> np.ndarray:
    """Predict the value after each window, then the value after that, and so on.

    Args:
        weights: of a `Predictor` of one value, float32, by parameter name.
        windows: (N, W) float32, the known values.
        steps: values to predict.

    Returns:
        (N, steps) float32.
    """
    layers = _layers(weights)
    num_gates = 4 * min(windows.shape[1], steps) * max(layer.size for layer in layers)  # a window's
    at_once = max(1, IN_CACHE // max(1, num_gates))
    groups = [windows[i : i + at_once] for i in range(0, len(windows), at_once)]
    return np.concatenate([_roll_out(weights, layers, group, steps) for group in groups])


def continue_series(
    weights: Mapping[str, np.ndarray], windows: np.ndarray, *, steps: int
) -> np.ndarray:
    """Forecast what follows each window, in the user's units.

    Args:
        weights: of a `Predictor` of one value, by name, as its state holds them: `scaling.mean`,
            `scaling.std` and `scaling.difference` are there if it has them.
        windows: (N, W) values; (N, n + W) for a model of differences at a lag of n.
        steps: values to forecast.

    Returns:
        (N, steps) float64.
    """
    scale = Scale(float(weights.get(MEAN, 0)), float(weights.get(STD, 1)))
    lag = int(weights.get(DIFFERENCE, 0))
    scaled = roll_out(weights, scale.apply(differences(windows, lag)), steps=steps)
    return integrate(windows[:, windows.shape[1] - lag :], scale.undo(scaled.astype(np.float64)))


def _roll_out(
    weights: Mapping[str, np.ndarray], layers: "list[_Layer]", windows: np.ndarray, steps: int
) -> np.ndarray:
    num_windows, window = windows.shape
    num_states = min(window, steps)  # of each window: no more will have read W values
    output, bias = weights["output_layer.weight"][0], weights["output_layer.bias"][0]
    states = [np.zeros((2, num_states, num_windows, layer.size), np.float32) for layer in layers]
    values = np.empty((window + steps, num_windows), np.float32)
    values[:window] = windows.T
    for now in range(window + steps - 1):
        if now < steps:
            for state in states:
                state[:, now % num_states] = 0  # this state starts with this value
        inputs = values[now, :, None]  # (N, 1): the same for every state of a window
        for layer, state in zip(layers, states, strict=True):
            inputs = layer.read(inputs, state)  # (S * N, H)
        if now + 1 >= window:
            ready = (now + 1 - window) % num_states * num_windows
            values[now + 1] = inputs[ready : ready + num_windows] @ output + bias
    return values[window:].T


class _Layer:
    """A layer of an LSTM in torch's layout; one tanh computes its gates i, f, g and o."""

    def __init__(self, weights: Mapping[str, np.ndarray], index: int) -> None:
        self.size = weights[f"rnn.weight_hh_l{index}"].shape[1]
        # sigmoid(z) = (1 + tanh(z / 2)) / 2
        halved = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), self.size)
        self._from_input = np.ascontiguousarray(weights[f"rnn.weight_ih_l{index}"].T) * halved
        self._from_state = np.ascontiguousarray(weights[f"rnn.weight_hh_l{index}"].T) * halved
        self._bias = (weights[f"rnn.bias_ih_l{index}"] + weights[f"rnn.bias_hh_l{index}"]) * halved

    def read(self, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Advance all states by one step, in place.

        Args:
            inputs: (N, D), the same for the S states of each window; or (S * N, D).
            state: hidden and cell, (2, S, N, H).

        Returns:
            their outputs, (S * N, H).
        """
        hidden, cell = state.reshape(2, -1, self.size)  # (S * N, H) each
        driven = inputs @ self._from_input + self._bias
        gates = (hidden @ self._from_state).reshape(-1, *driven.shape)
        gates += driven
        tanh = np.tanh(gates, out=gates).reshape(-1, 4 * self.size)
        kept, written = slice(self.size, 2 * self.size), slice(2 * self.size, 3 * self.size)
        sigmoid = tanh * np.float32(0.5) + np.float32(0.5)
        cell[:] = sigmoid[:, kept] * cell + sigmoid[:, : self.size] * tanh[:, written]
        hidden[:] = sigmoid[:, 3 * self.size :] * np.tanh(cell)
        return hidden


def _layers(weights: Mapping[str, np.ndarray]) -> list[_Layer]:
    number = sum(name.startswith("rnn.weight_ih_l") for name in weights)
    return [_Layer(weights, index) for index in range(number)]


@dataclass(frozen=True)
class Cycle:
    """The quality of a forecast over one cycle.

    Args:
        number: from 1; 0 for the first step alone.
        first: its first step, from 1.
        last: its last step.
        mean_error: mean absolute error.
        largest: largest absolute error.
        amplitude: of the forecast, as a multiple of the truth's; NaN for a part of a cycle, and
            where the truth has no wave.
        phase: degrees by which the forecast is ahead of the truth, counted on from cycle to cycle;
            NaN where `amplitude` is.
    """

    number: int
    first: int
    last: int
    mean_error: float
    largest: float
    amplitude: float
    phase: float


@dataclass(frozen=True)
class Forecast:
    """A closed-loop forecast, and the values that really came.

    Args:
        known: (K,), the values before it: the window that it started from, or more.
        values: (steps,).
        truth: (steps,), or as many as are known.
        period: steps in a cycle.
        times: (K + steps,), of the known values and the forecast; empty if there are none.
        from_end: whether it begins at the end of a file, and not at the first test window.
        fan: of the forecast; None if it has none.
    """

    known: np.ndarray
    values: np.ndarray
    truth: np.ndarray
    period: float
    times: Sequence[str] = ()
    from_end: bool = False
    fan: Fan | None = None

    @functools.cached_property
    def cycles(self) -> list[Cycle]:
        """The quality of its first step and of each cycle."""
        return by_cycle(self.values[: len(self.truth)], self.truth, period=self.period)


def by_cycle(forecast: np.ndarray, truth: np.ndarray, *, period: float) -> list[Cycle]:
    """The quality of a forecast's first step, then of each cycle; the last may be incomplete.

    Amplitude and phase are those of the best-fitting wave with the truth's period.

    Args:
        forecast: (N,).
        truth: (N,); N may be 0.
        period: steps in a cycle.
    """
    if len(truth) == 0:
        return []
    number = math.ceil(len(truth) / period - 1e-9)
    edges = np.minimum(np.round(np.arange(number + 1) * period), len(truth)).astype(int)
    spans = [(first, last) for first, last in itertools.pairwise(edges.tolist()) if last > first]
    waves = np.array([_wave(forecast, truth, first, last, period) for first, last in spans])
    whole = np.isfinite(waves[:, 1])
    waves[whole, 1] = np.unwrap(waves[whole, 1], period=360)
    rows = [(0, 0, 1, np.nan, np.nan)]
    rows += [(i + 1, *span, *wave) for i, (span, wave) in enumerate(zip(spans, waves, strict=True))]
    errors = np.abs(forecast - truth)
    return [
        Cycle(number, first + 1, last, errors[first:last].mean(), errors[first:last].max(), *wave)
        for number, first, last, *wave in rows
    ]


def _wave(
    forecast: np.ndarray, truth: np.ndarray, first: int, last: int, period: float
) -> tuple[float, float]:
    """The forecast's amplitude and phase from `first` to `last`, relative to the truth."""
    if last - first < max(3, round(period) - 1):
        return np.nan, np.nan
    angle = 2 * np.pi * (np.arange(first, last) % period) / period  # the larger, the less exact
    basis = np.stack((np.sin(angle), np.cos(angle), np.ones_like(angle)), axis=1)
    (sine, cosine, _), *_ = np.linalg.lstsq(basis, np.stack((forecast, truth), axis=1)[first:last])
    wave, of_truth = complex(sine[0], cosine[0]), complex(sine[1], cosine[1])
    if abs(of_truth) <= ROUNDING * np.spacing(np.abs(truth[first:last]).max()):
        return np.nan, np.nan
    ratio = wave / of_truth
    return abs(ratio), np.degrees(np.angle(ratio))
