"""The closed loop: the model is fed its own predictions, and its errors grow.

Each prediction reads the last W values from a zero state, as in training. To read W values for
every prediction would take W times as long, so W states are kept, which start one step after the
other. All states read a new value in one matrix product; the state that has now read W values
predicts the next value, and starts again from zero.

Shapes: W window (time steps), H hidden size.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


def roll_out(weights: Mapping[str, np.ndarray], window: np.ndarray, *, steps: int) -> np.ndarray:
    """Predict the value after `window`, then the value after that, and so on.

    Args:
        weights: of a `Predictor` of one value, float32, by parameter name.
        window: (W,) float32, the known values.
        steps: values to predict.

    Returns:
        (steps,) float32.
    """
    num_states, layers = len(window), _layers(weights)
    output, bias = weights["output_layer.weight"][0], weights["output_layer.bias"][0]
    states = [np.zeros((2, num_states, layer.size), np.float32) for layer in layers]
    values = np.concatenate((window, np.empty(steps, np.float32)))
    for now in range(len(values) - 1):
        for state in states:
            state[:, now % num_states] = 0  # this state starts with this value
        inputs = values[now : now + 1, None]  # (1, 1): the same for every state
        for layer, state in zip(layers, states, strict=True):
            inputs = layer.read(inputs, state)  # (W, H)
        if now + 1 >= num_states:
            values[now + 1] = output @ inputs[(now + 1) % num_states] + bias
    return values[num_states:]


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
        """Advance all states by one step, in place; returns their outputs (W, H)."""
        hidden, cell = state
        tanh = np.tanh(hidden @ self._from_state + (inputs @ self._from_input + self._bias))
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
        amplitude: of the forecast, as a multiple of the truth's; NaN for a part of a cycle.
        phase: degrees by which the forecast is ahead of the truth, counted on from cycle to cycle;
            NaN for a part of a cycle.
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
        window: (W,), the known values that it started from.
        values: (steps,).
        truth: (steps,), or as many as are known.
        period: steps in a cycle.
    """

    window: np.ndarray
    values: np.ndarray
    truth: np.ndarray
    period: float

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
    angle = 2 * np.pi * np.arange(first, last) / period
    basis = np.stack((np.sin(angle), np.cos(angle), np.ones_like(angle)), axis=1)
    (sine, cosine, _), *_ = np.linalg.lstsq(basis, np.stack((forecast, truth), axis=1)[first:last])
    ratio = complex(sine[0], cosine[0]) / complex(sine[1], cosine[1])
    return abs(ratio), np.degrees(np.angle(ratio))
