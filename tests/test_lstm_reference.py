"""The reference in numpy has the bits of the compiled kernel, for any numbers and in whole runs."""

import itertools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import flags, metrics
from lstm_cases import instruction_sets, using
from nursery import Nursery
from safetensors.torch import load_file

from sinlstm_dist import lstm
from sinlstm_dist.golden import GOLDEN, weights_digest
from sinlstm_dist.lstm import reference

many = settings(max_examples=60, deadline=None, database=None)
SPECIAL = [np.inf, -np.inf, np.nan, 3e38, 2.0**-126, -1e-40, 1e-45, -0.0]


@dataclass(frozen=True)
class Problem:
    """One call: windows (B, W, D), targets (B, 1), the parameters, sizes of the pieces."""

    windows: np.ndarray
    targets: np.ndarray
    parameters: list[np.ndarray]
    piece_sizes: list[int]
    tolerance: float = 0.5

    def by_kernel(self, function: Callable[..., torch.Tensor]) -> np.ndarray:
        return function(
            windows=torch.from_numpy(self.windows), targets=torch.from_numpy(self.targets),
            parameters=[torch.from_numpy(p) for p in self.parameters],
            piece_sizes=self.piece_sizes, tolerance=self.tolerance,
        ).numpy()  # fmt: skip

    def by_reference(self, *, with_gradient: bool = True) -> np.ndarray:
        return reference.predictor_rows(**vars(self), with_gradient=with_gradient)


def problem(
    seed: int,
    *,
    piece_sizes: list[int],
    W: int = 12,
    D: int = 1,
    H: int = 5,
    L: int = 1,
    scales: tuple[float, ...] = (1.0,),
    specials: float = 0.0,
    **others: Any,
) -> Problem:
    """Random tensors: each has one of the scales, or as a whole several, and special numbers."""
    generator = np.random.default_rng(seed)

    def tensor(*shape: int) -> np.ndarray:
        each = generator.choice(scales, size=shape if generator.random() < 0.3 else None)
        numbers = (generator.standard_normal(shape) * each).astype(np.float32)
        chosen = generator.random(shape) < specials
        numbers[chosen] = generator.choice(SPECIAL, size=chosen.sum())
        return numbers

    B = sum(piece_sizes)
    layers = [[(4 * H, size), (4 * H, H), (4 * H,), (4 * H,)] for size in [D, *[H] * (L - 1)]]
    shapes = [*itertools.chain(*layers), (1, H), (1,)]
    parameters = [tensor(*shape) for shape in shapes]
    return Problem(tensor(B, W, D), tensor(B, 1), parameters, piece_sizes, **others)


def bits(rows: np.ndarray) -> np.ndarray:
    """Bits that can be compared: those of a NaN depend on the CPU."""
    return np.where(np.isnan(rows), np.float32(np.nan), rows).view(np.int32)


