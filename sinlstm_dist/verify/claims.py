"""The claims about processes that train correctly, in the order in which they are checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sinlstm_dist.verify.bench import Asked, Bench, Finding
from sinlstm_dist.verify.collectives import check_collectives
from sinlstm_dist.verify.known import check_golden, check_record
from sinlstm_dist.verify.running import check_checkpoint, check_learning
from sinlstm_dist.verify.samples import check_data
from sinlstm_dist.verify.speed import check_speed
from sinlstm_dist.verify.training import check_metrics, check_weights
from sinlstm_dist.verify.world import check_arithmetic, check_world


@dataclass(frozen=True)
class Claim:
    """Something that is true of processes that train correctly.

    Args:
        name: a word or two.
        check: called by every process; an error that it raises ends the verification.
        look_at: where to look when it fails.
        needs: claims that must hold for the check to make sense.
    """

    name: str
    check: Callable[[Bench], Finding]
    look_at: str
    needs: Sequence[str] = ("World",)


ARITHMETIC, GRADIENTS = "Arithmetic", "Gradients and weights"
CLAIMS = (
    Claim(
        "World", check_world, needs=(),
        look_at="the launcher's number of processes and address; the environment of each node",
    ),
    Claim(
        "Collectives", check_collectives,
        look_at="network, its driver, NCCL or gloo; GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
    ),
    Claim(
        ARITHMETIC, check_arithmetic, needs=("World", "Collectives"),
        look_at="that node's CPU or GPU, its libraries and its environment",
    ),
    Claim(
        "Data", check_data, needs=("World", ARITHMETIC),
        look_at="data/steps.py and plan.py; a sampler or loader that you have put there",
    ),
    Claim(
        GRADIENTS, check_weights, needs=("World", "Collectives", ARITHMETIC, "Data"),
        look_at="gradient.py; nodes with other CPUs (SINLSTM_DIST_INSTRUCTION_SET) or GPUs; "
        "failing memory",
    ),
    Claim(
        "Metrics", check_metrics, needs=("World", "Collectives", ARITHMETIC, "Data"),
        look_at="metrics.py and reduction.totals_over: sums and counts, divided once",
    ),
    Claim(
        "Checkpoint", check_checkpoint, needs=("World", "Collectives", ARITHMETIC, "Data"),
        look_at="the file system of ./runs on each node; run/checkpoint.py and run/folder.py; "
        "failing memory",
    ),
    Claim(
        "Golden", check_golden, needs=("World", "Collectives", ARITHMETIC, GRADIENTS),
        look_at="the compiler of the kernel; the CPU; an edited package",
    ),
    Claim(
        "Learning", check_learning, needs=(ARITHMETIC, GRADIENTS),
        look_at="model.py and optim.py; the versions of torch and numpy",
    ),
    Claim(
        "Speed", check_speed, needs=("World", ARITHMETIC),
        look_at="what else runs on that node; its threads, its clock rate, its temperature",
    ),
)  # fmt: skip
RECORD = Claim(
    "Record", check_record,
    look_at="that node's GPU or CPU and its memory; its driver and libraries",
)  # fmt: skip


def claims(asked: Asked) -> Sequence[Claim]:
    """Those to check. Processes are recorded only if the others hold, however fast they are."""
    if asked.record:
        needs = [claim.name for claim in CLAIMS if claim.check is not check_speed]
        return *CLAIMS, replace(RECORD, needs=needs)
    return (*CLAIMS, RECORD) if asked.against else CLAIMS
