"""The sine and its windows: values by the article's formula, noise, memory, and outside users."""

import dataclasses
import decimal
import functools
import itertools
import math
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import TEST_NOISE, TRAIN_NOISE, SineDataset, sine_of_turns
from sinlstm_dist.data.steps import Split, deal_out
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.plan import Plan, epoch_order, in_order, indices_at
from sinlstm_dist.splits import prepared

PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
NOISY = {"size": 64, "window": 7, "noise": 0.02, "seed": 3}


def float32(value: float) -> float:
    return float(np.float32(value))


@pytest.mark.parametrize(
    ("phase", "period", "window"), [(0.0, 60.0, 50), (0.5, 60.0, 50), (2.0, 13.7, 3), (0.0, 60, 1)]
)
def test_values_are_those_of_the_article(phase, period, window):
    dataset = SineDataset(size=130, window=window, period=period, phase=phase)
    for i in (0, 1, 59, 60, 129):
        values, target = dataset[i]
        expected = [math.sin(2 * math.pi * (i + phase + j) / period) for j in range(window + 1)]
        assert (values.shape, values.dtype) == ((window, 1), torch.float32)
        assert (target.shape, target.dtype) == ((1,), torch.float32)
        # Computed in float64 and rounded once: one unit in the last place of 1.0 is 6e-8.
        assert values[:, 0].tolist() == pytest.approx(expected[:-1], abs=6e-8)
        assert target.item() == pytest.approx(expected[-1], abs=6e-8)


def test_far_samples_are_as_exact_as_near_ones():
    """Time steps in float32 would be whole numbers only up to 16,777,216."""
    dataset = SineDataset(size=200_001, window=2, period=60.0, phase=0.5)
    expected = math.sin(2 * math.pi * (200_000 + 0.5) / 60.0)
    assert dataset[200_000][0][0].item() == pytest.approx(expected, abs=6e-8)


def exact_sine(turns: float) -> float:
    """sin(2 pi turns) by its series with 50 digits."""
    with decimal.localcontext(prec=50):
        angle = 2 * PI * (Decimal(turns) - round(turns))
        term = total = angle
        for n in range(2, 80, 2):
            term *= -angle * angle / (n * (n + 1))
            total += term
        return float(total) if 2 * turns % 1 else 0.0


def test_sine_of_turns_is_within_two_units_in_the_last_place():
    rng = np.random.default_rng(0)
    turns = [*rng.uniform(-1, 1, 3000), *rng.uniform(0, 1e6, 1000), *(np.arange(600) / 60)]
    turns += [sign * 2.0**-n for n in range(1, 60) for sign in (1, -1)]
    turns += [0.25 - 2.0**-n for n in range(3, 54)] + [0.5 - 2.0**-n for n in range(2, 54)]
    expected = np.array([exact_sine(float(turn)) for turn in turns])
    found = sine_of_turns(np.array(turns))
    assert (np.abs(found - expected) <= 2 * np.spacing(np.abs(expected))).all()
    assert sine_of_turns(np.array([0.0, 0.25, 0.5, 0.75, 1e15])).tolist() == [0, 1, 0, -1, 0]


def test_length_bounds_and_negative_indices():
    dataset = SineDataset(size=5, window=3)
    assert len(dataset) == 5
    assert torch.equal(dataset[-1][0], dataset[4][0])
    for index in (5, -6, np.array([0, 5])):
        with pytest.raises(IndexError):
            dataset[index]
    assert len(list(dataset)) == 5  # Python's own loop ends where the data set does


def test_a_batch_is_its_samples_stacked():
    for noise in (0.0, 0.02):
        dataset = SineDataset(size=40, window=6, noise=noise)
        windows, targets = dataset[np.array([39, 0, 7, 7])]
        assert (windows.shape, targets.shape) == ((4, 6, 1), (4, 1))
        for row, index in enumerate((39, 0, 7, 7)):
            assert torch.equal(windows[row], dataset[index][0])
            assert torch.equal(targets[row], dataset[index][1])
        assert dataset[np.array([], dtype=np.int64)][0].shape == (0, 6, 1)


WRONG = {
    "size": [0, -1, 2.5, "9", 10**9 + 1, True],
    "window": [0, -3, 1.5, 10_001],
    "period": [0, -60.0, math.nan, math.inf, "60"],
    "noise": [-0.1, math.nan, math.inf],
    "phase": [math.nan, math.inf, "1"],
    "seed": [-1, 2**32, 0.5],
    "stream": [-1, 2**32],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_what_the_configuration_refuses_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"SineDataset: {name}="):
        SineDataset(**{"size": 3, name: value})
    key = {"size": "train_size", "phase": "test_phase", "stream": "seed"}.get(name, name)
    if not isinstance(value, bool | str):  # words of a command line may be numbers
        with pytest.raises(ConfigError, match=f"data.{key}="):
            load_config(None, {f"data.{key}": value})


