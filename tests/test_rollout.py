"""The closed loop against the model itself, and the measure of amplitude and phase."""

import itertools

import numpy as np
import pytest
import torch

from sinlstm_dist import rollout
from sinlstm_dist.model import Predictor
from sinlstm_dist.rollout import by_cycle, roll_out


def weights_of(model: Predictor) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("window", "hidden", "layers"), [(50, 5, 1), (1, 5, 1), (7, 3, 2), (12, 16, 3)]
)
def test_each_value_is_what_the_model_says_of_the_window_before_it(window, hidden, layers):
    torch.manual_seed(window)
    model = Predictor(hidden_size=hidden, num_layers=layers)
    with torch.no_grad():
        model.output_layer.weight *= 4  # so that the values move
    seed = np.sin(np.arange(window, dtype=np.float32))
    (found,) = roll_out(weights_of(model), seed[None], steps=130)
    assert found.shape == (130,)
    values = torch.from_numpy(np.concatenate((seed, found)))
    windows = values.unfold(0, window, 1)[:130, :, None]
    with torch.no_grad():
        expected = model(windows)[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)  # rounding of float32
    assert found.std() > 1e-4


def test_a_seed_window_is_not_changed():
    seed = np.zeros((1, 5), np.float32)
    roll_out(weights_of(Predictor()), seed, steps=9)
    assert not seed.any()


@pytest.mark.parametrize("steps", [1, 4, 7, 8, 60])
@pytest.mark.parametrize("layers", [1, 3])
def test_many_windows_are_forecast_as_each_alone(steps, layers, monkeypatch):
    """Fewer steps than the window has values, as many, and more; in groups, the last smaller."""
    torch.manual_seed(steps)
    weights = weights_of(Predictor(hidden_size=6, num_layers=layers))
    windows = np.random.default_rng(0).normal(size=(23, 7)).astype(np.float32)
    alone = np.concatenate([roll_out(weights, window[None], steps=steps) for window in windows])
    whole = roll_out(weights, windows, steps=steps)
    monkeypatch.setattr(rollout, "IN_CACHE", 5 * 4 * 6 * min(7, steps))
    for found in (whole, roll_out(weights, windows, steps=steps)):
        np.testing.assert_allclose(found, alone, atol=1e-6, rtol=0)  # rounding of float32
    assert len(np.unique(alone[:, 0])) == 23


def test_a_short_forecast_is_the_beginning_of_a_long_one():
    """Though it keeps fewer states: not a bit may depend on that."""
    weights, seed = weights_of(Predictor()), np.sin(np.arange(50, dtype=np.float32))[None]
    long = roll_out(weights, seed, steps=200)
    for steps in (1, 10, 49, 50, 51):
        assert roll_out(weights, seed, steps=steps).tolist() == long[:, :steps].tolist()


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_series_continues_in_its_units_as_predict_does(n):
    """Step by step with the model's own `predict`, in float64 and with a large mean."""
    torch.manual_seed(n)
    model = Predictor(scaled=True, difference=n)
    model.scaling.set(3.0 if n else 1e6, 40.0)
    with torch.no_grad():
        model.output_layer.weight *= 4
    windows = 1e6 + 40 * np.random.default_rng(1).normal(size=(3, 9 + n))
    found = model.forecast(windows[..., None], 20)
    assert (found.shape, found.dtype) == ((3, 20), np.float64)
    for step in range(20):
        (expected,) = model.predict(windows[..., None]).T
        np.testing.assert_allclose(found[:, step], expected, atol=1e-3, rtol=0)
        windows = np.concatenate((windows[:, 1:], expected[:, None]), axis=1)


@pytest.mark.parametrize("period", [60.0, 59.5, 4.0, 60.3])
def test_amplitude_and_phase_are_those_that_were_put_in(period):
    angle = 2 * np.pi * (np.arange(round(10 * period)) + 3.3) / period
    truth, wave = np.sin(angle), 0.8 * np.sin(angle + np.radians(25)) + 0.1
    rows = by_cycle(wave, truth, period=period)
    assert [row.number for row in rows] == list(range(11))
    assert [row.first for row in rows[:2]] == [1, 1]
    assert rows[-1].last == len(truth)
    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(rows[1:]))
    for row in rows[1:]:
        assert (row.amplitude, row.phase) == (pytest.approx(0.8), pytest.approx(25))
        errors = np.abs(wave - truth)[row.first - 1 : row.last]
        assert (row.mean_error, row.largest) == (errors.mean(), errors.max())


def test_a_phase_that_runs_away_is_counted_on():
    steps = np.arange(1200)
    truth, fast = np.sin(2 * np.pi * steps / 60), np.sin(2 * np.pi * steps / 55)
    phases = [row.phase for row in by_cycle(fast, truth, period=60)[1:]]
    assert np.diff(phases) == pytest.approx(360 * 5 / 55, abs=6)
    assert phases[-1] > 540


def test_a_part_of_a_cycle_has_errors_but_no_wave():
    truth = np.sin(2 * np.pi * np.arange(90) / 60)
    *_, whole, part = by_cycle(truth + 0.5, truth, period=60)
    assert whole.amplitude == pytest.approx(1)
    assert (part.first, part.last, part.mean_error) == (61, 90, pytest.approx(0.5))
    assert np.isnan(part.amplitude)
    assert np.isnan(part.phase)
    assert by_cycle(truth[:0], truth[:0], period=60) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", [0.0, 0.1, -7.7e-5, 1 / 3, 2e10 + 0.3])
@pytest.mark.parametrize("still", [slice(None), slice(60, 120)])
def test_a_truth_without_a_wave_gives_no_amplitude_and_no_phase(still, level, dtype):
    """In all of its cycles, or in one between others."""
    angle, size = 2 * np.pi * np.arange(180) / 60, abs(level) or 1.0
    truth = (level + size * np.sin(angle)).astype(dtype)
    truth[still] = level
    forecast = (level + size * np.sin(angle + 0.5)).astype(dtype)
    _, *cycles = by_cycle(forecast, truth, period=60)
    flat = np.zeros(180, bool)
    flat[still] = True
    for cycle in cycles:
        known = not flat[cycle.first - 1]
        found = np.array([cycle.amplitude, cycle.phase])
        assert np.isfinite(found).tolist() == [known, known]


@pytest.mark.parametrize("level", [0.0, 1.0, 2e10])
def test_a_truth_of_another_period_has_no_wave(level):
    """A harmonic alone: what is left of its fit is rounding."""
    angle = 2 * np.pi * np.arange(60) / 60
    for harmonic in (2, 3, 7):
        truth = np.tile(level + np.sin(harmonic * angle), 1000)
        for cycle in by_cycle(np.tile(np.sin(angle), 1000), truth, period=60)[1:]:
            assert np.isnan([cycle.amplitude, cycle.phase]).all(), cycle


def test_a_small_wave_on_a_large_level_is_one():
    angle = 2 * np.pi * np.arange(60) / 60
    _, cycle = by_cycle(2e10 + 0.02 * np.sin(angle), 2e10 + 0.01 * np.sin(angle), period=60)
    assert cycle.amplitude == pytest.approx(2, rel=1e-3)  # 2e10 has steps of 4e-6
