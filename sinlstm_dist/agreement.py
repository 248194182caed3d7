"""Check that all processes compute the same bits: before the first step, and at every checkpoint.

Processes with other CPUs, versions or environment variables round differently, and their messages
do not show it. So each process computes the same small things, and they compare digests.

- "ordered" promises the same bits on any number of processes. So weights, pieces' gradients,
  optimizer steps and test results must agree.
- "ddp" promises the same answer up to rounding. Gradients and test results may be rounded
  differently, because every process gets the same sum of them. Weights and optimizer steps must
  still agree: processes with different weights drift apart.

    SINLSTM_DIST_INSTRUCTION_SET=plain python -m sinlstm_dist.train   # on one of the processes
"""

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinlstm_dist.arithmetic import (
    BITS,
    CODE,
    FIXED,
    ORDER,
    RECURRENCE,
    UNSET,
    Arithmetic,
    changes,
    unlike,
)
from sinlstm_dist.data.steps import Split
from sinlstm_dist.errors import Disagreement, DriftedApart
from sinlstm_dist.optimizers import copied, optimizer_tensors, trial_step
from sinlstm_dist.piece_rows import REHEARSAL, TESTING, PieceRows, Place
from sinlstm_dist.processes.difference import Difference
from sinlstm_dist.processes.world import World

# Samples computed in pieces of each size, in the rehearsal and at a checkpoint. Other code changes
# few results: about 4 of 100 gradients of one sample, most gradients of 13 (2026-11-25, nn.LSTM of
# 64 units).
NUM_SAMPLES, NUM_STEPS, NUM_SAMPLES_NOW = 400, 4, 16
MOST_NUMBERS = 1 << 22  # in the gradients of one size at once: a large model computes few
SAME = (
    "make the CPUs, the versions and variables such as ATEN_CPU_CAPABILITY, DNNL_MAX_CPU_ISA, "
    "MKL_CBWR and SINLSTM_DIST_INSTRUCTION_SET the same on all nodes"
)
FAULTY = (
    "these bits are the same on any processor, so memory or a processor fails, or the kernel or "
    "the source differs there"
)
NO_KERNEL = (
    "install the package where there is a C compiler, on all nodes, or set "
    'model.lstm="torch" (or "reference", which is slow)'
)
NO_GPU_KERNEL = 'install cuda-bindings on all nodes, or set model.lstm="torch"'
OWN = (
    ": the data sets or the model keep a state or a generator of their own, which the command "
    "verify tells apart, or memory fails"
)


def digest(value: Any) -> str:
    """SHA-256 of every bit of tensors and other values, nested in mappings and sequences.

    Returns:
        64 hexadecimal digits.
    """
    sha256 = hashlib.sha256()
    _add(value, sha256)
    return sha256.hexdigest()


def _add(value: Any, sha256: Any) -> None:
    if isinstance(value, Tensor):
        sha256.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            sha256.update(f"{name} ".encode())
            _add(item, sha256)
    elif isinstance(value, list | tuple):
        for item in value:
            _add(item, sha256)
    else:
        sha256.update(f"{value!r}\n".encode())


def check_same_model(
    world: World, arithmetic: Arithmetic, model: nn.Module, *, code: Mapping[str, str]
) -> None:
    """Refuse a world whose processes do not begin with the same model.

    Args:
        arithmetic: this process's, to say what differs.
        code: that computes the model, in words.

    Raises:
        Disagreement: names what differs and where.

    Collective: yes, one.
    """
    if world.size > 1:
        weights = "initial weights"
        advice = {
            CODE: "copy the same files to all nodes",
            RECURRENCE: NO_KERNEL if world.device.type == "cpu" else NO_GPU_KERNEL,
        }
        if CODE in code:
            advice[weights] = (
                f"let it draw them from torch's generators, which train.seed has seeded, and {SAME}"
            )
        facts = {**code, weights: digest(model.state_dict())}
        _check_same_bits(world, arithmetic, facts, advice=advice)


