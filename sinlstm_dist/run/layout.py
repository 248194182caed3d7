"""What the checkpoints of a run must hold: tensors of which dtype and shape, and how many steps."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sinlstm_dist.run.checkpoint import (
    OPTIMIZER,
    STATE,
    Checkpoint,
    DamagedCheckpoint,
    Tensors,
    is_name,
    step_of,
)
from sinlstm_dist.run.record import WEIGHTS

SHOWN = 6  # differences between two models, at most


@dataclass(frozen=True)
class Layout:
    """What the checkpoints of a run must hold; see `check_layout`.

    Args:
        weights: dtype and shape by name, as `shapes` gives them.
        optimizer: the same of the optimizer's tensors, after the first step.
        num_steps: in an epoch.
        samples_per_step: in each step but the last of an epoch.
        buffers: names among the weights; their values may be infinite or nan.
        optimizer_at_first: the optimizer's tensors before the first step.
        may_lack_state: whether a parameter may have no tensors in the optimizer, because no step
            has used it.
        lr_factor: the factor of the learning rate, from the step (from 0) and the number of steps
            of the run; None if it is always 1.
    """

    weights: Mapping[str, str]
    optimizer: Mapping[str, str]
    num_steps: int
    samples_per_step: int
    buffers: Collection[str] = ()
    optimizer_at_first: Mapping[str, str] = field(default_factory=dict)
    may_lack_state: bool = False
    lr_factor: Callable[[int, int], float] | None = None


def shapes(tensors: Tensors) -> dict[str, str]:
    """{"w": "float32 [5, 3]"}"""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in tensors.items()
    }


def check_layout(checkpoint: Checkpoint, layout: Layout, folder: Path) -> None:
    """See that this run could have written a checkpoint.

    torch trusts the state of an optimizer: with a tensor of another shape it writes out of bounds.

    Raises:
        DamagedCheckpoint: this run could not.
    """
    problem = _wrong_progress(checkpoint.state, layout)
    if not problem and is_name(folder.name) and checkpoint.state["step"] != step_of(folder):
        problem = f"is of step {checkpoint.state['step']}"
    if problem:
        raise DamagedCheckpoint(f"{folder / STATE}: {problem}")
    wanted = _wanted_of_optimizer(checkpoint, layout)
    if problem := unlike(checkpoint.weights, layout.weights, buffers=layout.buffers):
        raise DamagedCheckpoint(f"{folder / WEIGHTS}: {problem}")
    if problem := unlike(checkpoint.optimizer, wanted):
        raise DamagedCheckpoint(f"{folder / OPTIMIZER}: {problem}")


def _wrong_progress(state: Mapping[str, Any], layout: Layout) -> str:
    """How the numbers in a state.json contradict each other or the run; "" if they do not."""
    step, in_epoch, totals = state["step"], state["step_in_epoch"], state["totals"]
    if in_epoch >= layout.num_steps or step != state["epoch"] * layout.num_steps + in_epoch:
        return "step, epoch and step_in_epoch do not agree"
    if totals["samples"] != in_epoch * layout.samples_per_step:
        return "totals are of another number of samples"
    is_own_task = state["config"]["task"]["build"]
    is_squared_error = totals["loss_sum"] >= 0 and totals["divisor"] is None
    if not is_own_task and (totals["correct"] is None or not is_squared_error):
        return "totals are not of squared errors"
    return ""


def _wanted_of_optimizer(checkpoint: Checkpoint, layout: Layout) -> Mapping[str, str]:
    """The optimizer's tensors that a checkpoint needs, as `shapes` gives them."""
    if not checkpoint.state["step"]:
        return layout.optimizer_at_first
    if not layout.may_lack_state:
        return layout.optimizer
    used = {_parameter_of(name) for name in (*checkpoint.optimizer, *layout.optimizer_at_first)}
    return {name: at for name, at in layout.optimizer.items() if _parameter_of(name) in used}


def _parameter_of(name: str) -> str:
    """The parameter in a name of the optimizer's tensors: "rnn.weight" of "rnn.weight.exp_avg"."""
    return name.rpartition(".")[0]


def unlike(tensors: Tensors, wanted: Mapping[str, str], *, buffers: Collection[str] = ()) -> str:
    """How tensors differ from what is `wanted`; "" if they do not.

    Args:
        tensors: by name.
        wanted: dtype and shape by name, as `shapes` gives them.
        buffers: as for `not_finite`.
    """
    present = shapes(tensors)
    problems = [
        f"{name!r:.80} is {present.get(name, 'missing')}, needed {wanted.get(name, 'not')}"
        for name in sorted({*present, *wanted})
        if present.get(name) != wanted.get(name)
    ] or [f"{name} has values that are not finite" for name in not_finite(tensors, buffers=buffers)]
    return "; ".join(problems[:SHOWN])


def not_finite(tensors: Tensors, *, buffers: Collection[str] = ()) -> list[str]:
    """The names of tensors with an infinite value or a nan.

    Args:
        tensors: by name.
        buffers: names that are left out; the mask of an attention may hold -inf.
    """
    others = {name: value for name, value in tensors.items() if name not in buffers}
    return [name for name, value in others.items() if not torch.isfinite(value).all()]
