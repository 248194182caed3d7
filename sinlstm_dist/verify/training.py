"""Check gradients, weights and metrics against what each process computes alone."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sinlstm_dist.agreement import digest
from sinlstm_dist.job import Job
from sinlstm_dist.metrics import Totals
from sinlstm_dist.processes.world import World
from sinlstm_dist.run.progress import Progress
from sinlstm_dist.stepping import new_stepping
from sinlstm_dist.verify import plain
from sinlstm_dist.verify.alone import (
    JobAlone,
    distance,
    first_batches,
    gradient_vector,
    weights_vector,
)
from sinlstm_dist.verify.bench import Bench, Finding, is_large
from sinlstm_dist.words import counted

STEPS, OWN_STEPS, FEW_STEPS = 20, 12, 4  # of the built-in, the user's own and a large model
# Samples that rounding may count either way with the data-parallel wrapper.
BORDERLINE = 0.01
OWN_LOOK_AT = (
    "what your model or `totals` keeps from one batch to the next; nodes with other CPUs or GPUs; "
    "failing memory"
)


def check_weights(bench: Bench) -> Finding:
    """Steps on all processes give the weights that one process computes alone.

    They have the same bits with ordered reduction, and are the same up to rounding with the
    data-parallel wrapper.
    """
    if bench.is_own:
        return _check_own_weights(bench)
    world, config, job = bench.world, bench.settings(), bench.build()
    num_steps = most_steps(bench)
    is_exact = config.train.reduction == "ordered"
    alone = torch.stack(list(JobAlone(job, config, world).steps(num_steps)))
    in_float64 = plain.steps(job, config, num_steps=num_steps)
    shared = torch.stack(list(_steps(job, num_steps, world)))
    problems = _differing(bench, shared)
    wrapped = shared
    if is_exact:
        if difference := _difference(shared, alone):
            problems.append(f"other weights than one process alone computes {difference}")
        *_, last = _steps(bench.build({"train.reduction": "ddp"}), num_steps, world)
        wrapped = last[None]
    apart = {
        "ddp reduction" if bench.is_one else "data-parallel wrapper": distance(
            wrapped[-1], alone[-1]
        ),
        "plain torch in float64": distance(in_float64[-1], alone[-1]),
    }
    problems += [
        f"{what} and one process alone differ by {far:.1e}"
        for what, far in apart.items()
        if not far <= plain.ROUNDING  # also nan
    ]
    within = ", ".join(f"{what} within {far:.0e}" for what, far in apart.items())
    alike = _alike(bench, is_exact=is_exact)
    return Finding("; ".join([f"{counted(num_steps, 'step')}{alike}", within]), problems)


def most_steps(bench: Bench) -> int:
    """How many steps a check takes with this configuration."""
    if bench.is_own:
        return OWN_STEPS
    return FEW_STEPS if is_large(bench.settings()) else STEPS


def _alike(bench: Bench, *, is_exact: bool) -> str:
    """What had the same bits as the steps; "" if nothing had."""
    if bench.is_one:
        return ": the same bits as without a data loader" * is_exact
    return f": the same bits on all processes{' and on one alone' * is_exact}"


def _check_own_weights(bench: Bench) -> Finding:
    """Compare the weights of the user's own task with those of one process alone.

    The data-parallel wrapper's gradients are compared, not its weights: an optimizer may turn a
    rounded gradient into another step.
    """
    config, job = bench.settings(), bench.build()
    alone = JobAlone(job, config, bench.world)
    is_exact = config.train.reduction == "ordered"
    measured = f"{counted(OWN_STEPS, 'step')}{_alike(bench, is_exact=is_exact)}"
    if is_exact:
        steps = _steps(job, OWN_STEPS, bench.world)
        pairs = list(_digested(zip(steps, alone.steps(OWN_STEPS), strict=True)))
        problems = _apart(bench, [mine for mine, _ in pairs])
        if differing := [step for step, (mine, other) in enumerate(pairs) if mine != other]:
            problems.append(
                f"other weights than one process alone computes from step {differing[0]} on"
            )
        return Finding(measured, problems, look_at=OWN_LOOK_AT)
    digests, apart = _steps_and_distances(job, alone, OWN_STEPS)
    problems = _apart(bench, digests) + [
        f"the gradient of step {step} differs from one process alone's by {far:.1e} of its largest"
        for step, far in enumerate(apart, start=1)
        if not far <= plain.ROUNDING  # also nan
    ]
    measured += f"; gradients of one alone within {max(apart):.0e}"
    return Finding(measured, problems, look_at=OWN_LOOK_AT)


def _digested(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[str, str]]:
    """Digests in place of weights: those of all steps may not fit into memory."""
    return ((digest(mine), digest(other)) for mine, other in pairs)


def _apart(bench: Bench, digests: list[str]) -> list[str]:
    """The processes whose weights' digests differ from those of rank 0. Collective: yes."""
    everyones = bench.world.gather_json(digests)
    return [
        f"{bench.name(rank)} has other weights than rank 0 from step {differing[0]} on"
        for rank, theirs in enumerate(everyones)
        if (differing := [step for step, d in enumerate(theirs) if d != everyones[0][step]])
    ]