def _check_same_bits(
    world: World,
    arithmetic: Arithmetic,
    facts: Mapping[str, str],
    *,
    advice: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise a Disagreement for the first of `facts`, digests by what they are of, that differs.

    Args:
        advice: what to do about a fact, where it is not `SAME`.
    """
    difference = world.difference(facts)
    if difference:
        who, clues = _who(difference, world), _clues(difference, world, arithmetic)
        usual = FAULTY if arithmetic.get(BITS) == FIXED else SAME
        raise Disagreement(f"{who}{clues}: {advice.get(difference.fact, usual)}")


def _clues(difference: Difference, world: World, arithmetic: Arithmetic) -> str:
    """The differences in arithmetic between processes that disagree; "" if there are none.

    Collective: yes, one.
    """
    everyones = world.gather_json(dict(arithmetic))
    here, there = everyones[difference.reference], everyones[difference.ranks[0]]
    clues = [
        f"{key} is {there.get(key, UNSET)} there and {here.get(key, UNSET)} elsewhere"
        for key in unlike(here, there)
        if key != BITS
    ]
    return f" ({', '.join(clues)})" if clues else ""


def _who(difference: Difference, world: World) -> str:
    """The sentence that names the processes and the fact on which they differ."""
    verb = "has" if len(difference.ranks) == 1 else "have"
    is_minority = 2 * len(difference.ranks) < world.size  # of two halves, either may be right
    others = "the others" if is_minority else world.names([difference.reference])
    return f"{world.names(difference.ranks)} {verb} other {difference.fact} than {others}"


class Agreement:
    """Compares this process's results with those of the others; does nothing in a world of one.

    Args:
        rows: computes the pieces' rows of the model that is trained and tested.
        optimizer: of the model's parameters.
        is_exact: whether all gradients must have the same bits ("ordered").
        arithmetic: this process's.
    """

    def __init__(
        self,
        rows: PieceRows,
        optimizer: torch.optim.Optimizer,
        *,
        train: Split,
        test: Split,
        world: World,
        is_exact: bool,
        arithmetic: Arithmetic,
    ) -> None:
        self._rows, self._optimizer, self._world = rows, optimizer, world
        self._train, self._test, self._is_exact = train, test, is_exact
        self.arithmetic = arithmetic

    def check_start(self) -> None:
        """Compare a rehearsal: some steps of everything that training does, made with copies.

        Raises:
            Disagreement: names what differs and where.

        Collective: yes, one.
        """
        if self._world.size > 1:
            _check_same_bits(self._world, self.arithmetic, self._rehearse())

    def check_now(self, *, step: int, continues: str) -> None:
        """Compare weights, optimizer state and some pieces' gradients between two steps.

        Weights alone would not show a process that computes wrongly: all processes add its rows.

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
            "weights": digest(self._rows.model.state_dict()),
            "optimizer state": digest(optimizer_tensors(self._rows.model, self._optimizer)),
        }
        if self._is_exact:
            facts["gradients"] = digest(self._gradients(self._rows, NUM_SAMPLES_NOW, step=step))
        if difference := self._world.difference(facts):
            clues = _clues(difference, self._world, self.arithmetic)
            is_fixed = self.arithmetic.get(BITS) == FIXED
            why = ", as with failing memory or a faulty processor"
            if clues and not is_fixed:
                why = f": {SAME}"
            if CODE in self.arithmetic and not clues:
                why = OWN
            what = f"{_who(difference, self._world)}{clues} after step {step}{why}"
            raise DriftedApart(what, continues=continues)

    def what_changed(self, before: Arithmetic) -> str:
        """A note for a run that continues with another arithmetic; "" with the same.

        Args:
            before: the checkpoint's; empty in one of the oldest versions.
        """
        found = changes(before, self.arithmetic)
        if not found:
            return ""
        what, may_differ = "another arithmetic", "the last bits may differ from those"
        if ORDER in found:  # of an older version, from which the rest differs too
            what, may_differ = "another sample order", "the result may differ from that"
            found = {ORDER: found[ORDER]}
        elif CODE in found:
            what, may_differ = "edited code", "the result may differ from that"
        listed = ", ".join(found.values())
        return f"continues with {what}: {listed}; {may_differ} of a run that was never interrupted"

    def _rehearse(self) -> dict[str, str]:
        """Digests of some steps of copies. The steps follow a gradient of fixed numbers, so a
        difference in gradients does not show as a difference in steps.
        """
        model, optimizer = copied(self._rows.model, self._optimizer)
        rows = self._rows.of(model)
        steps: list[str] = []
        gradients: list[str] = []
        totals: list[str] = []
        for step in range(NUM_STEPS):
            steps.append(digest({**model.state_dict(), **optimizer_tensors(model, optimizer)}))
            if self._is_exact:
                num_samples = NUM_SAMPLES // NUM_STEPS
                gradients.append(digest(self._gradients(rows, num_samples, step=step)))
                totals.append(digest(self._test_totals(rows, num_samples, step=step)))
            trial_step(model, optimizer)
        facts = {"weights": steps[0], "optimizer steps": steps}
        facts |= {"gradients": gradients, "test results": totals}
        return {name: str(digests) for name, digests in facts.items()}

    def _gradients(self, rows: PieceRows, num_samples: int, *, step: int) -> dict[str, Tensor]:
        """(pieces, width) rows for each size of a piece, as training computes them."""
        rows_by_size: dict[str, Tensor] = {}
        for size in self._train.plan.distinct_sizes():
            most = max(1, MOST_NUMBERS // rows.width)
            sizes = self._sizes(self._train, size, num_samples)[:most]
            found = torch.zeros(len(sizes), rows.width, device=self._world.device)
            batch = self._some(self._train, sizes, rows, step=step)
            rows.gradients(batch, sizes=sizes, place=Place(REHEARSAL, step), out=found)
            rows_by_size[f"of {size}"] = found
        return rows_by_size

    def _test_totals(self, rows: PieceRows, num_samples: int, *, step: int) -> dict[str, Tensor]:
        """(pieces, width of totals) for each size of a piece, as testing computes them."""
        totals_by_size: dict[str, Tensor] = {}
        with rows.testing():
            for size in self._test.plan.distinct_sizes():
                sizes = self._sizes(self._test, size, num_samples)
                batch = self._some(self._test, sizes, rows, step=step)
                place = Place(TESTING, step)
                totals_by_size[f"of {size}"] = rows.totals(batch, sizes=sizes, place=place)
        return totals_by_size

    def _sizes(self, split: Split, size: int, num_samples: int) -> list[int]:
        """Pieces of one size that hold some samples together; one piece where samples are dear."""
        return [size] * (-(-num_samples // size) if split.by_array else 1)

    def _some(self, split: Split, sizes: Sequence[int], rows: PieceRows, *, step: int) -> Any:
        """The same samples on every process, from all over the data; others for each step."""
        indices = np.random.default_rng(step).integers(0, len(split.data), sum(sizes))
        return self._world.to_device(split.some(indices, sizes, whole=rows.is_whole))
