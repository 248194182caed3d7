"""Check gradients, weights and metrics against what each process computes alone."""

import torch
from torch import Tensor

from sinlstm_dist.job import Job
from sinlstm_dist.metrics import Totals
from sinlstm_dist.verify import plain
from sinlstm_dist.verify.alone import JobAlone, distance, first_batches, weights_vector
from sinlstm_dist.verify.bench import Bench, Finding, is_large
from sinlstm_dist.words import counted

STEPS, OWN_STEPS, FEW_STEPS = (
    20,
    12,
    4,
)  # the second for the user's own task, the third for a large model


def check_weights(bench: Bench) -> Finding:
    """Steps on all processes give the weights that one process computes alone.

    They have the same bits with ordered reduction, and are the same up to rounding with the
    data-parallel wrapper.
    """
    world, config, job = bench.world, bench.settings(), bench.build()
    num_steps = FEW_STEPS if is_large(config) else STEPS
    is_exact = config.train.reduction == "ordered"
    alone = JobAlone(job, config, world).steps(num_steps)
    in_float64 = plain.steps(job, config, num_steps=num_steps)
    shared = _steps(job, num_steps)
    problems = _differing(bench, shared)
    if is_exact and (difference := _difference(shared, alone)):
        problems.append(f"other weights than one process alone computes {difference}")
    wrapped = _steps(bench.build({"train.reduction": "ddp"}), num_steps) if is_exact else shared
    apart = {
        "data-parallel wrapper": distance(wrapped[-1], alone[-1]),
        "plain torch in float64": distance(in_float64[-1], alone[-1]),
    }
    problems += [
        f"{what} and one process alone differ by {far:.1e}"
        for what, far in apart.items()
        if not far <= plain.ROUNDING  # also nan
    ]
    within = ", ".join(f"{what} within {far:.0e}" for what, far in apart.items())
    alike = f"the same bits on all processes{' and on one alone' * is_exact}"
    return Finding(f"{counted(num_steps, 'step')}: {alike}; {within}", problems)


def _steps(job: Job, num_steps: int) -> Tensor:
    """Take steps of `job`; returns the weights before, between and after: (num_steps + 1, G)

    Collective: yes.
    """
    rows = [weights_vector(job.task.model)]
    batches = first_batches(job.train, num_steps, whole=job.gradient.is_whole)
    for number, (epoch, step, batch) in enumerate(batches):
        job.gradient(batch, epoch=epoch, step=step, stop=False)
        job.update(number)
        rows.append(weights_vector(job.task.model))
    return torch.stack(rows)


def _differing(bench: Bench, weights: Tensor) -> list[str]:
    """The processes whose weights (steps, G) differ from those of rank 0. Collective: yes."""
    everyones = bench.world.gather(weights[None])  # (world_size, steps, G)
    differences = [_difference(theirs, everyones[0]) for theirs in everyones]
    return [
        f"{bench.name(rank)} has other weights than rank 0 {difference}"
        for rank, difference in enumerate(differences)
        if difference
    ]


def _difference(weights: Tensor, others: Tensor) -> str:
    """From which step on two (steps, G) differ, and how far; "" if all bits are equal."""
    differing = (weights.view(torch.int32) != others.view(torch.int32)).any(dim=1)
    if not differing.any():
        return ""
    first = int(differing.nonzero()[0])
    return f"from step {first} on, by {distance(weights[first], others[first]):.1e} at first"


def check_metrics(bench: Bench) -> Finding:
    """Loss and accuracy equal those that one process counts over all samples."""
    config, job = bench.settings(), bench.build()
    train, wrapped = _train_totals(job), _train_totals(bench.build({"train.reduction": "ddp"}))
    test = bench.parts.totals_over(job.rows, job.test, peers=bench.world)
    train_data, test_data = plain.datasets(config)
    problems = [
        *plain.miscount(train, train_data, job, config, "train"),
        *plain.miscount(wrapped, train_data, job, config, "train, data-parallel wrapper"),
        *plain.miscount(test, test_data, job, config, "test"),
    ]
    measured = (
        f"train loss {train.loss:.6f} and accuracy {train.accuracy:.6f} over "
        f"{counted(train.samples, 'sample')}, test {test.loss:.6f} and {test.accuracy:.6f} over "
        f"{test.samples:,}: as recounted"
    )
    return Finding(measured, problems)


def _train_totals(job: Job) -> Totals:
    """The totals of the first epoch with the initial weights. Collective: yes."""
    totals = Totals()
    for step, batch in job.train.batches(whole=job.gradient.is_whole):
        totals += job.gradient(batch, epoch=0, step=step, stop=False).totals
    return totals
