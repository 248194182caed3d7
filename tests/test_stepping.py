"""Several steps in one call of the kernel: the bits of single steps, whatever comes in between."""

import contextlib
import dataclasses
import math
import os
import signal
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import SETTINGS, check_same, flags, summary, wait_for
from test_gathering import in_processes, new_memory, patiently

from sinlstm_dist import compiled, lstm, sine, stepping
from sinlstm_dist.config import load_config
from sinlstm_dist.gradient import OrderedGradient
from sinlstm_dist.job import build
from sinlstm_dist.optim import SGD
from sinlstm_dist.optimizers import Update, optimizer_tensors
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.plan import Plan
from sinlstm_dist.processes.gathering import SharedMemory
from sinlstm_dist.run.progress import Progress
from sinlstm_dist.stepping import KernelSteps, StepByStep, Stepped, new_stepping
from sinlstm_dist.task import Counts

pytestmark = pytest.mark.kernel
CPU = torch.device("cpu")
LONG_NS = 10**12
SMALL = {"data.train_size": 47, "data.window": 5, "data.noise": 0.1, "optim.momentum": 0.9}


class Alone:
    """One process, as a reduction and the kernel see it."""

    size, shared, num_threads, device = 1, None, 1, CPU

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


class Trainee:
    """A predictor that a process trains from its initial weights, in either way."""

    def __init__(self, changes: dict[str, Any], *, world: Any = None, rank: int = 0) -> None:
        world = world or Alone()
        config = load_config(overrides={**SMALL, **changes})
        self.task = sine.build(config, lstm.Choice("fused", "for a test"))
        self.plan = Plan(
            len(self.task.train_data), config.train.global_batch_size, config.train.virtual_shards,
            world.size, rank,
        )  # fmt: skip
        rows = PieceRows(self.task, Counts(), seed=0, device=CPU, num_threads=world.num_threads)
        gradient = OrderedGradient(rows, plan=self.plan, peers=world)
        self.single = StepByStep(gradient, Update(self.task.optimizer, rows.parameters))
        self.kernel = KernelSteps(
            rows, self.task.optimizer, plan=self.plan, shared=world.shared,
            tolerance=config.train.tolerance,
        )  # fmt: skip
        self.progress = Progress()

    def take(self, number: int, *, stop: bool = False) -> Stepped:
        """Some steps in one call, or in as many as it takes."""
        epoch, end = self.progress.epoch, self.progress.step + number
        while True:
            first = self.progress.step_in_epoch
            steps = range(first, first + end - self.progress.step)
            result = self._took(self.kernel, steps, stop=stop)
            is_left = self.progress.epoch == epoch and self.progress.step < end
            if not is_left or result.stop or not math.isfinite(result.loss):
                return result

    def take_singly(self, number: int, *, stop: bool = False) -> Stepped:
        """The same steps, each in a call of its own."""
        for _ in range(number):
            first = self.progress.step_in_epoch
            result = self._took(self.single, range(first, first + 1), stop=stop)
            if stop or not math.isfinite(result.loss):
                break
        return result

    def _took(self, stepping: Any, steps: range, *, stop: bool) -> Stepped:
        spans = [np.arange(*self.plan.span(step)) for step in steps]
        batch = self.task.train_data[np.concatenate(spans)]
        result = stepping(batch, self.progress, most=len(steps), stop=stop)
        self.progress = result.progress
        if self.progress.step_in_epoch == self.plan.num_steps:
            self.progress = self.progress.after_epoch()
        return result

    def state(self) -> list[bytes]:
        """All bits of the weights and of the optimizer's state."""
        model = self.task.model
        tensors = {**model.state_dict(), **optimizer_tensors(model, self.task.optimizer)}
        return [tensors[name].numpy().tobytes() for name in sorted(tensors)]


