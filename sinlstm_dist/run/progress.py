"""How far a run has come, and how it ended."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sinlstm_dist.metrics import Totals


@dataclass(frozen=True)
class Progress:
    """The position of a run between two optimizer steps.

    Args:
        step: optimizer steps so far.
        epoch: finished epochs.
        step_in_epoch: steps in the running epoch.
        totals: over the samples of the running epoch that were trained.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    totals: Totals = field(default_factory=Totals)

    def after_step(self, totals: Totals) -> "Progress":
        """The position after one more step, which had these totals."""
        return self.after_steps(1, self.totals + totals)

    def after_steps(self, number: int, totals: Totals) -> "Progress":
        """The position after more steps of the epoch, whose totals so far are `totals`."""
        return Progress(self.step + number, self.epoch, self.step_in_epoch + number, totals)

    def after_epoch(self) -> "Progress":
        """The position at the end of the running epoch."""
        return Progress(step=self.step, epoch=self.epoch + 1)

    def to_state(self) -> dict[str, Any]:
        """The fields of state.json that hold this position."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """The position that a state.json holds among its fields."""
        totals = Totals(**state["totals"])
        return cls(state["step"], state["epoch"], state["step_in_epoch"], totals)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        outcome: "completed", "stopped" or "failed".
        reason: why it ended so, for people.
        below_target: whether it failed because it ended below `target_accuracy`.
    """

    outcome: str
    reason: str
    below_target: bool = False
