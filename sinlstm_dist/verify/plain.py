"""The built-in task in plain torch, in float64: nn.LSTM, the mean over the batch and momentum."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from sinlstm_dist.config import Config
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, Batch, SineDataset
from sinlstm_dist.job import Job
from sinlstm_dist.metrics import Totals
from sinlstm_dist.model import Predictor
from sinlstm_dist.plan import epoch_order
from sinlstm_dist.verify.alone import weights_vector
from sinlstm_dist.words import counted

# After so few steps, weights in float32 and float64 differ by less. A piece that is missing from a
# gradient, or in it twice, moves them a hundred times as far.
ROUNDING = 1e-4
BORDER = 1e-5  # errors so near the tolerance may be counted either way


def datasets(config: Config) -> tuple[SineDataset, SineDataset]:
    """All train and all test samples."""
    data = config.data
    make = functools.partial(
        SineDataset, window=data.window, period=data.period, noise=data.noise, seed=data.seed
    )
    return (
        make(size=data.train_size, stream=TRAIN_NOISE),
        make(size=data.test_size, stream=TEST_NOISE, phase=data.test_phase),
    )


def steps(job: Job, config: Config, *, num_steps: int) -> Tensor:
    """Take steps from the job's weights; returns those before, between and after, as one process
    alone does: (num_steps + 1, G)
    """
    model = _model(job, config)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    rows = [weights_vector(model)]
    for windows, targets in _batches(config, num_steps):
        loss = (model(windows.double()) - targets.double()).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, velocity, slope in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(config.optim.momentum).add_(slope)
                parameter.sub_(config.optim.lr * velocity)
        rows.append(weights_vector(model))
    return torch.stack(rows).to(next(job.task.model.parameters()).device)


@torch.no_grad()
def miscount(totals: Totals, data: SineDataset, job: Job, config: Config, what: str) -> list[str]:
    """How totals differ from those over all samples at once."""
    windows, targets = data[torch.arange(len(data)).numpy()]
    errors = (_model(job, config)(windows.double()) - targets.double()).abs()
    loss = float(errors.square().mean())
    tolerance = config.train.tolerance
    fewest, most = (int((errors < tolerance + border).sum()) for border in (-BORDER, BORDER))
    problems = []
    if totals.samples != len(data):
        problems.append(
            f"{what}: {counted(totals.samples, 'sample')} counted, recount {len(data):,}"
        )
    if not abs(totals.loss - loss) <= ROUNDING * loss:
        problems.append(f"{what}: loss {totals.loss:.6f}, recount {loss:.6f}")
    if totals.correct is None or not fewest <= totals.correct <= most:
        problems.append(f"{what}: {totals.correct} correct, recount {most}")
    return problems


def _model(job: Job, config: Config) -> Predictor:
    """A copy of the job's model that computes with nn.LSTM, in float64, on the CPU."""
    model = Predictor(hidden_size=config.model.hidden_size, num_layers=config.model.num_layers)
    model.load_state_dict(job.task.model.state_dict())
    return model.double()


def _batches(config: Config, num_steps: int) -> Iterator[Batch]:
    """Yield the whole batches of the first steps."""
    data, size = datasets(config)[0], config.train.global_batch_size
    for number in range(num_steps):
        epoch, step = divmod(number, -(-len(data) // size))
        order = epoch_order(seed=config.train.seed, epoch=epoch, size=len(data))
        yield data[order[step * size : (step + 1) * size]]