def cuts(steps: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut some steps into calls."""
    ends = st.lists(st.integers(1, steps), max_size=5, unique=True)
    return ends.map(lambda some: np.diff(sorted({0, *some, steps})).tolist())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_steps_in_one_call_have_the_bits_of_single_ones(data):
    """Weights, velocities and totals, for any sizes; calls and single steps may take turns."""
    changes = {
        "train.global_batch_size": data.draw(st.integers(1, 60), "batch"),
        "train.virtual_shards": data.draw(st.integers(1, 12), "pieces"),
        "model.hidden_size": data.draw(st.integers(1, 9), "units"),
        "model.num_layers": data.draw(st.integers(1, 3), "layers"),
        "optim.momentum": data.draw(st.sampled_from([0.0, 0.9]), "momentum"),
        "optim.lr": data.draw(st.sampled_from([0.01, 0.5, 10.0]), "lr"),
    }
    mine, other = Trainee(changes), Trainee(changes)
    for _ in range(2):  # epochs
        for number in data.draw(cuts(mine.plan.num_steps), "calls"):
            is_single = data.draw(st.booleans(), "single steps")
            way = mine.take_singly if is_single else mine.take
            # As a run has it, and in one call also on a slow machine.
            with np.errstate(all="ignore"), mock.patch.object(stepping, "SLICE_NS", LONG_NS):
                result, expected = way(number), other.take_singly(number)
            assert repr(result) == repr(expected)  # a loss may be nan
            assert mine.state() == other.state()
            if not math.isfinite(result.loss):
                return


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_change_no_bit(num_threads):
    changes = {"train.global_batch_size": 40, "data.train_size": 400, "data.window": 30}
    world = Alone()
    world.num_threads = num_threads
    mine, other = Trainee(changes, world=world), Trainee(changes)
    assert mine.take(10) == other.take_singly(10)
    assert mine.state() == other.state()


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_a_call_ends_with_the_first_step_whose_loss_is_not_finite(step):
    """That step moves nothing."""
    mine, other = Trainee({"train.global_batch_size": 10}), Trainee({"train.global_batch_size": 10})
    for trainee in (mine, other):
        trainee.task.train_data._targets[10 * step + 3] = math.inf
    result = mine.take(5)
    assert result == other.take_singly(5)
    assert (result.progress.step, result.loss) == (step, math.inf)
    if step:  # before the first one, single steps have no velocities, and the kernel has zeros
        assert mine.state() == other.state()
    for name, value in mine.task.model.state_dict().items():
        assert torch.equal(value, other.task.model.state_dict()[name])


def test_a_call_ends_after_the_step_with_a_request_to_stop():
    mine, other = Trainee({"train.global_batch_size": 10}), Trainee({"train.global_batch_size": 10})
    result = mine.take(5, stop=True)
    assert result == other.take_singly(5, stop=True)
    assert (result.progress.step, result.stop) == (1, True)
    assert mine.state() == other.state()


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("slice_ns", [0, 10_000, stepping.SLICE_NS])
def test_processes_that_wait_go_on_where_they_were(size, slice_ns, monkeypatch):
    """Without time, a call returns to Python from nearly each gather; one takes single steps, and
    the last process is asked to stop at last."""
    monkeypatch.setattr(stepping, "SLICE_NS", slice_ns)
    changes = {"train.global_batch_size": 7, "train.virtual_shards": 6}
    alone, memory = Trainee(changes), new_memory(size)
    alone.take_singly(7)
    before = alone.state()
    alone.take_singly(1)
    alone.take_singly(1)

    def work(rank: int) -> None:
        shared = SharedMemory(memory, rank=rank, size=size, spins=False, wait=patiently)
        world = SimpleNamespace(size=size, shared=shared, num_threads=1, device=CPU)
        world.gather = shared.gather
        trainee = Trainee(changes, world=world, rank=rank)
        if rank == 1:
            trainee.take_singly(7)
        else:
            trainee.take(3)
            trainee.take(4)
        assert trainee.state() == before
        asked = trainee.take(5, stop=rank == size - 1) if rank else trainee.take_singly(1)
        assert asked.stop
        assert trainee.take(1).progress == alone.progress
        assert trainee.state() == alone.state()

    in_processes(size, work)


def test_a_process_that_takes_single_steps_fits_those_that_do_not(nursery, straight, tmp_path):
    counts = [{"rank": 1, "of": "memory", "at": 0, "do": "count"}]
    ended = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=3, faults=counts)
    assert ended.codes == [0, 0, 0], ended.stderr
    assert len(ended.events(1)) > 9
    check_same(tmp_path / "run", straight)


def test_killed_at_any_time_and_continued_on_others(nursery, tmp_path):
    """Real kills, between calls and inside: the weights and metrics are those of single steps."""
    every = {"checkpoint.every_epochs": 0, "checkpoint.every_steps": 100}
    settings = {**SETTINGS, **every, "train.epochs": 100_000}

    def saved() -> int:
        return max((int(p.name[5:]) for p in tmp_path.glob("run/checkpoints/step-*")), default=0)

    for processes in (2, 1, 3):
        enough = saved() + 300
        launch = nursery.start(flags(settings), cwd=tmp_path, processes=processes)
        wait_for(lambda: saved() >= enough)  # noqa: B023
        nursery.kill(launch)
        assert launch.codes == [-signal.SIGKILL] * processes
    settings["train.epochs"] = saved() // 3 + 100  # of three steps
    ended = nursery.run(flags(settings), cwd=tmp_path, processes=2)
    assert ended.codes == [0, 0], ended.stderr
    counts = [{"rank": 0, "of": "memory", "at": 0, "do": "count"}]
    (tmp_path / "single").mkdir()
    single = nursery.run(flags(settings), cwd=tmp_path / "single", faults=counts)
    assert single.codes == [0], single.stderr
    check_same(tmp_path / "run", tmp_path / "single/run")


def test_a_graph_through_the_weights_of_before_is_refused():
    """As after a step of any optimizer: torch would give wrong gradients in silence."""
    trainee = Trainee({})
    loss = trainee.task.totals(trainee.task.model, trainee.task.train_data[np.arange(3)])[0]
    trainee.take(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_call_ends_when_its_time_is_up(monkeypatch):
    """So a signal, a lost process and the screen do not wait for all steps of a fetch."""
    batches = {"train.global_batch_size": 5}
    mine, other, single = Trainee(batches), Trainee(batches), Trainee(batches)
    monkeypatch.setattr(stepping, "SLICE_NS", 0)
    assert mine._took(mine.kernel, range(9), stop=False).progress.step == 1
    single.take_singly(1)
    assert mine.state() == single.state()
    monkeypatch.setattr(stepping, "SLICE_NS", LONG_NS)
    assert other._took(other.kernel, range(9), stop=False).progress.step == 9
    single.take_singly(8)
    assert other.state() == single.state()


MANY = {**SETTINGS, "train.global_batch_size": 10, "train.epochs": 1}  # 23 steps, of one fetch


def slow(steps: range, *, seconds: float) -> list[dict[str, Any]]:
    return [{"rank": 1, "of": "step", "at": at, "do": f"sleep {seconds}"} for at in steps]


def test_a_process_that_is_slow_is_not_lost(nursery, tmp_path):
    """`timeout_s` is for each of its steps: all together take longer."""
    settings = {**MANY, "train.timeout_s": 8}
    faults = slow(range(3, 13), seconds=1)
    ended = nursery.run(flags(settings), cwd=tmp_path, processes=2, faults=faults)
    assert ended.codes == [0, 0], ended.stderr
    (tmp_path / "alone").mkdir()
    assert nursery.run(flags(settings), cwd=tmp_path / "alone").codes == [0]
    check_same(tmp_path / "run", tmp_path / "alone/run")


def test_a_request_to_stop_is_heard_between_the_steps_of_a_slow_process(nursery, tmp_path):
    faults = slow(range(2, 24), seconds=0.5)
    launch = nursery.start(flags(MANY), cwd=tmp_path, processes=2, faults=faults)
    wait_for(lambda: len(launch.events(1)) > 4 * len(faults))  # each of them notes each step
    os.kill(launch.children[0].pid, signal.SIGTERM)
    assert nursery.wait(launch).codes == [75, 75], launch.stderr
    assert summary(tmp_path / "run")["step"] < 15


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, ""),
        ({"num_steps": 0}, "0 steps of up to 3 pieces cannot have 3 sizes"),
        ({"num_steps": 2}, "2 steps of up to 3 pieces cannot have 3 sizes"),
        ({"num_rows": 2}, "1 steps of up to 2 pieces cannot have 3 sizes"),
        ({"memory": 64}, "3 rows do not fit into slots"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed, message):
    trainee = Trainee({"train.virtual_shards": 3})
    batch = trainee.task.train_data[np.arange(*trainee.plan.span(0))]
    arguments = trainee.kernel._arguments(batch, range(1), stop=False) | changed
    expected = pytest.raises(ValueError, match=message) if changed else contextlib.nullcontext()
    with expected:
        compiled.kernel().steps(**arguments, totals=np.zeros(4).ctypes.data)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_factor": lambda step, num_steps: 0.5},
        {"clip_norm": 1e-4},
        {"optimizer": lambda model: SGD(model.output_layer.parameters(), lr=0.1)},
        {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1)},
    ],
)
def test_what_the_kernel_cannot_do_is_done_step_by_step(changes, world):
    def adapt(task):
        of_model = {k: v(task.model) if k == "optimizer" else v for k, v in changes.items()}
        return dataclasses.replace(task, **of_model)

    config = load_config(overrides=SMALL)
    assert isinstance(new_stepping(build(config, world), world), KernelSteps)
    assert isinstance(new_stepping(build(config, world, adapt), world), StepByStep)


def test_several_processes_need_memory_that_holds_their_rows(world):
    def way(*, units: int, shared: object) -> type:
        job = build(load_config(overrides={**SMALL, "model.hidden_size": units}), world)
        return type(new_stepping(job, SimpleNamespace(size=2, device=CPU, shared=shared)))

    assert way(units=5, shared=object()) is KernelSteps
    assert way(units=5, shared=None) is StepByStep
    assert way(units=64, shared=object()) is StepByStep  # 8 rows of 69 KB
