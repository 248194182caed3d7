"""Loss and accuracy as totals over samples, divided once, at the end.

A mean of means is wrong if parts differ in size; sums and counts are always right.
"""

import math
from dataclasses import dataclass

from sinlstm_dist.errors import RunError

NUM_TOTALS = 3  # numbers in a Totals


@dataclass(frozen=True)
class Totals:
    """What was added up over some samples.

    Args:
        loss_sum: sum of the loss over samples; of (prediction - target)**2 for the built-in task.
        correct: number of correct predictions, or the sum of their weights; None if the task
            counts none.
        samples: number of samples.
        divisor: what loss and correct predictions are divided by; None for the samples.

    Examples:
        Two parts of different sizes, as of two processes:

        >>> first = Totals(loss_sum=2.0, correct=3, samples=6)
        >>> whole = first + Totals(loss_sum=0.0, correct=2, samples=2)
        >>> whole.loss, whole.accuracy
        (0.25, 0.625)
    """

    loss_sum: float = 0.0
    correct: float | None = 0
    samples: int = 0
    divisor: float | None = None

    def __add__(self, other: "Totals") -> "Totals":
        correct = divisor = None
        if self.correct is not None and other.correct is not None:
            correct = self.correct + other.correct
        if self.divisor is not None or other.divisor is not None:
            divisor = self.divided_by + other.divided_by
        samples = self.samples + other.samples
        return Totals(self.loss_sum + other.loss_sum, correct, samples, divisor)

    @property
    def loss(self) -> float:
        """Mean loss over samples, or whatever else the divisor counts."""
        return self.loss_sum / self.divided_by if self.divided_by else math.nan

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions, 0 to 1; None if they are not counted."""
        if self.correct is None:
            return None
        return self.correct / self.divided_by if self.divided_by else math.nan

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss)

    def check(self, samples: str) -> None:
        """Check what a user's task has counted; the loss has a check of its own.

        Args:
            samples: over which these are the totals.

        Raises:
            RunError: there is nothing to divide by, or the correct predictions are no number.
        """
        if not self.divided_by:
            raise RunError(
                f"totals returned the divisor 0 for all {samples}: nothing to divide the loss by"
            )
        if not math.isfinite(self.correct or 0):
            raise RunError(f"totals counted {self.correct} correct predictions in the {samples}")

    @property
    def divided_by(self) -> float:
        """What loss and correct predictions are divided by: the samples, or the divisor."""
        return self.samples if self.divisor is None else self.divisor
