"""Loss and accuracy as totals over samples, divided once, at the end.

A mean of means is wrong if parts differ in size; sums and counts are always right.
"""

import math
from dataclasses import dataclass

NUM_TOTALS = 3  # numbers in a Totals


@dataclass(frozen=True)
class Totals:
    """What was added up over some samples.

    Args:
        squared_error: sum over samples of (prediction - target)**2.
        correct: predictions within the tolerance of their target.
        samples: number of samples.

    Examples:
        Two parts of different sizes, as of two processes:

        >>> first = Totals(squared_error=2.0, correct=3, samples=6)
        >>> whole = first + Totals(squared_error=0.0, correct=2, samples=2)
        >>> whole.loss, whole.accuracy
        (0.25, 0.625)
    """

    squared_error: float = 0.0
    correct: int = 0
    samples: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.squared_error + other.squared_error,
            self.correct + other.correct,
            self.samples + other.samples,
        )

    @property
    def loss(self) -> float:
        """Mean squared error over samples."""
        return self.squared_error / self.samples if self.samples else math.nan

    @property
    def accuracy(self) -> float:
        """Share of samples whose prediction is within the tolerance, 0 to 1."""
        return self.correct / self.samples if self.samples else math.nan

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.squared_error)
