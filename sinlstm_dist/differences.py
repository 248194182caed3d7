"""The model's numbers: a series scaled, and if the run asks for it, its differences.

The model of a run with `data.difference = n` reads and predicts differences at a lag of n time
steps; everything that a user gives and gets is values.
"""

from dataclasses import dataclass

import numpy as np

# What a model's weights hold of it
SCALING = MEAN, STD, DIFFERENCE = "scaling.mean", "scaling.std", "scaling.difference"


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation that scale a series; float32 holds them exactly.

    Args:
        mean: of the train part, in the user's units.
        std: of the train part, in the user's units.
    """

    mean: float
    std: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values in the user's units, of any shape, scaled to float32."""
        return np.asarray((values - self.mean) / self.std, dtype=np.float32)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Scaled values, of any shape, in the user's units."""
        return values * self.std + self.mean


NO_SCALE = Scale(0.0, 1.0)


def differences(values: np.ndarray, lag: int) -> np.ndarray:
    """Each value minus the one `lag` time steps before it.

    Args:
        values: (..., lag + N), over time.
        lag: 0 for the values themselves.

    Returns:
        (..., N)

    Examples:
        >>> differences(np.array([1.0, 4.0, 9.0, 16.0]), 1)
        array([3., 5., 7.])
        >>> differences(np.array([1.0, 4.0, 9.0, 16.0]), 3)
        array([15.])
    """
    return values[..., lag:] - values[..., :-lag] if lag else values


def integrate(before: np.ndarray, differenced: np.ndarray) -> np.ndarray:
    """The values that have these differences.

    Args:
        before: (..., lag), the values just before; none if the differences are values.
        differenced: (..., N), the differences over time.

    Returns:
        (..., N)

    Examples:
        >>> integrate(np.array([1.0]), np.array([3.0, 5.0, 7.0]))
        array([ 4.,  9., 16.])
    """
    lag, length = before.shape[-1], differenced.shape[-1]
    if not lag:
        return differenced
    rounds = -(-length // lag)  # `lag` series of differences from one round of steps to the next
    padding = [(0, 0)] * (differenced.ndim - 1) + [(0, rounds * lag - length)]
    terms = np.concatenate((before, np.pad(differenced, padding)), axis=-1)
    values = terms.reshape(*terms.shape[:-1], rounds + 1, lag).cumsum(axis=-2)
    return values.reshape(terms.shape)[..., lag : lag + length]
