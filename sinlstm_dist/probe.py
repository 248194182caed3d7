"""Look at a user's task before its first step: what it counts, and what cannot keep its promise.

The bits of a run do not depend on the number of processes only if a piece's row is a function of
the piece's samples, its random numbers and the weights.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sinlstm_dist.agreement import digest
from sinlstm_dist.blame import Refused, blamed
from sinlstm_dist.config import Config
from sinlstm_dist.data.steps import Split
from sinlstm_dist.piece_rows import REHEARSAL, PieceRows, Place
from sinlstm_dist.processes.world import World
from sinlstm_dist.randomness import states
from sinlstm_dist.snapshot import Snapshot
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
            random numbers, the attributes of the modules, and what hooks write to.
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
    is_exact, size = config.train.reduction == "ordered", split.plan.all_sizes(0)[0]
    with blamed(config.task.build):
        if is_exact:
            _check_float32(task.model)
            _check_samples(split)
        (piece,) = _pieces(split, [size], world)
    before = Snapshot(task.model, task.totals)
    try:
        with blamed(config.task.build, at=task.totals):
            drawn = states(world.device)
            model = task.model if is_exact else _Shell(task.model)
            counts = counts_of(sums := task.totals(model, piece))
            if isinstance(model, _Shell) and not model.is_used:
                raise Refused('with train.reduction="ddp", totals must call the model that it gets')
            is_drawn = drawn != states(world.device)
            _check_loss(task.model, sums[0])
        rows = PieceRows(task, counts, seed=config.train.seed, device=world.device, num_threads=1)
        with blamed(config.task.build):
            first, second = (_row(rows, piece, size) for _ in range(2))
            _check_finite(rows, first)
            if is_exact:
                _check_kept(task.model, before)
                _check_function(rows, first, second)
        with blamed(config.task.build, at=task.totals):
            _check_totals(counts, first, config)
            _check_sums(task, split, world)
    finally:
        fits_threads = before.is_kept() and not _has_hooks(task.model)
        before.restore()
    flags = first[-counts.width - rows.num_flags : -counts.width]
    return Probed(counts, not bool(flags.all()), fits_threads and not is_drawn)


class _Shell(nn.Module):
    """A model of which only the forward pass can be used, as the data-parallel wrapper is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module, self.is_used = model, False

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        self.is_used = True
        return self.module(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name == "module":
            return super().__getattr__(name)
        raise AttributeError(
            f'with train.reduction="ddp", totals can use model(...) alone, and not model.{name}'
        )


def _has_hooks(model: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _check_totals(counts: Counts, row: Tensor, config: Config) -> None:
    """Refuse more correct predictions than there are, and a target for what is not counted."""
    totals = counts.to_totals(row[-counts.width :].tolist())
    if (totals.correct or 0) > totals.divided_by:
        raise Refused(
            f"totals counted {totals.correct:g} correct predictions of {totals.divided_by:g}: "
            "count them in the unit of the divisor"
        )
    if config.train.target_accuracy and not counts.correct:
        raise Refused(
            f"train.target_accuracy={config.train.target_accuracy:g}: totals counts no correct "
            "predictions"
        )


def check_model(model: nn.Module) -> None:
    """Refuse a model that a checkpoint cannot hold, or that has nothing to train.

    Raises:
        Refused: it is one.
    """
    owned = itertools.chain(model.named_parameters(), model.named_buffers())
    if lazy := [name for name, tensor in owned if is_lazy(tensor)]:
        raise Refused(f"{lazy[0]} has no shape yet: call the model once in build")
    odd = [n for n, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise Refused(
            f"the model's state_dict has {odd[0]}, which is not a tensor: checkpoints "
            "hold tensors only; make it a buffer"
        )
    if expanded := [name for name, value in model.state_dict().items() if _is_expanded(value)]:
        raise Refused(
            f"{expanded[0]} is expanded: many of its values are one number in memory, so no "
            "checkpoint can be loaded into it; make it with .clone()"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise Refused(
            "no parameter of the model is to be trained: requires_grad is False for all of them"
        )


def _is_expanded(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)


def _check_float32(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype is not torch.float32:
            raise Refused(
                f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}: "
                f"ordered reduction adds float32; build the model with .float(), {DDP}"
            )


def _check_samples(split: Split) -> None:
    """Refuse samples that depend on how often a process has fetched them."""
    first, again = (digest(split.some(np.arange(1), [1])) for _ in range(2))
    if first != again:
        raise Refused(
            "sample 0 of train_data had other values the second time: the data set keeps a state "
            "or draws from a generator of its own; draw from the generators of torch, numpy or "
            f"random, which are seeded for each sample, {DDP}"
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


def _check_finite(rows: PieceRows, row: Tensor) -> None:
    """Refuse numbers with which no training can begin."""
    if not torch.isfinite(row).all():
        raise Refused(
            f"{_named(rows, ~torch.isfinite(row))} is infinite or nan for the first samples: look "
            "at the data, at totals and at the initial weights"
        )


def _check_kept(model: nn.Module, before: Snapshot) -> None:
    """Refuse a model that a forward pass changes: each process would change it in another way."""
    if changed := before.changed_tensors():
        owner = model.get_submodule(changed[0].rpartition(".")[0])
        what, kind = f"{changed[0]} of {type(owner).__name__}", type(owner).__name__
        norm = " (such as GroupNorm in place of BatchNorm)" if "Norm" in kind else ""
        raise Refused(
            f"{what} changes in each forward pass, so the result would depend on the number of "
            f"processes: use a layer that keeps no statistics{norm}, {DDP}"
        )
    if changed := before.changed_numbers():
        raise Refused(
            f"{changed[0]} of {type(model).__name__} changes in each forward pass, so the result "
            f"would depend on the number of processes: keep no count there, {DDP}"
        )


def _check_function(rows: PieceRows, first: Tensor, second: Tensor) -> None:
    """Refuse a model whose result for a piece depends on what it computed before."""
    if torch.equal(first, second):
        return
    raise Refused(
        f"for the same samples, {_named(rows, first != second)} had other bits the second time: "
        "the model keeps a state, draws from a generator of its own, or uses an operation that is "
        f"not deterministic; change that, {DDP}"
    )


def _named(rows: PieceRows, places: Tensor) -> str:
    """The first part of a row in which one of these places is."""
    names = {parameter: name for name, parameter in rows.model.named_parameters()}
    sizes = [parameter.numel() for parameter in rows.parameters]
    parts = zip(rows.parameters, places[: sum(sizes)].split(sizes), strict=True)
    found = [names[parameter] for parameter, part in parts if part.any()]
    is_loss = bool(places[sum(sizes) :].any())
    return "the loss" if is_loss or not found else f"the gradient of {found[0]}"


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
