"""Which processes differ from the others."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A fact that is not the same on all processes.

    Args:
        fact: its name.
        ranks: the processes that differ from most others, or from rank 0 if there is no majority.
        reference: the rank of one of the others.
    """

    fact: str
    ranks: Sequence[int]
    reference: int


def first_difference(
    names: Sequence[str], everyones: Sequence[Sequence[Hashable]]
) -> Difference | None:
    """Find the first fact that is not the same on all processes, if there is one.

    Args:
        names: of the facts.
        everyones: each process's facts, in the order of `names`; by rank.
    """
    for name, values in zip(names, zip(*everyones, strict=True), strict=True):
        groups: dict[Hashable, list[int]] = {}
        for rank, value in enumerate(values):
            groups.setdefault(value, []).append(rank)
        most = max(groups.values(), key=len)  # of several largest, the first: rank 0's
        if others := [rank for rank in range(len(values)) if rank not in most]:
            return Difference(name, ranks=others, reference=most[0])
    return None
