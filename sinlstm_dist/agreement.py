"""Check that all processes compute the same bits: before the first step, and at every checkpoint.

Processes on other CPUs, with other versions or other variables round differently, and no message
between them would tell. So each computes the same small things, and they compare digests.

- "ordered" promises the same bits on any number of processes. So everything must agree that a
  result is made of: weights, pieces' gradients, optimizer steps, test results.
- "ddp" promises the same answer up to rounding. Gradients and test results may be rounded
  differently: every process gets the same sum of them. Weights and optimizer steps must agree all
  the same, since processes whose weights differ drift apart.

    SINLSTM_DIST_INSTRUCTION_SET=plain python -m sinlstm_dist.train   # on one of the processes
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from sinlstm_dist import metrics
from sinlstm_dist.arithmetic import UNSET, Arithmetic, changes
from sinlstm_dist.data.sine import Batch
from sinlstm_dist.errors import Disagreement, DriftedApart
from sinlstm_dist.gradient import gradient_rows, totals_rows
from sinlstm_dist.optim import optimizer_tensors, trial_step
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.world import Difference, World

# Other code changes few results: some 4 of 100 gradients of one sample, most gradients of 13
# (2026-11-25, nn.LSTM of 64).
# So many samples are computed in pieces of each size: in the rehearsal, and at a checkpoint.
NUM_SAMPLES, NUM_STEPS, NUM_SAMPLES_NOW = 400, 4, 16
MOST_NUMBERS = 1 << 22  # in the gradients of one size at once; those of a large model are few
SAME = (
    "make the CPUs, the versions and variables such as ATEN_CPU_CAPABILITY, DNNL_MAX_CPU_ISA, "
    "MKL_CBWR and SINLSTM_DIST_INSTRUCTION_SET the same on all nodes"
)


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names and every bit of some tensors, hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_same_model(world: World, arithmetic: Arithmetic, model: nn.Module, *, code: str) -> None:
    """Refuse a world whose processes do not begin with the same model.

    Args:
        arithmetic: what this process computes with, to say what differs.
        code: that computes the recurrence, in words.

    Raises:
        Disagreement: names what differs and where.

    Collective: yes, one.
    """
    if world.size > 1:
        weights = digest(model.state_dict())
        facts = {"code of the recurrence": code, "initial weights": weights}
        _check_same_bits(world, arithmetic, facts)


def _check_same_bits(world: World, arithmetic: Arithmetic, facts: Mapping[str, str]) -> None:
    """Raise a Disagreement for the first of `facts`, digests by what they are of, that differs."""
    found = world.difference(facts)
    if not found:
        return
    who, clues = _who_has_what(found, world), _clues(found, world, arithmetic)
    raise Disagreement(f"{who}{clues}: {SAME}")


def _clues(found: Difference, world: World, arithmetic: Arithmetic) -> str:
    """What is known to differ between the processes that `found` tells apart, if anything.

    Collective: yes, one.
    """
    everyones = world.gather_json(dict(arithmetic))
    here, there = everyones[found.reference], everyones[found.ranks[0]]
    clues = [
        f"{key} is {there.get(key, UNSET)} there and {here.get(key, UNSET)} elsewhere"
        for key in {**here, **there}
        if there.get(key, UNSET) != here.get(key, UNSET)
    ]
    return f" ({', '.join(clues)})" if clues else ""


def _who_has_what(found: Difference, world: World) -> str:
    verb = "has" if len(found.ranks) == 1 else "have"
    is_fewer = 2 * len(found.ranks) < world.size  # of two halves nobody knows which is right
    others = "the others" if is_fewer else world.names([found.reference])
    return f"{world.names(found.ranks)} {verb} other {found.fact} than {others}"


@dataclass(frozen=True)
class Samples:
    """A data set, and how it is cut into pieces.

    Args:
        data: gives a batch for an array of indices.
        plan: of training or of testing.
    """

    data: Dataset[Batch]
    plan: Plan

    def piece_sizes(self) -> list[int]:
        """The sizes of pieces that occur, the largest first: a matrix library may choose other
        code for each.
        """
        sizes = self.plan.all_sizes(0) + self.plan.all_sizes(self.plan.num_steps - 1)
        return sorted(set(sizes) - {0}, reverse=True)

    def pieces(self, sizes: Sequence[int], device: torch.device, *, step: int) -> Batch:
        """The same pieces on every process, of samples from all over the data, others each step."""
        size = len(self.data)  # type: ignore[arg-type]  # a map-style data set has a length
        windows, targets = self.data[np.random.default_rng(step).integers(0, size, sum(sizes))]
        return windows.to(device), targets.to(device)


class Agreement:
    """Compares what this process computes with what the others do. A world of one does nothing.

    Args:
        model: the one that is trained and tested.
        optimizer: of its parameters.
        is_exact: whether everybody's gradients must have the same bits ("ordered").
        tolerance: of a correct prediction.
        arithmetic: what this process computes with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        train: Samples,
        test: Samples,
        world: World,
        is_exact: bool,
        tolerance: float,
        arithmetic: Arithmetic,
    ) -> None:
        self._model, self._optimizer, self._world = model, optimizer, world
        self._train, self._test = train, test
        self._is_exact, self._tolerance = is_exact, tolerance
        self.arithmetic = arithmetic

    def check_start(self) -> None:
        """Compare some steps of everything that training will do, made with copies.

        Raises:
            Disagreement: names what differs and where.

        Collective: yes, one.
        """
        if self._world.size > 1:
            _check_same_bits(self._world, self.arithmetic, self._rehearse())

    def check_now(self, *, step: int, continues: str) -> None:
        """Compare weights, optimizer state and some pieces' gradients between two steps.

        A process that computes wrongly sends its wrong rows to everybody, so weights alone would
        agree.

        Args:
            step: of the run.
            continues: how the run goes on without this state, for the message.

        Raises:
            DriftedApart: names what differs and where.

        Collective: yes, one.
        """
        if self._world.size == 1:
            return
        facts = {
            "weights": digest(self._model.state_dict()),
            "optimizer state": digest(optimizer_tensors(self._model, self._optimizer)),
        }
        if self._is_exact:
            rows = self._gradients(self._model, NUM_SAMPLES_NOW, step=step)
            facts["gradients"] = digest(rows)
        found = self._world.difference(facts)
        if found:
            clues = _clues(found, self._world, self.arithmetic)
            why = f": {SAME}" if clues else ", as with failing memory or a faulty processor"
            what = f"{_who_has_what(found, self._world)}{clues} after step {step}{why}"
            raise DriftedApart(what, continues=continues)

    def what_changed(self, before: Arithmetic) -> str:
        """A line for a run that continues with another arithmetic; "" with the same.

        Args:
            before: of the checkpoint; empty if it does not tell.
        """
        differing = changes(before, self.arithmetic) if before else []
        if not differing:
            return ""
        return (
            f"continues with another arithmetic: {', '.join(differing)}; the last bits may differ "
            "from those of a run that was never interrupted"
        )

    def _rehearse(self) -> dict[str, str]:
        """Digests of what some steps of copies give. They go along a gradient of fixed numbers, so
        that gradients which differ do not show as steps which differ.
        """
        model, optimizer = copy.deepcopy((self._model, self._optimizer))
        steps: list[str] = []
        gradients: list[str] = []
        totals: list[str] = []
        for step in range(NUM_STEPS):
            steps.append(digest({**model.state_dict(), **optimizer_tensors(model, optimizer)}))
            if self._is_exact:
                num_samples = NUM_SAMPLES // NUM_STEPS
                gradients.append(digest(self._gradients(model, num_samples, step=step)))
                totals.append(digest(self._test_totals(model, num_samples, step=step)))
            trial_step(model, optimizer)
        facts = {"weights": steps[0], "optimizer steps": steps}
        facts |= {"gradients": gradients, "test results": totals}
        return {name: str(digests) for name, digests in facts.items()}

    def _gradients(
        self, model: nn.Module, num_samples: int, *, step: int
    ) -> dict[str, torch.Tensor]:
        """(pieces, G + 3) rows for each size of a piece, as training computes them."""
        parameters, device = list(model.parameters()), self._world.device
        width = sum(parameter.numel() for parameter in parameters) + metrics.NUM_TOTALS
        found: dict[str, torch.Tensor] = {}
        for size in self._train.piece_sizes():
            most = max(1, MOST_NUMBERS // width)
            sizes = [size] * min(most, -(-num_samples // size))
            rows = torch.zeros(len(sizes), width, device=device)
            gradient_rows(
                model, parameters, self._train.pieces(sizes, device, step=step),
                piece_sizes=sizes, tolerance=self._tolerance, num_threads=self._world.num_threads,
                out=rows,
            )  # fmt: skip
            found[f"of {size}"] = rows
        return found

    @torch.no_grad()
    def _test_totals(
        self, model: nn.Module, num_samples: int, *, step: int
    ) -> dict[str, torch.Tensor]:
        """(pieces, 3) totals for each size of a piece, as testing computes them."""
        found: dict[str, torch.Tensor] = {}
        for size in self._test.piece_sizes():
            sizes = [size] * -(-num_samples // size)
            found[f"of {size}"] = totals_rows(
                model, self._test.pieces(sizes, self._world.device, step=step),
                piece_sizes=sizes, tolerance=self._tolerance, num_threads=self._world.num_threads,
            )  # fmt: skip
        return found
