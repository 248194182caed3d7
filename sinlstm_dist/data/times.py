"""The times of a series' values, and those that follow them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """The times of a column's values, in the file's form."""

    def text(self, index: int) -> str:
        """The time of one value, as the file writes it."""
        raise NotImplementedError

    def following(self, steps: int) -> list[str]:
        """The `steps` times after the last one, as the file would write them."""
        raise NotImplementedError
