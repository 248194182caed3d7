"""Look at a user's task before its first step: what it counts, and what cannot keep its promise.

The bits of a run do not depend on the number of processes only if a piece's row is a function of
the piece's samples, its random numbers and the weights.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinlstm_dist.blame import Refused, blamed
from sinlstm_dist.config import Config
from sinlstm_dist.data.steps import Split
from sinlstm_dist.piece_rows import REHEARSAL, PieceRows, Place
from sinlstm_dist.processes.world import World
from sinlstm_dist.randomness import states
from sinlstm_dist.task import Counts, Task, counts_of

DDP = 'or set train.reduction="ddp" (the bits then depend on the number of processes)'
MOST_SAMPLES = 16  # for the check that losses are sums


@dataclass(frozen=True)
class Probed:
    """What a task was seen to do with one piece.

    Args:
        counts: what its `totals` returns.
        has_unused: whether the loss does not depend on some parameter.
        fits_threads: whether pieces may be computed on threads: these share the generators of
            random numbers, and the attributes of the modules.
    """

    counts: Counts = field(default_factory=Counts)
    has_unused: bool = False
    fits_threads: bool = True


def probe(task: Task, split: Split, config: Config, world: World) -> Probed:
    """Compute one piece of the train data twice, on every process the same.

    Args:
        split: of the train data.
        config: of the run.

    Raises:
        ConfigError: the task's code fails, or it cannot keep the promise.
    """
    is_exact = config.train.reduction == "ordered"
    size = split.plan.all_sizes(0)[0]
    with blamed(config.task.build), _kept_buffers(task.model) as changed_buffers:
        _check_state(task.model)
        if is_exact:
            _check_float32(task.model)
        (piece,) = _pieces(split, [size], world)
        drawn, attributes = states(world.device), _attributes(task.model)
        with blamed(config.task.build, at=task.totals):
            counts = counts_of(sums := task.totals(task.model, piece))
        fits_threads = drawn == states(world.device)
        fits_threads &= _are_same(attributes, _attributes(task.model))
        _check_loss(task.model, sums[0])
        rows = PieceRows(task, counts, seed=config.train.seed, device=world.device, num_threads=1)
        first, second = (_row(rows, piece, size) for _ in range(2))
        if is_exact:
            _check_buffers(task.model, changed_buffers())
            _check_function(rows, first, second)
        with blamed(config.task.build, at=task.totals):
            _check_totals(counts, first, config)
            _check_sums(task, split, world)
    if task.lr_factor:
        with blamed(config.task.build, at=task.lr_factor):
            float(task.lr_factor(0, config.train.epochs * split.plan.num_steps))
    flags = first[-counts.width - rows.num_flags : -counts.width]
    return Probed(counts, not bool(flags.all()), fits_threads)


def _check_totals(counts: Counts, row: Tensor, config: Config) -> None:
    """Refuse more correct predictions than there are, and a target for what is not counted."""
    totals = counts.to_totals(row[-counts.width :].tolist())
    if (totals.correct or 0) > totals.divided_by:
        raise Refused(
            f"totals counted {totals.correct} correct predictions of {totals.divided_by:g}: count "
            "them in the unit of the divisor"
        )
    if config.train.target_accuracy and not counts.correct:
        raise Refused(
            f"train.target_accuracy={config.train.target_accuracy:g}: totals counts no correct "
            "predictions"
        )


def _check_state(model: nn.Module) -> None:
    """Refuse a model that a checkpoint cannot hold, or that has nothing to train."""
    odd = [n for n, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise Refused(
            f"the model's state_dict has {odd[0]}, which is not a tensor: checkpoints "
            "hold tensors only; make it a buffer"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise Refused(
            "no parameter of the model is to be trained: requires_grad is False for all of them"
        )


def _check_float32(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype is not torch.float32:
            raise Refused(
                f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}: "
                f"ordered reduction adds float32; build the model with .float(), {DDP}"
            )


def _check_loss(model: nn.Module, loss: Tensor) -> None:
    """Refuse a loss without a gradient, and gradients that cannot be added as rows."""
    if not loss.requires_grad:
        raise Refused(
            "the loss that totals returned does not depend on any parameter that is "
            "to be trained: compute it without detach() and torch.no_grad()"
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is not None and gradient.layout is not torch.strided:
            raise Refused(f"the gradient of {name} is sparse: use its layer with sparse=False")


def _check_buffers(model: nn.Module, changed: list[str]) -> None:
    """Refuse a model that keeps statistics of what it has seen."""
    if changed:
        kind = type(model.get_submodule(changed[0].rpartition(".")[0])).__name__
        norm = " (such as GroupNorm in place of BatchNorm)" if "Norm" in kind else ""
        raise Refused(
            f"{changed[0]} of {kind} changes in each forward pass, so the result would "
            f"depend on the number of processes: use a layer that keeps no statistics{norm}, {DDP}"
        )


def _check_function(rows: PieceRows, first: Tensor, second: Tensor) -> None:
    """Refuse a model whose result for a piece depends on what it computed before."""
    if torch.equal(first, second):
        return
    names = {parameter: name for name, parameter in rows.model.named_parameters()}
    sizes = [parameter.numel() for parameter in rows.parameters]
    parts = zip(
        rows.parameters,
        first.split([*sizes, len(first) - sum(sizes)]),
        second.split([*sizes, len(first) - sum(sizes)]),
        strict=False,
    )
    differing = [names[parameter] for parameter, a, b in parts if not torch.equal(a, b)]
    what = f"the gradient of {differing[0]}" if differing else "totals"
    raise Refused(
        f"for the same samples, {what} had other bits the second time: the model keeps "
        "a state, draws from a generator of its own, or uses an operation that is not "
        f"deterministic; change that, {DDP}"
    )


def _check_sums(task: Task, split: Split, world: World) -> None:
    """Refuse a loss that is a mean over the batch, which is easily returned by mistake."""
    half = min(MOST_SAMPLES, len(split.data), split.plan.num_samples(0)) // 2
    if not half:
        return
    task.model.eval()
    with torch.no_grad():
        parts = _pieces(split, [half, half], world)
        left, right = (task.totals(task.model, part)[0].item() for part in parts)
        both = task.totals(task.model, *_pieces(split, [2 * half], world))[0].item()
    task.model.train()
    mean, total = (left + right) / 2, left + right
    if abs(both - mean) <= 1e-3 * abs(mean) < 1e-2 * abs(both - total):
        raise Refused(
            f"totals returned the loss {both:.4g} for "
            f"{2 * half} samples, and {left:.4g} and {right:.4g} for their halves: it seems to be "
            'a mean; return the sum (reduction="sum")'
        )


def _pieces(split: Split, sizes: list[int], world: World) -> list[Any]:
    """Pieces of the first samples."""
    indices = torch.arange(sum(sizes)).numpy() % len(split.data)
    return world.to_device(split.some(indices, sizes))


def _row(rows: PieceRows, piece: Any, size: int) -> Tensor:
    out = torch.zeros(1, rows.width, device=rows.device)
    rows.gradients([piece], sizes=[size], place=Place(REHEARSAL, 0), out=out)
    return out[0]


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Give the buffers their values back at the end; yields what names those that have changed."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def changed() -> list[str]:
        return [name for name, now in model.named_buffers() if not _same(before[name], now)]

    try:
        yield changed
    finally:
        for name in changed():
            model.get_buffer(name).copy_(before[name])


def _same(was: Tensor, now: Tensor) -> bool:
    return was.shape == now.shape and bool(((was == now) | (was != was)).all())


def _attributes(model: nn.Module) -> list[tuple[str, Any]]:
    """All modules' own attributes."""
    return [item for module in model.modules() for item in vars(module).items()]


def _are_same(before: list[tuple[str, Any]], after: list[tuple[str, Any]]) -> bool:
    """Whether these attributes are the same objects."""
    pairs = itertools.zip_longest(before, after, fillvalue=("", None))
    return all(name == other and value is same for (name, value), (other, same) in pairs)