def differing(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int((bits(one) != bits(other)).sum())


SIZES = st.lists(
    st.sampled_from([0, 1, 2, 7, 12, 13, 15, 16, 17, 31, 33, 130, 257]), min_size=1, max_size=5
)
SCALES = (
    (1.0,),
    (0.1, 1.0, 10.0),
    (1e2, 1e4, 1e30),  # saturated gates, infinite sums
    (1e-3, 1e-10, 1e-20),
    (1e-37, 1e-38, 1e-39, 1.0),  # subnormal numbers, and results
    (1e-45, 1e-30, 1e-15, 1.0, 1e15, 1e30),
)


@pytest.mark.kernel
@instruction_sets
@many
@given(
    seed=st.integers(0, 2**31),
    piece_sizes=SIZES,
    W=st.sampled_from([1, 2, 9, 10, 11, 24, 25, 30]),
    D=st.sampled_from([1, 1, 2, 3, 5, 9]),
    H=st.sampled_from([1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 12, 20]),
    L=st.sampled_from([1, 1, 2, 3]),
    scales=st.sampled_from(SCALES),
    specials=st.sampled_from([0.0, 0.0, 0.002, 0.1]),
    tolerance=st.sampled_from([0.5, 0.1, 1e-6, 1e-40, 1e30, float("inf")]),
)
def test_the_reference_has_the_kernels_bits(instruction_set: str, **arguments: Any) -> None:
    case = problem(**arguments)
    with using(instruction_set):
        rows, totals = (case.by_kernel(f) for f in (lstm.predictor_rows, lstm.predictor_totals))
    assert differing(case.by_reference(), rows) == 0
    assert differing(case.by_reference(with_gradient=False), totals) == 0


@pytest.mark.kernel
@instruction_sets
def test_vanishing_gradients_have_the_kernels_bits(instruction_set: str) -> None:
    case = problem(2, piece_sizes=[20, 30], W=60, scales=(0.5,))
    case.parameters[1][:] = 0
    case.parameters[2][5:10] = -3  # gates that forget
    case.windows[:, :37], case.windows[:, 37:] = 1, 0  # the gradients of early inputs have vanished
    with using(instruction_set):
        rows = case.by_kernel(lstm.predictor_rows)
    assert 0.2 < (rows[:, :20] == 0).mean() < 0.8
    assert differing(case.by_reference(), rows) == 0


@pytest.mark.kernel
@pytest.mark.parametrize("what", ["packed weights", "sums of items"])
def test_the_callers_float_mode_changes_no_bit(what: str) -> None:
    """Weights are subnormal until they are packed; items add up to a subnormal number."""
    if what == "packed weights":
        case = problem(45, piece_sizes=[1], W=1, H=1, scales=(1e-38,))
        case.windows[:] = 1e38
    else:
        case = problem(14, piece_sizes=[256], W=1, H=1, scales=(1e-19,))
    rows = case.by_kernel(lstm.predictor_rows)
    assert differing(case.by_reference(), rows) == 0
    assert torch.set_flush_denormal(True)
    try:
        assert differing(case.by_kernel(lstm.predictor_rows), rows) == 0
        assert differing(case.by_reference(), rows) == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.kernel
def test_no_pieces() -> None:
    case = problem(3, piece_sizes=[])
    assert differing(case.by_reference(), case.by_kernel(lstm.predictor_rows)) == 0


@pytest.mark.kernel
@instruction_sets
def test_sums_that_float64_rounds_twice(
    instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient times 1.5 often lies halfway between two float32 numbers. A tiny term before it
    decides; but that term is lost where the sum is rounded to a float64 first."""
    case = problem(4, piece_sizes=[16], W=2)
    case.windows[:, 0], case.windows[:, 1] = 1.5, 2.0**-60
    with using(instruction_set):
        rows = case.by_kernel(lstm.predictor_rows)
    assert differing(case.by_reference(), rows) == 0
    monkeypatch.setattr(reference, "_fma", lambda a, b, c: reference._rounded(a * b + c))
    assert differing(case.by_reference(), rows) > 0


@pytest.mark.kernel
@pytest.mark.skipif(platform.machine() == "aarch64", reason="Arm makes them zero: float_mode.h")
@instruction_sets
def test_products_that_round_to_the_smallest_normal_number(
    instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept. Products that are a little smaller become zero."""
    gates = np.r_[0:5, 10:20]  # those that forget have no gradient in a first step
    case = problem(5, piece_sizes=[1], W=1, D=len(gates))
    case.parameters[0][:] = 0  # the gates' gradients do not depend on the inputs
    bias = slice(20 * (len(gates) + 5), 20 * (len(gates) + 6))
    gradients = np.abs(case.by_reference()[0, bias][gates].astype(np.float64))
    inputs = (2.0**-126 / gradients).astype(np.float32)
    too_large = inputs * gradients >= 2.0**-126
    case.windows[0, 0] = np.where(too_large, np.nextafter(inputs, np.float32(0)), inputs)
    products = case.windows[0, 0] * gradients
    are_kept = products >= 2.0**-126 - 2.0**-151  # all are less than 2**-126
    assert 3 < are_kept.sum() < 12
    with using(instruction_set):
        rows = case.by_kernel(lstm.predictor_rows)
    found = np.abs(rows[0, : 20 * len(gates)].reshape(20, -1)[gates])
    assert (found.diagonal() == np.where(are_kept, 2.0**-126, 0)).all()
    assert differing(case.by_reference(), rows) == 0
    monkeypatch.setattr(reference, "_TINY", 2.0**-126)
    assert differing(case.by_reference(), rows) >= are_kept.sum()


def nearest(exact: Fraction) -> Fraction:
    """The nearest number of 24 bits; of two, the even one."""
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length() - 24
    while abs(exact) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    return round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent


def test_a_multiply_add_is_rounded_once() -> None:
    """Against exact fractions, where factors of few bits make many sums lie near halfway."""
    powers = [2.0**-40, 2.0**-24, 2.0**-1, 1.0, 2.0**30]
    numbers = [1.0, 1.5, 1 + 2.0**-12, 1 + 2.0**-23, 1 - 2.0**-24, 4097.0]
    factors = np.array(numbers)
    summands = np.array([s * n * p for s in (1, -1) for n in numbers for p in powers])
    a, b, c = (grid.ravel() for grid in np.meshgrid(factors, factors, summands))
    found = reference._fma(a, b, c)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a, b, c, strict=True)]
    expected = [float(nearest(sum_)) if sum_ else 0.0 for sum_ in exact]
    assert found.tolist() == expected
    assert ((a * b + c).astype(np.float32) != found).sum() > 5  # negative control


