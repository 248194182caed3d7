"""Check samples, gradients, weights and metrics against what each process computes alone."""

import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from sinlstm_dist.config import Config
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, Batch, SineDataset
from sinlstm_dist.gradient import OrderedGradient
from sinlstm_dist.job import Job, new_optimizer
from sinlstm_dist.metrics import Totals
from sinlstm_dist.model import Predictor
from sinlstm_dist.plan import epoch_order
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify.bench import Bench, Finding, is_large
from sinlstm_dist.words import counted

EPOCHS = 2  # for which samples are counted
STEPS, FEW_STEPS = 20, 4  # the second for a large model
# After so few steps, weights in float32 and float64 differ by less. A piece that is missing from a
# gradient, or in it twice, moves them a hundred times as far.
ROUNDING = 1e-4
BORDER = 1e-5  # errors so near the tolerance may be counted either way
SHOWN = 3  # wrong samples per message list


def check_data(bench: Bench) -> Finding:
    """In each epoch all processes together draw each sample exactly once."""
    job = bench.build()
    train_data, test_data = _datasets(bench.settings())
    problems = []
    for epoch in range(EPOCHS):
        job.train.sampler.start(epoch=epoch, step=0)
        drawn = _times_drawn(bench.world, job.train.loader, train_data)
        problems += _miscounted(drawn, f"train sample, epoch {epoch + 1}")
    problems += _miscounted(_times_drawn(bench.world, job.test.loader, test_data), "test sample")
    plan = job.train.plan
    measured = (
        f"each of {counted(plan.size, 'train sample')} drawn once in each of {EPOCHS} epochs, "
        f"{plan.num_samples(plan.num_steps - 1)} in the last batch of {plan.global_batch_size}; "
        f"each of {counted(len(test_data), 'test sample')} once"
    )
    return Finding(measured, problems)


def _datasets(config: Config) -> tuple[SineDataset, SineDataset]:
    """All train and all test samples."""
    data = config.data
    make = functools.partial(
        SineDataset, window=data.window, period=data.period, noise=data.noise, seed=data.seed
    )
    return (
        make(size=data.train_size, stream=TRAIN_NOISE),
        make(size=data.test_size, stream=TEST_NOISE, phase=data.test_phase),
    )


def _times_drawn(world: World, loader: Iterable[Batch], dataset: SineDataset) -> list[int]:
    """How often all processes together draw each sample, and at the end how often an unknown one.

    Noise makes all windows different, so the bytes of a window tell which sample it is.

    Collective: yes.
    """
    index = {dataset[i][0].numpy().tobytes(): i for i in range(len(dataset))}
    counts = torch.zeros(len(dataset) + 1, dtype=torch.int64, device=world.device)
    for windows, _ in loader:
        for window in windows.cpu():
            counts[index.get(window.numpy().tobytes(), len(dataset))] += 1
    return world.sum(counts).tolist()


