"""Check that collectives are exact in every size and type in use, and measure how fast they are."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.bench import Bench, Finding

SIZES = (4, 4 << 10, 256 << 10, 4 << 20, 64 << 20)  # bytes of the result
PERIOD = 251  # a prime, so that a value in a wrong place differs from the right one
LATE_S = 0.05  # the last process comes to a barrier that much later
REPEATED_BYTES = 1 << 20  # smaller results are timed several times, and the best time counts


def as_text(row: Mapping[str, float]) -> dict[str, str]:
    """A row of `check_collectives`'s figures as text: a size, and each operation's speed."""
    size, texts = int(row["bytes"]), {}
    for operation in OPERATIONS:
        seconds = row[f"{operation.name}_s"]
        texts[f"{operation.name}\nms   MB/s"] = f"{1000 * seconds:.2f} {size / seconds / 1e6:6.0f}"
    return {"size": _bytes(size), **texts}


@dataclass(frozen=True)
class Operation:
    """A collective and the types in which the package uses it.

    Args:
        name: for the user.
        run: does it with this process's values.
        expected: computes its result from the values of all processes.
        dtypes: of the values.
        is_parted: whether the result has a part from each process.
        prepare: makes what is sent from this process's values.
    """

    name: str
    run: Callable[[World, torch.Tensor], torch.Tensor]
    expected: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    dtypes: Sequence[torch.dtype]
    is_parted: bool = False
    prepare: Callable[[World, torch.Tensor], torch.Tensor] = lambda _, values: values


def _one_row_for_each(world: World, values: torch.Tensor) -> torch.Tensor:
    """(1, world_size, W): the values, with a receiver's rank added to what is for it."""
    return torch.stack([values + rank for rank in range(world.size)])[None]


OPERATIONS = (
    Operation(
        "all-reduce",
        lambda world, values: world.sum(values),
        lambda inputs: torch.stack(tuple(inputs)).sum(dim=0, dtype=inputs[0].dtype),
        (torch.float32, torch.float64, torch.int64),
    ),
    Operation(
        "all-gather",
        lambda world, values: world.gather(values),
        lambda inputs: torch.cat(tuple(inputs)),
        (torch.float32, torch.float64, torch.uint8, torch.int64),
        is_parted=True,
    ),
    Operation(
        "all-to-all",
        lambda world, rows: world.exchange(rows, [1] * world.size).flatten().sub_(world.rank),
        lambda inputs: torch.cat(tuple(inputs)),
        (torch.float32,),
        is_parted=True,
        prepare=_one_row_for_each,
    ),
    Operation(
        "broadcast",
        lambda world, values: world.broadcast(values.clone()),
        lambda inputs: inputs[0],
        (torch.float32, torch.uint8, torch.int64),
    ),
)


def check_collectives(bench: Bench) -> Finding:
    """The collectives in use are exact, and a barrier holds."""
    world = bench.world
    if bench.is_one:
        return Finding("one process: nothing to exchange", applies=False)
    problems, rows = [], []
    for size in SIZES:
        row: dict[str, float] = {"bytes": size}
        for operation in OPERATIONS:
            for dtype in operation.dtypes:
                is_exact, seconds = _try(world, operation, dtype, size=size)
                if not is_exact:
                    problems.append(f"{operation.name} of {_bytes(size)} {dtype} is wrong")
                if dtype == torch.float32:
                    row[f"{operation.name}_s"] = seconds
        rows.append(row)
    problems += _check_barrier(bench)
    names = ", ".join(operation.name for operation in OPERATIONS)
    types = len({dtype for operation in OPERATIONS for dtype in operation.dtypes})
    measured = (
        f"{names} exact from {_bytes(SIZES[0])} to {_bytes(SIZES[-1])} in {types} types; "
        "barrier holds"
    )
    return Finding(measured, problems, rows)


def _try(
    world: World, operation: Operation, dtype: torch.dtype, *, size: int
) -> tuple[bool, float]:
    """Whether a result of `size` bytes is exact on this process, and the seconds that it took.

    Collective: yes.
    """
    count = max(1, size // dtype.itemsize)
    if operation.is_parted:
        count = max(1, count // world.size)
    patterns = [_pattern(rank, dtype).to(world.device) for rank in range(world.size)]
    mine = operation.prepare(world, _tiled(patterns[world.rank], count))
    times = []
    for _ in range(1 if size > REPEATED_BYTES else 5):
        world.wait_for_everyone()
        started = time.perf_counter()
        result = operation.run(world, mine)
        times.append(time.perf_counter() - started)
    if operation.is_parted:
        parts = result.split(count)
        is_exact = all(map(_is_tiled, parts, patterns)) and len(parts) == world.size
    else:
        is_exact = _is_tiled(result, operation.expected(patterns)) and len(result) == count
    return is_exact, min(times)


def _pattern(rank: int, dtype: torch.dtype) -> torch.Tensor:
    """(PERIOD,) small whole numbers, exact in each type, different for each of PERIOD ranks."""
    return torch.arange(PERIOD).roll(rank).to(dtype)


def _tiled(pattern: torch.Tensor, count: int) -> torch.Tensor:
    """The pattern repeated: (count,)"""
    return pattern.repeat(-(-count // PERIOD))[:count]


def _is_tiled(values: torch.Tensor, pattern: torch.Tensor) -> bool:
    whole = len(values) // PERIOD * PERIOD
    rest = len(values) - whole
    return bool(
        torch.all(values[:whole].view(-1, PERIOD) == pattern)
        and torch.equal(values[whole:], pattern[:rest])
    )


def _check_barrier(bench: Bench) -> list[str]:
    """Check that no process leaves a barrier before the last one, which is late, reaches it.

    Only processes on one host are compared: the monotonic clock is that of the host.

    Collective: yes.
    """
    world = bench.world
    world.wait_for_everyone()
    if world.rank == world.size - 1:
        time.sleep(LATE_S)
    came = time.monotonic()
    world.wait_for_everyone()
    times = world.gather_json([came, time.monotonic()])
    return [
        f"{bench.name(early)} left a barrier before {bench.name(late)} reached it"
        for early, (_, left) in enumerate(times)
        for late, (came, _) in enumerate(times)
        if world.hosts[early] == world.hosts[late] and left < came
    ]


def _bytes(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"