def test_numbers_of_numpy_are_numbers():
    given = {"size": np.int64(9), "window": np.int32(4), "period": np.float32(7), "noise": 0}
    found, expected = SineDataset(**given), SineDataset(size=9, window=4, period=7.0)
    assert torch.equal(found[3][0], expected[3][0])


@settings(max_examples=100, deadline=None)
@given(data=st.data(), noise=st.sampled_from([0.0, 0.3]))
def test_any_index_gives_single_samples(data, noise):
    size = 23
    dataset = SineDataset(size=size, window=5, noise=noise)
    numbers = st.lists(st.integers(-size, size - 1), max_size=9)
    bound = st.none() | st.integers(-30, 30)
    index = data.draw(
        st.builds(slice, bound, bound, st.none() | st.sampled_from([-2, -1, 1, 3]))
        | numbers
        | numbers.map(lambda found: np.array(found, np.int64))
        | numbers.map(lambda found: np.array(found, np.int8))
        | numbers.map(lambda found: torch.tensor(found, dtype=torch.int64))
        | st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
        | st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)
        | st.lists(st.booleans(), min_size=size, max_size=size)
        | st.integers(-size, size - 1).map(np.int16)
    )
    meant = np.arange(size)[index if not isinstance(index, list) or index else slice(0)]
    windows, targets = dataset[index]
    assert windows.shape == (*meant.shape, 5, 1)
    for row, number in enumerate(meant.reshape(-1).tolist()):
        window, target = dataset[number]
        assert torch.equal(windows.reshape(-1, 5, 1)[row], window)
        assert torch.equal(targets.reshape(-1, 1)[row], target)


@pytest.mark.parametrize(
    "index", [True, None, ..., 1.0, "1", np.array([0.5]), np.ones(4, bool), [7, 23], (1, 2)]
)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_what_is_no_index_is_refused(index, noise):
    with pytest.raises(IndexError):
        SineDataset(size=23, window=5, noise=noise)[index]


def test_writing_to_a_sample_leaves_the_data_set_alone():
    dataset = SineDataset(size=5, window=3)
    before = dataset[2][0].clone()
    for index in (2, np.array([1, 2])):
        windows, targets = dataset[index]
        windows.fill_(9)
        targets.fill_(9)
    assert torch.equal(dataset[2][0], before)
    assert dataset[1][1].item() != 9


# Noise in the data set


def test_noise_is_added_to_windows_only_and_drawn_for_every_window_by_itself():
    clean = SineDataset(size=3000, window=10)
    noisy = SineDataset(size=3000, window=10, noise=0.02)
    everything = np.arange(3000)
    difference = noisy[everything][0] - clean[everything][0]
    assert torch.equal(noisy[everything][1], clean[everything][1])
    assert difference.std().item() == pytest.approx(0.02, rel=0.03)  # 5 sigma of 30,000 numbers
    assert abs(difference.mean().item()) < 5 * 0.02 / math.sqrt(30_000)
    # Windows i and i + 1 share time steps, and would share noise if the series had been noisy.
    shifted = torch.corrcoef(
        torch.stack((difference[1:, :-1].flatten(), difference[:-1, 1:].flatten()))
    )
    assert abs(shifted[0, 1].item()) < 5 / math.sqrt(27_000)


def test_noise_depends_on_seed_stream_and_index_and_on_nothing_else():
    first = SineDataset(**NOISY)[5][0]
    assert torch.equal(SineDataset(**{**NOISY, "size": 6})[5][0], first)
    torch.manual_seed(1)
    assert torch.equal(SineDataset(**NOISY)[5][0], first)
    for other in ({"seed": 4}, {"stream": TEST_NOISE}):
        assert not torch.equal(SineDataset(**{**NOISY, **other})[5][0], first)
    clean = SineDataset(**{**NOISY, "noise": 0.0})
    added = [SineDataset(**NOISY)[i][0] - clean[i][0] for i in (5, 6)]
    assert not torch.allclose(added[0], added[1])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_samples_are_the_same_through_any_number_of_workers(num_workers):
    dataset = SineDataset(**NOISY)
    alone = torch.stack([dataset[i][0] for i in range(64)])
    loader = DataLoader(dataset, batch_size=5, num_workers=num_workers)
    batches = list(loader)
    assert torch.equal(torch.cat([windows for windows, _ in batches]), alone)
    assert torch.equal(torch.cat([targets for _, targets in batches]), dataset[np.arange(64)][1])