def _miscounted(counts: list[int], what: str) -> list[str]:
    *known, unknown = counts
    wrong = [f"{what}: number {i} drawn {n} times" for i, n in enumerate(known) if n != 1]
    more = [f"{what}: {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    strange = [f"{what}: {unknown} drawn that are not in the data"] if unknown else []
    return [*wrong[:SHOWN], *more, *strange]


def check_weights(bench: Bench) -> Finding:
    """Steps on all processes give the weights that one process computes alone.

    They have the same bits with ordered reduction, and are the same up to rounding with the
    data-parallel wrapper.
    """
    world, config, job = bench.world, bench.settings(), bench.build()
    num_steps = FEW_STEPS if is_large(config) else STEPS
    is_exact = config.train.reduction == "ordered"
    alone = steps_alone(job, config, world, num_steps=num_steps)
    plain = _steps_in_plain_torch(job, config, num_steps=num_steps)
    shared = _steps(job, num_steps)
    everyones = world.gather(shared[None])  # (world_size, num_steps + 1, G)
    problems = [
        f"{bench.name(rank)} has other weights than rank 0 {_difference(theirs, everyones[0])}"
        for rank, theirs in enumerate(everyones)
        if _difference(theirs, everyones[0])
    ]
    if is_exact and (difference := _difference(shared, alone)):
        problems.append(f"other weights than one process alone computes {difference}")
    wrapped = _steps(bench.build({"train.reduction": "ddp"}), num_steps) if is_exact else shared
    apart = {
        "data-parallel wrapper": distance(wrapped[-1], alone[-1]),
        "plain torch in float64": distance(plain[-1], alone[-1]),
    }
    problems += [
        f"{what} and one process alone differ by {far:.1e}"
        for what, far in apart.items()
        if not far <= ROUNDING  # also nan
    ]
    within = ", ".join(f"{what} within {far:.0e}" for what, far in apart.items())
    alike = f"the same bits on all processes{' and on one alone' * is_exact}"
    return Finding(f"{counted(num_steps, 'step')}: {alike}; {within}", problems)


def _difference(weights: torch.Tensor, others: torch.Tensor) -> str:
    """From which step on two (steps, G) differ, and how far; "" if all bits are equal."""
    differing = (weights.view(torch.int32) != others.view(torch.int32)).any(dim=1)
    if not differing.any():
        return ""
    first = int(differing.nonzero()[0])
    return f"from step {first} on, by {distance(weights[first], others[first]):.1e} at first"


def distance(weights: torch.Tensor, others: torch.Tensor) -> float:
    """The largest absolute difference of two tensors."""
    return float((weights - others).abs().max())


def _steps(job: Job, num_steps: int) -> torch.Tensor:
    """Take steps of `job`; returns the weights before, between and after: (num_steps + 1, G)

    Collective: yes.
    """
    rows = [weights_vector(job.model)]
    for step, batch in _shares(job, num_steps):
        job.gradient(batch, step=step, stop=False)
        job.optimizer.step()
        rows.append(weights_vector(job.model))
    return torch.stack(rows)


def steps_alone(job: Job, config: Config, world: World, *, num_steps: int) -> torch.Tensor:
    """Take the same steps on this process alone; returns the weights as `_steps`.

    They start from the job's weights and use the same arithmetic.
    """
    model = copy.deepcopy(job.model)
    gradient = OrderedGradient(
        model,
        plan=dataclasses.replace(job.train.plan, world_size=1, rank=0),
        peers=Alone(device=world.device, num_threads=world.num_threads),
        tolerance=config.train.tolerance,
    )
    optimizer = new_optimizer(model, config)
    rows = [weights_vector(model)]
    for step, (windows, targets) in _whole_batches(config, num_steps):
        gradient((windows.to(world.device), targets.to(world.device)), step=step, stop=False)
        optimizer.step()
        rows.append(weights_vector(model))
    return torch.stack(rows)


def _steps_in_plain_torch(job: Job, config: Config, *, num_steps: int) -> torch.Tensor:
    """Take the same steps with nn.LSTM, the mean over the batch and momentum in plain torch."""
    model = _plain_model(job, config)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    rows = [weights_vector(model)]
    for _, (windows, targets) in _whole_batches(config, num_steps):
        loss = (model(windows.double()) - targets.double()).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, velocity, slope in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(config.optim.momentum).add_(slope)
                parameter.sub_(config.optim.lr * velocity)
        rows.append(weights_vector(model))
    return torch.stack(rows).float().to(next(job.model.parameters()).device)


@dataclasses.dataclass(frozen=True)
class Alone:
    """The `Peers` of a process that computes alone inside a larger world."""

    device: torch.device
    num_threads: int

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See Peers."""
        return rows

    def exchange(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """See Peers."""
        return rows[:, 0]


def _plain_model(job: Job, config: Config) -> Predictor:
    """A copy of the job's model that computes with nn.LSTM, in float64, on the CPU."""
    model = Predictor(hidden_size=config.model.hidden_size, num_layers=config.model.num_layers)
    model.load_state_dict(job.model.state_dict())
    return model.double()


def _shares(job: Job, num_steps: int) -> Iterator[tuple[int, Batch]]:
    """Yield the number of each of the first steps in its epoch, and this process's share."""
    in_epoch = job.train.plan.num_steps
    for epoch in range(-(-num_steps // in_epoch)):
        for step, batch in job.train.batches(epoch=epoch):
            if epoch * in_epoch + step < num_steps:
                yield step, batch


def _whole_batches(config: Config, num_steps: int) -> Iterator[tuple[int, Batch]]:
    """Yield the number of each of the first steps in its epoch, and the whole batch."""
    dataset, size = _datasets(config)[0], config.train.global_batch_size
    for number in range(num_steps):
        epoch, step = divmod(number, -(-len(dataset) // size))
        order = epoch_order(seed=config.train.seed, epoch=epoch, size=len(dataset))
        yield step, dataset[order[step * size : (step + 1) * size]]


def weights_vector(model: nn.Module) -> torch.Tensor:
    """A copy of all weights as one vector: (G,)"""
    return parameters_to_vector(model.parameters()).detach().clone()


def check_metrics(bench: Bench) -> Finding:
    """Loss and accuracy equal those that one process counts over all samples."""
    config, job = bench.settings(), bench.build()
    train, wrapped = _train_totals(job), _train_totals(bench.build({"train.reduction": "ddp"}))
    test = bench.parts.totals_over(
        job.model, job.test, peers=bench.world, tolerance=config.train.tolerance
    )  # fmt: skip
    train_data, test_data = _datasets(config)
    problems = [
        *_miscount(train, train_data, job, config, "train"),
        *_miscount(wrapped, train_data, job, config, "train, data-parallel wrapper"),
        *_miscount(test, test_data, job, config, "test"),
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
    for step, batch in job.train.batches():
        totals += job.gradient(batch, step=step, stop=False).totals
    return totals


@torch.no_grad()
def _miscount(
    totals: Totals, dataset: SineDataset, job: Job, config: Config, what: str
) -> list[str]:
    """How totals differ from those of plain torch in float64 over all samples at once."""
    windows, targets = dataset[torch.arange(len(dataset)).numpy()]
    errors = (_plain_model(job, config)(windows.double()) - targets.double()).abs()
    loss = float(errors.square().mean())
    tolerance = config.train.tolerance
    fewest, most = (int((errors < tolerance + border).sum()) for border in (-BORDER, BORDER))
    problems = []
    if totals.samples != len(dataset):
        problems.append(
            f"{what}: {counted(totals.samples, 'sample')} counted, recount {len(dataset):,}"
        )
    if not abs(totals.loss - loss) <= ROUNDING * loss:
        problems.append(f"{what}: loss {totals.loss:.6f}, recount {loss:.6f}")
    if totals.correct is None or not fewest <= totals.correct <= most:
        problems.append(f"{what}: {totals.correct} correct, recount {most}")
    return problems
