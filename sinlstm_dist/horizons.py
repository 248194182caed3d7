"""How wrong forecasts of a series are by their horizon: scores, and the fan of a forecast.

The errors are those of a backtest: closed-loop forecasts from many windows of the test part.

Shapes: S forecasts, K steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sinlstm_dist.words import counted

MODEL = "the model"
MOST_STARTS = 100
LEAST_ERRORS = 10  # fewer say nothing about 10 % of the cases
HORIZONS = (1, 2, 5, 10, 20, 50, 100)  # that are scored
LEVELS = (0.10, 0.25, 0.75, 0.90)  # of a fan's bounds; 80 % and 50 % of the cases lie between them
BOUNDS = ("lower_80", "lower_50", "upper_50", "upper_80")


def starts(num_windows: int) -> np.ndarray:
    """The test windows that forecasts start from: all, or some that keep step with no season.

    Returns:
        (S,) indices, ascending, S at most `MOST_STARTS`.
    """
    if num_windows <= MOST_STARTS:
        return np.arange(num_windows)
    golden_ratio = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are spread evenly
    return np.unique((np.arange(MOST_STARTS) * golden_ratio % 1 * num_windows).astype(np.int64))


def last_horizon(num_windows: int) -> int:
    """The last horizon at which `LEAST_ERRORS` forecasts end within the test part; or 0."""
    first = starts(num_windows)[LEAST_ERRORS - 1 : LEAST_ERRORS]
    return num_windows - int(first[0]) if len(first) else 0


def compare_forecasts(
    values: np.ndarray, forecasts: np.ndarray, *, ends: np.ndarray, train: slice, period: int
) -> "Backtest":
    """Compare forecasts with what came, and with naive forecasts.

    Args:
        values: (N,), the series.
        forecasts: (S, K), the model's.
        ends: (S,), the index of each forecast's last known value, ascending.
        train: the train part.
        period: of the series' season, in steps; 1 if it has none.
    """
    steps = forecasts.shape[1]
    targets = ends[:, None] + 1 + np.arange(steps)  # (S, K)
    truth = np.where(targets < len(values), values.take(targets, mode="clip"), np.nan)
    periods = sorted({1, period if period <= ends[0] + 1 else 1})
    errors = {again(m): truth - repeat_last(values, ends, period=m, steps=steps) for m in periods}
    in_sample = {m: np.abs(values[train][m:] - values[train][:-m]) for m in periods}
    # Long enough, and not always right; a series that stands still has none.
    usable = [m for m in periods if in_sample[m].any()] or [1]
    return Backtest(
        {MODEL: truth - forecasts, **errors},
        unit=float(in_sample[usable[-1]].mean()),
        naive=again(usable[-1]),
    )


def again(period: int) -> str:
    """The name of the naive forecast that repeats the last `period` values."""
    return f"the last {'value' if period == 1 else counted(period, 'step')} again"


def repeat_last(values: np.ndarray, ends: np.ndarray, *, period: int, steps: int) -> np.ndarray:
    """The naive forecast: the last `period` known values again and again.

    Args:
        values: (N,), the series.
        ends: (S,), the index of each forecast's last known value.
        period: 1 for the last value.

    Returns:
        (S, steps)
    """
    return values[ends[:, None] + 1 - period + np.arange(steps) % period]


@dataclass(frozen=True)
class Score:
    """How wrong forecasts are at one horizon.

    Args:
        prediction: "the model", or a naive forecast.
        horizon: steps ahead.
        num_forecasts: that end within the test part.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        mase: `mae` relative to the error of a naive forecast; see `Backtest`.
    """

    prediction: str
    horizon: int
    num_forecasts: int
    mae: float
    rmse: float
    mase: float


@dataclass(frozen=True)
class Fan:
    """Bounds between which the values of a forecast are likely to lie.

    Args:
        bounds: (4, K), of the first K values; see `BOUNDS`.
        num_forecasts: whose errors they come from.
    """

    bounds: np.ndarray
    num_forecasts: int


@dataclass(frozen=True)
class Backtest:
    """Forecasts from many windows of the test part, and what came.

    Args:
        errors: (S, K) of each prediction, value minus forecast; NaN after the series' end.
        unit: of MASE: the mean error within the train part, one step ahead, of a naive forecast; 0
            if all values there are the same.
        naive: which one that is.
    """

    errors: Mapping[str, np.ndarray]
    unit: float
    naive: str

    def scores(self) -> list[Score]:
        """The scores of each prediction at some horizons."""
        found = []
        for horizon in HORIZONS:
            for prediction, errors in self.errors.items():
                if horizon <= errors.shape[1]:
                    known = _known(errors[:, horizon - 1])
                    mae, rmse = np.abs(known).mean(), np.sqrt(np.square(known).mean())
                    score = Score(prediction, horizon, len(known), mae, rmse, mae / self.unit)
                    found.append(score)
        return found

    def fan(self, forecast: np.ndarray) -> Fan:
        """The fan of a forecast: quantiles of the model's errors at each horizon, added to it.

        Of n errors, the quantile at level p is the one in place p * (n + 1): the next error lies
        below it with this probability if all are alike.

        Args:
            forecast: (steps,).
        """
        errors = self.errors[MODEL][:, : len(forecast)]
        quantiles = [np.quantile(_known(e), LEVELS, method="weibull") for e in errors.T]
        spread = np.reshape(quantiles, (-1, len(LEVELS))).T  # (4, K)
        return Fan(forecast[: spread.shape[1]] + spread, num_forecasts=len(errors))


def _known(errors: np.ndarray) -> np.ndarray:
    return errors[~np.isnan(errors)]
