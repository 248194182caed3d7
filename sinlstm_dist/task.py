"""What is trained, as a value: a model, its data, its loss and its optimizer.

    # my_task.py             accelerate launch -m sinlstm_dist.train --task.build my_task.py:build
    def build(settings: Settings, config: Config) -> Task:
        model = Net(settings.width)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return Task(model, train_data, test_data, totals, optimizer)

The sine is built in the same way, by sine.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sinlstm_dist.metrics import NUM_TOTALS, Totals

Number = Tensor | float
Sums = tuple[Tensor, Number | None] | tuple[Tensor, Number | None, Number]  # see `Task.totals`
ADVICE = "more epochs (train.epochs) or another learning rate"
Preview = Callable[[], tuple[list[float], list[float]]]


class BatchRows(Protocol):
    """Computes the rows of all pieces of a batch in one call, without changing the batch.

    It does not call the model, which may be in training mode or not.
    """

    def __call__(
        self,
        parameters: Sequence[Tensor],
        batch: Any,
        *,
        piece_sizes: Sequence[int],
        num_threads: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the totals of each piece: (pieces, NUM_TOTALS), or write gradients too. Nothing
        that it returns needs a gradient of torch's.

        Args:
            parameters: all of the model's, or of a copy's.
            batch: all pieces in order.
            piece_sizes: samples in each piece.
            num_threads: at most this many threads.
            out: (pieces, G + NUM_TOTALS) for G parameters, if given: overwritten with the
                gradient of each piece's loss and its totals.
        """
        ...


@dataclass(frozen=True)
class Baseline:
    """A prediction that learns nothing.

    Args:
        model: what predicts.
        test_data: the task's test samples, with inputs that this model reads.
    """

    model: nn.Module
    test_data: Any


@dataclass(frozen=True)
class Task:
    """What is trained.

    Args:
        model: trained in place; its parameters are float32.
        train_data: `len(data)` and `data[i]`; samples are whatever
            `torch.utils.data.default_collate` makes a batch of.
        test_data: the same.
        totals: called as `totals(model, batch)`; returns sums over the batch: the loss, which is
            differentiated; the number of correct predictions, or None; and optionally what both are
            divided by instead of the number of samples, such as the number of tokens.
        optimizer: of the model's parameters.
        lr_factor: called as `lr_factor(step, num_steps)` before each optimizer step, counted from
            0; what each group's learning rate is multiplied by.
        clip_norm: the largest norm of the gradient of the mean loss over the global batch; 0 for
            no limit.
        rows: computes all pieces in one call, where there is a faster way than autograd.
        baselines: models that learn nothing, by name, which are tested as the model is; a
            `Baseline` has test data of its own.
        preview: gives one cycle's targets and predictions, for a picture of the running training.
        facts: lines for the start panel.
        data_record: what the run folder keeps about the data, if anything: JSON values.
        advice: what to try, in words, if a baseline's test loss is below the model's.

    Raises:
        TypeError: a part is not what it must be.
        ValueError: a data set is empty, or `clip_norm` is negative.
    """

    model: nn.Module
    train_data: Any
    test_data: Any
    totals: Callable[[nn.Module, Any], Sums]
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int, int], float] | None = None
    clip_norm: float = 0.0
    rows: BatchRows | None = None
    baselines: Mapping[str, nn.Module | Baseline] = field(default_factory=dict)
    preview: Preview | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    data_record: Mapping[str, Any] | None = None
    advice: str = ADVICE

    def __post_init__(self) -> None:
        kinds = {"model": nn.Module, "optimizer": torch.optim.Optimizer}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"Task: {name} is {_kind(value)}, not {_a(kind.__name__)}")
        for name in ("train_data", "test_data"):
            data = getattr(self, name)
            if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
                raise TypeError(
                    f"Task: {name} is {_kind(data)}: a map-style data set is needed, with len() "
                    "and [index]"
                )
            if not len(data):
                raise ValueError(f"Task: {name} is empty")
        for name in ("totals", "lr_factor"):
            value = getattr(self, name)
            if not (callable(value) or (value is None and name == "lr_factor")):
                raise TypeError(f"Task: {name} is {_kind(value)}, not a function")
        norm = self.clip_norm
        if not (isinstance(norm, Real) and math.isfinite(norm) and norm >= 0):
            raise ValueError(f"Task: clip_norm is {norm}: a number from 0 on is needed")


def _kind(value: object) -> str:
    return "None" if value is None else _a(type(value).__name__)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


@dataclass(frozen=True)
class Counts:
    """Which sums a task counts for each piece.

    Args:
        correct: whether it counts correct predictions.
        divisor: whether it gives a divisor of its own.
    """

    correct: bool = True
    divisor: bool = False

    @property
    def width(self) -> int:
        """Numbers in a piece's totals: loss, correct, samples and, if there is one, divisor."""
        return NUM_TOTALS + self.divisor

    def to_totals(self, numbers: Sequence[float]) -> Totals:
        """The Totals whose numbers these are."""
        loss_sum, correct, samples, *divisor = numbers
        correct = int(correct) if correct.is_integer() else correct  # a weighted one is a fraction
        return Totals(loss_sum, correct if self.correct else None, int(samples), *divisor)


def counts_of(sums: Sums) -> Counts:
    """What a task counts, from what its `totals` has returned.

    Raises:
        TypeError: it must not return that.
    """
    if not isinstance(sums, tuple) or len(sums) not in (2, 3):
        what = f"{len(sums)} values" if isinstance(sums, tuple) else _kind(sums)
        raise TypeError(
            f"totals returned {what}: a tuple of the sum of losses and the number of correct "
            "predictions (or None) is needed"
        )
    loss, correct, *divisor = sums
    if not isinstance(loss, Tensor) or loss.dim() or loss.dtype is not torch.float32:
        what = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
        raise TypeError(
            f"totals returned the loss {what}: one float32 number in a tensor is needed"
        )
    if correct is not None:
        _check_number(correct, "correct predictions")
    for number in divisor:
        _check_number(number, "the divisor")
    return Counts(correct=correct is not None, divisor=bool(divisor))


def _check_number(value: object, what: str) -> None:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    if not isinstance(value, Real) and shape != " of shape ()":
        raise TypeError(f"totals returned {_kind(value)}{shape} for {what}: one number is needed")


def row_of(sums: Sums, num_samples: int) -> Tensor:
    """The totals of one piece as numbers, not differentiable: (3,) or (4,)"""
    loss, correct, *divisor = sums
    numbers = (loss, 0.0 if correct is None else correct, float(num_samples), *divisor)
    # torch.full fills it on the device: torch.tensor would copy, and wait for a GPU
    tensors = (
        n if isinstance(n, Tensor) else torch.full((), n, device=loss.device) for n in numbers
    )
    return torch.stack([n.detach().to(loss.device, torch.float32) for n in tensors])
