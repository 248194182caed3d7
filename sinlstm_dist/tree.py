"""The fixed binary tree along which pieces' rows are added: neighbours first.

A *subtree* is named by the range of its pieces. In the tree over 6 pieces, 0-1, 2-3 and 4-5 are
added first, then 0-1 and 2-3, and at last 4-5. Processes that add the pieces of whole subtrees, and
then the subtrees' sums, make the additions of `tree_sum` and no others.
"""

from typing import Any

import numpy as np
import torch

Rows = Any  # a numpy array on the CPU, a torch tensor on a GPU: only what both can do is used


def tree_sum(rows: Rows) -> Rows:
    """Add `rows` (N, ...) over N, always in the same order: neighbours first.

    Each pass adds rows 0 and 1, 2 and 3, ...; a last one without a neighbour waits for the next.

    Args:
        rows: an array or a tensor.

    Returns:
        the sum, of shape (...).

    Examples:
        The sum of the same numbers depends on their order, so the order must be fixed:

        >>> rows = np.array([1e8, 1, -1e8, 1], dtype=np.float32)
        >>> float(tree_sum(rows))  # (1e8 + 1) + (-1e8 + 1)
        0.0
        >>> float(tree_sum(rows[[0, 2, 1, 3]]))  # (1e8 - 1e8) + (1 + 1)
        2.0
    """
    concatenate = np.concatenate if isinstance(rows, np.ndarray) else torch.cat
    while (number := len(rows)) > 1:
        pairs = rows[: number - 1 : 2] + rows[1::2]
        rows = concatenate((pairs, rows[-1:])) if number % 2 else pairs
    return rows[0]


class TreeSum:
    """Adds rows one by one along the tree, and keeps only the sums that wait for a neighbour.

    Args:
        num_pieces: leaves of the tree.
    """

    def __init__(self, num_pieces: int) -> None:
        self._num_pieces = num_pieces
        self._subtrees: list[range] = []
        self._sums: list[torch.Tensor] = []  # one per subtree, at most two per level of the tree

    def add(self, pieces: range, row: torch.Tensor, *, copy: bool = True) -> None:
        """Add the sum of a subtree, which begins where the one before it ended.

        Args:
            pieces: of the subtree; `range(3, 4)` is piece 3 alone.
            row: (G,).
            copy: whether the row's memory is needed for something else before `take`.
        """
        total = None
        while self._subtrees and _are_neighbours(self._subtrees[-1], pieces, self._num_pieces):
            pieces = range(self._subtrees.pop().start, pieces.stop)
            total = self._sums.pop().add_(row if total is None else total)
        self._subtrees.append(pieces)
        self._sums.append((row.clone() if copy else row) if total is None else total)

    def take(self) -> list[torch.Tensor]:
        """The sums of the largest whole subtrees, in order; begins again without them."""
        sums = self._sums
        self._subtrees, self._sums = [], []
        return sums


def subtrees(pieces: range, num_pieces: int) -> list[range]:
    """The largest whole subtrees among these pieces, of the tree over `num_pieces` pieces.

    >>> subtrees(range(3, 6), 6)
    [range(3, 4), range(4, 6)]
    """
    found: list[range] = []
    for piece in pieces:
        subtree = range(piece, piece + 1)
        while found and _are_neighbours(found[-1], subtree, num_pieces):
            subtree = range(found.pop().start, subtree.stop)
        found.append(subtree)
    return found


def _are_neighbours(left: range, right: range, num_pieces: int) -> bool:
    """Whether the tree adds these two, of which the right one begins where the left one ends."""
    width = len(left)
    is_left = left.start % (2 * width) == 0
    return is_left and right.stop == min(left.start + 2 * width, num_pieces)