def _steps_and_distances(
    job: Job, alone: JobAlone, num_steps: int
) -> tuple[list[str], list[float]]:
    """Take steps of `job`; returns the weights' digests, and each gradient's largest distance
    from that of one process alone, as a share of its largest number.

    Collective: yes.
    """
    digests, apart = [digest(weights_vector(job.task.model))], []
    shares = first_batches(job.train, num_steps, whole=False)
    batches = first_batches(alone.train, num_steps, whole=False)
    for number, ((epoch, step, share), (_, _, batch)) in enumerate(
        zip(shares, batches, strict=True)
    ):
        alone.model.load_state_dict(job.task.model.state_dict())
        alone.gradient(batch, epoch=epoch, step=step, stop=False)
        job.gradient(share, epoch=epoch, step=step, stop=False)
        expected = gradient_vector(alone.model)
        far = distance(gradient_vector(job.task.model), expected)
        apart.append(far / float(expected.abs().max()) if far else 0.0)
        job.update(number)
        digests.append(digest(weights_vector(job.task.model)))
    return digests, apart


def _steps(job: Job, num_steps: int, world: World) -> Iterator[Tensor]:
    """Take steps of `job` as training does; yields the weights before, between and after: (G,) each

    Collective: yes.
    """
    yield weights_vector(job.task.model)
    batches = first_batches(job.train, num_steps, whole=job.gradient.is_whole)
    make_steps = new_stepping(job, world)
    for number, (epoch, step, batch) in enumerate(batches):
        make_steps(batch, Progress(number, epoch, step), most=1, stop=False)
        yield weights_vector(job.task.model)


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
    if bench.is_own:
        return _check_own_metrics(bench)
    config, job = bench.settings(), bench.build()
    train, wrapped = _train_totals(job), _train_totals(bench.build({"train.reduction": "ddp"}))
    test = bench.parts.totals_over(job.rows, job.test, peers=bench.world)
    train_data, test_data = plain.datasets(config)
    problems = [
        *plain.miscount(train, train_data, job, config, "train"),
        *plain.miscount(wrapped, train_data, job, config, "train, data-parallel wrapper"),
        *plain.miscount(test, test_data, job, config, "test"),
    ]
    return Finding(f"{_measured(train, test)}: as recounted", problems)


def _check_own_metrics(bench: Bench) -> Finding:
    """Compare the user's totals with those of one process alone, which counts the same pieces."""
    config, job = bench.settings(), bench.build()
    alone = JobAlone(job, config, bench.world)
    test = bench.parts.totals_over(job.rows, job.test, peers=bench.world)
    recounted_test = alone.count_test()  # before the train samples, which may change buffers
    train, recounted = _train_totals(job), alone.count_train()
    is_exact = config.train.reduction == "ordered"
    problems = [
        *_miscount(train, recounted, "train", is_exact=is_exact),
        *_miscount(test, recounted_test, "test", is_exact=is_exact),
    ]
    how = "the same bits" if is_exact else f"within {plain.ROUNDING:.0e}"
    who = "counted without a data loader" if bench.is_one else "one process alone counts"
    measured = f"{_measured(train, test)}: as {who}, {how}"
    return Finding(measured, problems, look_at=OWN_LOOK_AT)


def _miscount(totals: Totals, recount: Totals, what: str, *, is_exact: bool) -> list[str]:
    """How totals differ from those of one process alone."""
    if totals == recount:
        return []
    pairs = (totals.loss_sum, recount.loss_sum), (totals.divided_by, recount.divided_by)
    are_near = all(math.isclose(*pair, rel_tol=plain.ROUNDING) for pair in pairs)
    miscounted = abs((totals.correct or 0) - (recount.correct or 0))
    is_near = are_near and miscounted <= BORDERLINE * totals.divided_by
    if not is_exact and totals.samples == recount.samples and is_near:
        return []
    return [f"{what}: {_in_full(totals)}, one process alone {_in_full(recount)}"]


def _in_full(totals: Totals) -> str:
    correct = "" if totals.correct is None else f"{totals.correct:,.9g} correct, "
    divisor = "" if totals.divisor is None else f" divided by {totals.divisor:,.9g}"
    return f"loss {totals.loss:.9g}{divisor}, {correct}{counted(totals.samples, 'sample')}"


def _measured(train: Totals, test: Totals) -> str:
    def accuracy(totals: Totals) -> str:
        return "" if totals.accuracy is None else f"{totals.accuracy:.6f}"

    return (
        f"train loss {train.loss:.6f}{' and accuracy ' * (train.correct is not None)}"
        f"{accuracy(train)} over {counted(train.samples, 'sample')}, test {test.loss:.6f}"
        f"{' and ' * (test.correct is not None)}{accuracy(test)} over {test.samples:,}"
    )


def _train_totals(job: Job) -> Totals:
    """The totals of the first epoch with the initial weights. Collective: yes."""
    totals = Totals()
    for step, batch in job.train.batches(whole=job.gradient.is_whole):
        totals += job.gradient(batch, epoch=0, step=step, stop=False).totals
    return totals