def test_a_plain_loader_of_an_outside_user_works():
    dataset = SineDataset(size=10, noise=0.02)
    windows, targets = next(iter(DataLoader(dataset, batch_size=4)))
    assert (windows.shape, windows.dtype) == ((4, 50, 1), torch.float32)
    assert (targets.shape, targets.dtype) == ((4, 1), torch.float32)
    shuffled = list(DataLoader(dataset, batch_size=4, shuffle=True))
    assert [len(targets) for _, targets in shuffled] == [4, 4, 2]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_test_windows_are_not_train_windows(noise):
    everything = np.arange(1000)
    train = SineDataset(size=1000, noise=noise, stream=TRAIN_NOISE)[everything][0].numpy()
    test = SineDataset(size=1000, noise=noise, phase=0.5, stream=TEST_NOISE)[everything][0].numpy()
    seen = {window.tobytes() for window in train}
    assert not any(window.tobytes() in seen for window in test)
    nearest = min(np.abs(train - window).max(axis=(1, 2)).min() for window in test[:60])
    assert nearest > (0.04 if noise else 0.05)  # half a step is 0.052 where the sine is steepest


def test_the_articles_split_tests_on_train_windows():
    """The fault that `test_phase` is for: without it, every test window has been trained on."""
    train, test = SineDataset(size=100), SineDataset(size=60, phase=0.0)
    assert all(torch.equal(test[i][0], train[i][0]) for i in range(60))


# What it costs


def test_ten_million_windows_cost_one_series():
    tracemalloc.start()
    try:
        dataset = SineDataset(size=10_000_000)
        windows, _ = dataset[np.array([0, 9_999_999])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert windows.shape == (2, 50, 1)
    assert peak < 4 * 10_000_050 + 4_000_000  # float32 of the series, and one chunk's workings


def test_ten_million_windows_in_the_memory_of_a_process():
    program = (
        "import resource, numpy, torch\n"
        "from sinlstm_dist.data import SineDataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "dataset = SineDataset(size=10_000_000)\n"
        "dataset[numpy.arange(0, 10_000_000, 99_991)]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert int(printed) < 60_000  # KiB; the series is 39,063 and all windows are 1,953,125


def test_no_line_is_executed_for_each_window():
    def lines(size: int) -> int:
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            SineDataset(size=size)
        finally:
            sys.settrace(before)
        return count

    assert 0 < lines(10) == lines(10_000)


# Steps and shares


class Numbers(Dataset):
    """Samples that are their own index, and its negative."""

    by_array = True

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, index):
        numbers = torch.as_tensor(index)
        return numbers, -numbers


def dealt_out(data: Dataset, plan: Plan, *, order=None, **settings: object) -> Split:
    settings = {"seed": 0, **settings}
    return deal_out(data, plan, order=order or in_order, **settings)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "batch", "first_step"),
    [
        (1, 1, 0),
        (2, 7, 0),
        (97, 7, 3),
        (100, 100, 0),
        (5050, 100, 0),
        (5050, 100, 21),
        (90_000, 4000, 1),
        (530_000, 700, 0),
    ],
)
def test_processes_together_fetch_the_order_of_the_epoch(size, batch, first_step, world_size):
    def shares(rank: int) -> list[tuple[int, list[int]]]:
        """Each step with the samples that it brings to `rank`."""
        plan = Plan(size, batch, 8, world_size, rank)
        split = dealt_out(Numbers(size), plan, order=order_of)
        split.sampler.start(epoch=4, step=first_step)
        assert len(list(split.sampler)) == len(split.sampler)
        # as Accelerate deals them out
        mine = itertools.islice(split.sampler, rank, None, world_size)
        split = dataclasses.replace(split, loader=[split.shares[share] for [share] in mine])
        steps = []
        for step, (windows, targets) in split.batches(epoch=4, first_step=first_step, whole=True):
            assert torch.equal(windows, -targets)
            assert len(windows) == sum(plan.piece_sizes(step))
            steps.append((step, windows.tolist()))
        return steps

    order_of = functools.partial(indices_at, seed=0, size=size)
    order = epoch_order(seed=0, epoch=4, size=size).tolist()
    together = list(zip(*(shares(rank) for rank in range(world_size)), strict=True))
    for step, parts in enumerate(together, start=first_step):
        assert {number for number, _ in parts} == {step}
        joined = list(itertools.chain(*(part for _, part in parts)))
        assert joined == order[step * batch : (step + 1) * batch]
    assert first_step + len(together) == Plan(size, batch, 8).num_steps


