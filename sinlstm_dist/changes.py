"""The changes of a series over n time steps, and the values that have these changes.

The model of a run with `data.difference = n` reads and predicts changes; everything that a user
gives and gets is values.
"""

import numpy as np


def changes_of(values: np.ndarray, n: int) -> np.ndarray:
    """The change of each value since n time steps before.

    Args:
        values: (..., n + N), over time.
        n: 0 for the values themselves.

    Returns:
        (..., N)

    Examples:
        >>> changes_of(np.array([1.0, 4.0, 9.0, 16.0]), 1)
        array([3., 5., 7.])
        >>> changes_of(np.array([1.0, 4.0, 9.0, 16.0]), 3)
        array([15.])
    """
    return values[..., n:] - values[..., :-n] if n else values


def add_changes(before: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """The values that have these changes over n time steps.

    Args:
        before: (..., n), the values just before; n = 0 if the changes are the values themselves.
        changes: (..., N), over time.

    Returns:
        (..., N)

    Examples:
        >>> add_changes(np.array([1.0]), np.array([3.0, 5.0, 7.0]))
        array([ 4.,  9., 16.])
    """
    n, length = before.shape[-1], changes.shape[-1]
    if not n:
        return changes
    rounds = -(-length // n)  # n series of changes from one round of n steps to the next
    padding = [(0, 0)] * (changes.ndim - 1) + [(0, rounds * n - length)]
    steps = np.concatenate((before, np.pad(changes, padding)), axis=-1)
    values = steps.reshape(*steps.shape[:-1], rounds + 1, n).cumsum(axis=-2)
    return values.reshape(steps.shape)[..., n : n + length]