def last_bit_changed(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    last = np.nextafter(np.float32(coefficients[-1]), np.float32(0))
    return (*coefficients[:-1], float(last))


def neighbours_first(blocks: np.ndarray) -> np.ndarray:
    """Sums of lanes along another tree, for a piece of one block."""
    lanes = blocks[:, 0]
    while lanes.shape[1] > 1:
        lanes = reference._add(lanes[:, ::2], lanes[:, 1::2])
    return lanes[:, 0].astype(np.float32)


def from_the_last(
    weights: np.ndarray, columns: np.ndarray, first: np.ndarray | float
) -> np.ndarray:
    return WEIGHTED(weights[:, ::-1], columns[::-1], first)


WEIGHTED = reference._weighted
CHANGES = {
    "_SIGMOID": last_bit_changed(reference._SIGMOID),
    "_TANH": last_bit_changed(reference._TANH),
    "_LOG2_E": np.nextafter(np.float32(reference._LOG2_E), np.float32(0)),
    "_fma": lambda a, b, c: reference._add(reference._mul(a, b), c),  # contraction, or not
    "_piece_sum": neighbours_first,
    "_weighted": from_the_last,
}


@pytest.mark.kernel
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_one_operation_is_seen(
    name: str, L: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls: a coefficient's last bit, an order, a second rounding."""
    case = problem(6, piece_sizes=[13, 16], W=30, L=L)
    with using(lstm.instruction_sets()[0]):
        rows = case.by_kernel(lstm.predictor_rows)
    assert differing(case.by_reference(), rows) == 0
    monkeypatch.setattr(reference, name, CHANGES[name])
    assert differing(case.by_reference(), rows) > 0


@pytest.mark.kernel
def test_items_are_added_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem(7, piece_sizes=[300], W=5)
    rows = case.by_kernel(lstm.predictor_rows)
    assert differing(case.by_reference(), rows) == 0
    monkeypatch.setattr(reference, "ITEM_BLOCKS", 16)
    assert differing(case.by_reference(), rows) > 0


# Runs


@pytest.mark.parametrize("name", ["momentum", "other sizes", "two layers"])
def test_a_run_ends_with_the_known_weights(name: str, nursery: Nursery, tmp_path: Path) -> None:
    """The kernel's, on one process and on two: see test_golden.py."""
    golden = GOLDEN[name]
    for processes in (1, 2):
        run = f"{processes}"
        arguments = flags({**golden.changed, "model.lstm": "reference", "output.dir": run})
        launch = nursery.run(arguments, cwd=tmp_path, processes=processes)
        assert launch.codes == [0] * processes, launch.stderr
        assert "recurrence: reference (numpy, slow and exact)" in launch.stdout
        assert weights_digest(load_file(tmp_path / run / "model.safetensors")) == golden.digest
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")


SHORT = {"data.train_size": 230, "data.test_size": 101, "data.window": 12, "train.epochs": 2}


@pytest.mark.kernel
def test_a_runs_record_is_the_kernels(nursery: Nursery, tmp_path: Path) -> None:
    for name in ("reference", "fused"):
        arguments = flags({**SHORT, "model.lstm": name, "output.dir": name})
        assert nursery.run(arguments, cwd=tmp_path).codes == [0]
    assert metrics(tmp_path / "reference") == metrics(tmp_path / "fused")


def test_all_commands_take_its_runs(nursery: Nursery, tmp_path: Path) -> None:
    arguments = flags({**SHORT, "model.lstm": "reference", "output.dir": "run"})
    assert nursery.run(arguments, cwd=tmp_path).codes == [0]
    for module, *more in (
        ("evaluate",),
        ("forecast", "--steps", "10", "--csv", "far.csv"),
        ("export", "--output", "sine.onnx"),
        ("compare",),
        ("plot", "--output", "run.png"),
    ):
        ended = nursery.run(["run", *more], cwd=tmp_path, module=module)
        assert ended.codes == [0], ended.stderr


def test_verify_takes_it(nursery: Nursery, tmp_path: Path) -> None:
    arguments = ["--model.lstm", "reference", "--data.window", "2"]
    ended = nursery.run(arguments, cwd=tmp_path, processes=2, module="verify")
    assert ended.codes == [0, 0], ended.stdout
    table = " ".join(ended.stdout.split())
    assert "recurrence: reference (numpy, slow and exact), ordered reduction" in table
    golden = GOLDEN["noisy"].digest[:8]
    assert (
        "Golden PASS 1 configuration on all processes together, 1 on each process alone: the known "
        f"weights, SHA-256 noisy {golden}"
    ) in table


def test_what_it_cannot_compute_is_refused() -> None:
    sizes = {"input_size": 1, "hidden_size": 500, "num_layers": 3}
    found = lstm.choose("reference", device_type="cpu", **sizes)
    assert found == lstm.Choice("reference", "numpy, slow and exact")
    with pytest.raises(ValueError, match='"reference" cannot be used with device cuda'):
        lstm.choose("reference", device_type="cuda", **sizes)


def test_the_wrapper_of_ddp_computes_with_torch(nursery: Nursery, tmp_path: Path) -> None:
    settings = {**SHORT, "model.lstm": "reference", "train.reduction": "ddp"}
    launch = nursery.run(flags(settings), cwd=tmp_path)
    assert launch.codes == [0]
    assert "recurrence: torch (the reference is for ordered reduction)" in launch.stdout