def test_small_steps_share_a_fetch_and_large_ones_do_not():
    def fetched(size: int, batch: int, window: int = 50) -> list[int]:
        fetches = []

        class Watched(SineDataset):
            def __getitem__(self, index):
                fetches.append(len(index))
                return super().__getitem__(index)

        plan = Plan(size, batch, 8)
        split = dealt_out(Watched(size=size, window=window), plan)
        fetches.clear()  # one sample told their size
        steps = [len(windows) for _, (windows, _) in split.batches(whole=True)]
        assert steps == [plan.num_samples(step) for step in range(plan.num_steps)]
        return fetches

    assert fetched(50_250, 100) == [20_500, 20_500, 9250]  # of 51 float32: 4 MiB are 20,560
    assert fetched(50_250, 20_000) == [20_000, 20_000, 10_250]
    assert fetched(50_250, 30_000) == [30_000, 20_250]  # one step, even if it is too large
    assert fetched(1000, 100, window=5000) == [200] * 5  # fewer of larger samples


@pytest.mark.parametrize(("device", "moves"), [("cpu", False), ("cuda", True)])
def test_accelerate_moves_samples_to_a_gpu_only(device, moves):
    prepare = mock.Mock()
    world = SimpleNamespace(
        device=torch.device(device), accelerator=SimpleNamespace(prepare=prepare)
    )
    split = dealt_out(Numbers(10), Plan(10, 5, 1))
    assert prepared(split, world).loader is prepare.return_value
    prepare.assert_called_once_with(split.loader, device_placement=[moves])


def test_a_loader_that_brings_too_little_is_noticed():
    split = dealt_out(Numbers(250), Plan(250, 100, 8))
    with pytest.raises(ValueError, match="shorter"):
        list(dataclasses.replace(split, loader=[]).batches(whole=True))


# Ordinary data sets


class Drawn(Dataset):
    """Samples that are drawn at random; `fetched` lists the indices."""

    def __init__(self) -> None:
        self.fetched = []

    def __getitem__(self, index):
        self.fetched.append(index)
        return {"index": index, "drawn": torch.rand(2)}


def test_an_ordinary_data_set_is_fetched_sample_by_sample_and_one_step_at_a_time():
    data, plan = Drawn(), Plan(10, 4, 3, 2, 1)  # the last batch has two samples
    split = dealt_out(data, plan)
    mine = itertools.islice(split.sampler, 1, None, 2)
    split = dataclasses.replace(split, loader=(split.shares[share] for [share] in mine))
    batches = split.batches()
    step, [piece] = next(batches)
    assert (step, piece["index"].tolist(), piece["drawn"].shape) == (0, [3], (1, 2))
    assert data.fetched == [3]
    assert all(type(index) is int for index in data.fetched)
    assert [pieces for _, pieces in batches][-1] == [None]  # fewer samples than pieces


def test_a_sample_is_drawn_by_seed_epoch_and_index():
    def drawn(indices: list[int], *, seed: int = 0, epoch: int = 0) -> list[list[float]]:
        split = dealt_out(Drawn(), Plan(9, 9, 1), seed=seed)
        [piece] = split.some(np.array(indices), [len(indices)], epoch=epoch)
        return piece["drawn"].tolist()

    first, second = drawn([4, 7])
    assert drawn([7, 2, 4])[::2] == [second, first]
    assert first != second
    assert drawn([4], seed=1) != drawn([4]) != drawn([4], epoch=1)


def test_a_batch_by_array_is_cut_into_pieces_of_memory_of_their_own():
    data = SineDataset(size=5, window=3)
    split = dealt_out(data, Plan(5, 4, 3))
    steps = dict(split.batches())
    assert [len(windows) for windows, _ in steps[0]] == [2, 1, 1]
    assert steps[1][1:] == [None, None]
    [windows, targets], empty = split.some(np.array([2, 0]), [2, 0])
    assert empty is None
    assert torch.equal(windows, data[np.array([2, 0])][0])
    for tensor in (windows, targets, *steps[0][1]):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_fingerprint_tells_data_apart():
    def fingerprint(**changed: object) -> str:
        return SineDataset(**{**NOISY, **changed}).fingerprint()

    changes = ({}, {"size": 65}, {"window": 8}, {"noise": 0.03}, {"seed": 4}, {"phase": 0.5},
               {"period": 61.0}, {"stream": TEST_NOISE})  # fmt: skip
    assert fingerprint() == fingerprint()
    assert len({fingerprint(**change) for change in changes}) == len(changes)
