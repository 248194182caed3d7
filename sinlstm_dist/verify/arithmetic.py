"""All processes compute the same bits, in the very configuration that will be trained."""

from sinlstm_dist.verify.claim import Bench, Finding


def check_arithmetic(bench: Bench) -> Finding:
    """What a run compares before its first step is the same on all processes."""
    job = bench.parts.build(bench.config, bench.world)  # raises if the initial weights differ
    job.agreement.check_start()
    reduction = bench.config.train.reduction
    path = f"{job.recurrence.name} recurrence ({job.recurrence.reason}), {reduction} reduction"
    if bench.world.size == 1:
        return Finding(f"one process: nothing to compare; {path}")
    exact = ", gradients, optimizer steps and test results"
    if reduction == "ddp":
        exact = " and optimizer steps"
    return Finding(f"weights{exact} have the same bits on all processes; {path}")
