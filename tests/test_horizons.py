"""Forecasts from many test windows: their errors by horizon, and the fan, reckoned by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sinlstm_dist import evaluate, forecast
from sinlstm_dist.config import load_config
from sinlstm_dist.horizons import (
    LEAST_ERRORS,
    Backtest,
    compare_forecasts,
    last_horizon,
    repeat_last,
    starts,
)
from sinlstm_dist.model import Predictor
from sinlstm_dist.seen import Seen
from sinlstm_dist.trained import Trained

MEAN = 100.0  # what the model of `mean_model` forecasts for ever


@pytest.fixture
def mean_model(tmp_path: Path):
    """A model with weights of zero, and a file of 80 values whose last 24 are test targets."""
    values = MEAN + np.random.default_rng(5).integers(-50, 50, 80)
    (tmp_path / "a.csv").write_text("load\n" + "".join(f"{value}\n" for value in values))

    def make(**settings: object) -> tuple[Trained, np.ndarray]:
        keys = {"source": str(tmp_path / "a.csv"), "column": "load", "window": 6, "period": 4}
        keys |= {"train_size": 30, "test_size": 24, **settings}
        config = load_config(overrides={f"data.{key}": value for key, value in keys.items()})
        model = Predictor(scaled=True, difference=config.data.difference)
        weights = {name: 0 * value for name, value in model.state_dict().items()}
        weights["scaling.mean"] += 0.0 if config.data.difference else MEAN
        weights["scaling.std"] += 30.0
        if config.data.difference:
            weights["scaling.difference"] += config.data.difference
        return Trained(config, weights, Seen(config.data, None)), values

    return make


def test_the_fan_is_quantiles_of_the_errors_at_each_horizon(mean_model):
    trained, values = mean_model()
    future = trained.forecast(from_end=True, steps=20)
    assert future.values.tolist() == [MEAN] * 20
    assert future.known.tolist() == values[-20:].tolist()
    assert len(future.truth) == 0
    assert future.fan.num_forecasts == 24
    assert future.fan.bounds.shape == (4, 15)  # 24 - 15 + 1 = 10 forecasts reach that horizon
    for horizon in range(1, 16):
        errors = np.sort(values[80 - 24 + horizon - 1 :] - MEAN)
        bounds = future.fan.bounds[:, horizon - 1]
        for level, bound in zip((0.1, 0.25, 0.75, 0.9), bounds, strict=True):
            place = level * (len(errors) + 1)  # from 1
            below, above = errors[int(place) - 1], errors[min(int(place), len(errors) - 1)]
            assert bound == pytest.approx(MEAN + below + place % 1 * (above - below))


def test_the_fan_of_a_model_of_changes_is_about_values(mean_model):
    """Its changes are zero: it repeats the last two values, so its errors are those of that."""
    trained, values = mean_model(difference=2, train_size=26)
    future = trained.forecast(from_end=True, steps=5)
    assert future.values.tolist() == [*values[-2:], *values[-2:], values[-2]]
    third = values[80 - 24 + 2 :] - values[80 - 24 - 2 : 80 - 4]  # the value before two steps
    median = np.quantile(third, 0.1, method="weibull")
    assert future.fan.bounds[0, 2] == pytest.approx(values[-2] + median)


def test_a_forecast_outside_of_its_own_fan_is_noted(mean_model):
    """All targets but the first three are far above it: only at the first step are they 10 %."""
    trained, values = mean_model()
    assert forecast.fan_notes(trained.forecast(from_end=True, steps=20)) == []
    for shift, how in ((1000, "low"), (-1000, "high")):
        shifted = [v + shift * (i >= 59) - shift / 5 * (56 <= i < 59) for i, v in enumerate(values)]
        Path(trained.config.data.source).write_text("\n".join(["load", *map(str, shifted)]))
        (found,) = forecast.fan_notes(
            Trained(trained.config, trained.weights, trained.seen).forecast(from_end=True, steps=20)
        )
        assert found == (
            f"in the test part over 90 % of the forecasts were too {how} at 14 of 15 steps: "
            "there the forecast lies outside its own fan"
        )


@pytest.mark.parametrize(("test_size", "reached"), [(9, 0), (10, 1), (11, 2)])
def test_a_test_part_of_few_windows_has_a_short_fan_or_none(test_size, reached, mean_model):
    trained, _ = mean_model(test_size=test_size)
    future = trained.forecast(from_end=True, steps=8)
    assert future.fan.bounds.shape == (4, reached)
    assert len(evaluate.by_horizon(trained.backtest(steps=100))) == 3 * min(reached, 2)


def test_the_errors_lie_between_the_bounds_as_often_as_they_say():
    """A new error from the same source, many times: that is what the bounds are for."""
    random = np.random.default_rng(0)
    inside = []
    for _ in range(4000):
        errors = random.normal(3, 5, (19, 1))  # places 2, 5, 15 and 18 of 19: no rounding
        low, _, _, high = Backtest({"the model": errors}, 1.0, "").fan(np.zeros(1)).bounds[:, 0]
        inside.append(low <= random.normal(3, 5) <= high)
    assert np.mean(inside) == pytest.approx(0.8, abs=0.025)  # 4 standard errors


def test_scores_are_those_of_the_hand(mean_model):
    trained, values = mean_model()
    found = trained.backtest(steps=100)
    train = values[80 - 24 - 6 - 36 : 80 - 24 - 6]
    unit = np.abs(train[4:] - train[:-4]).mean()
    assert (found.unit, found.naive) == (pytest.approx(unit), "the last 4 steps again")
    scores = {(score.horizon, score.prediction): score for score in found.scores()}
    assert {horizon for horizon, _ in scores} == {1, 2, 5, 10}
    after = np.arange(80 - 24, 80 - 4)  # of each forecast whose fifth value is in the test part
    errors = {
        "the model": values[after + 4] - MEAN,
        "the last value again": values[after + 4] - values[after - 1],
        "the last 4 steps again": values[after + 4] - values[after - 4],
    }
    for prediction, error in errors.items():
        score = scores[5, prediction]
        assert score.num_forecasts == 20
        assert score.mae == pytest.approx(np.abs(error).mean())
        assert score.rmse == pytest.approx(np.sqrt((error**2).mean()))
        assert score.mase == pytest.approx(np.abs(error).mean() / unit)


def test_without_a_season_the_last_value_is_the_unit(mean_model):
    for settings in ({"period": 1}, {"period": 0.3}, {"period": 70}):  # none; none; too long
        found = mean_model(**settings)[0].backtest(steps=3)
        assert found.naive == "the last value again"
        assert list(found.errors) == ["the model", "the last value again"]


def test_a_season_that_repeats_exactly_in_the_train_part_is_no_unit():
    values = np.array([1.0, 2, 1, 2, 1, 2, 5, 3, 5])
    forecasts = np.zeros((2, 2))
    found = compare_forecasts(values, forecasts, ends=np.array([5, 6]), train=slice(0, 6), period=2)
    assert (found.unit, found.naive) == (1.0, "the last value again")
    again = found.errors["the last 2 steps again"]
    assert again.tolist() == [[5 - 1, 3 - 2], [3 - 2, 5 - 5]]
    after_end = compare_forecasts(
        values, forecasts, ends=np.array([6, 7]), train=slice(0, 6), period=1
    )
    assert np.isnan(after_end.errors["the model"]).tolist() == [[False, False], [False, True]]


def test_the_last_steps_are_repeated():
    values = np.arange(10.0)
    found = repeat_last(values, np.array([4, 9]), period=3, steps=7)
    assert found.tolist() == [[2, 3, 4, 2, 3, 4, 2], [7, 8, 9, 7, 8, 9, 7]]


@pytest.mark.parametrize("number", [0, 1, 9, 100, 101, 137, 2400, 100_000])
def test_forecasts_start_all_over_the_test_part(number):
    found = starts(number)
    assert len(found) <= 100
    assert np.all(np.diff(found) > 0)
    assert number < 2 or len(found) >= min(number, 100) // 2
    for season in (7, 12, 24, 30):  # as many starts in each of its places, more or less
        if number >= 2400:
            assert np.bincount(found % season, minlength=season).max() <= 2.5 * 100 / season
    reached = last_horizon(number)
    if number < LEAST_ERRORS:
        assert reached == 0
    else:
        assert (found <= number - reached).sum() >= LEAST_ERRORS
        assert (found <= number - reached - 1).sum() < LEAST_ERRORS


def test_a_test_part_with_trained_windows_is_noted(mean_model):
    """Their errors would make the fan too narrow."""
    trained, _ = mean_model()
    assert trained.notes == []
    larger = trained.config.data.model_copy(update={"test_size": 30, "train_size": 20})
    other = replace(trained, config=trained.config.model_copy(update={"data": larger}))
    assert "hold values that the run was trained on" in other.notes[0]
