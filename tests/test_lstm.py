"""The compiled kernel against torch.nn.LSTM in float64, and against itself: the same bits always.

Tolerances: float32 keeps 6e-8 relative; outputs lie in (-1, 1) and pass tens of roundings (1e-6);
gradients add hundreds of terms, and are compared relative to their largest entry (1e-5).
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sinlstm_dist import lstm
from sinlstm_dist.lstm import compiled

ROOT = Path(__file__).parents[1]
SIZES = {"input_size": 1, "hidden_size": 5, "num_layers": 1}
NUM_TOTALS = 3

few = settings(max_examples=12, deadline=None, database=None)
pytestmark = pytest.mark.kernel
# All that this CPU has.
AVAILABLE = ("plain",) if compiled.missing() else lstm.instruction_sets()
instruction_sets = pytest.mark.parametrize("instruction_set", AVAILABLE)


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    before = lstm.instruction_set()
    lstm.set_instruction_set(name)
    try:
        yield
    finally:
        lstm.set_instruction_set(before)


class Case:
    """Random weights and samples of one size, and the same in float64 for nn.LSTM."""

    def __init__(self, seed: int, B: int, W: int, D: int, H: int) -> None:
        torch.manual_seed(seed)
        self.inputs = torch.randn(B, W, D)
        self.targets = torch.randn(B, 1)
        self.rnn, self.head = nn.LSTM(D, H, batch_first=True), nn.Linear(H, 1)
        self.state0 = (torch.randn(1, B, H), torch.randn(1, B, H))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.rnn.parameters(), *self.head.parameters()]

    def oracle(self) -> tuple[nn.LSTM, nn.Linear]:
        rnn = nn.LSTM(self.rnn.input_size, self.rnn.hidden_size, batch_first=True).double()
        head = nn.Linear(self.rnn.hidden_size, 1).double()
        rnn.load_state_dict(self.rnn.state_dict())
        head.load_state_dict(self.head.state_dict())
        return rnn, head

    def rows(self, piece_sizes: list[int], **keywords: object) -> Tensor:
        arguments = {
            "windows": self.inputs,
            "targets": self.targets,
            "parameters": self.parameters,
            "tolerance": 0.5,
            **keywords,
        }
        return lstm.predictor_rows(piece_sizes=piece_sizes, **arguments)  # type: ignore[arg-type]

    def totals(self, piece_sizes: list[int], **keywords: object) -> Tensor:
        arguments = {
            "windows": self.inputs,
            "targets": self.targets,
            "parameters": self.parameters,
            "tolerance": 0.5,
            **keywords,
        }
        return lstm.predictor_totals(piece_sizes=piece_sizes, **arguments)  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn, *, min_samples: int = 0) -> Case:
    H = draw(st.sampled_from([1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 16, 33, 64]))
    return Case(
        draw(st.integers(0, 2**31)),
        draw(st.integers(min_samples, 40)),
        draw(st.sampled_from([1, 2, 9, 10, 11, 23, 24, 25, 50] if H <= 9 else [1, 3, 24, 25])),
        draw(st.sampled_from([1, 1, 2, 3, 4, 7])),
        H,
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(
        a.detach().contiguous().view(torch.int32), b.detach().contiguous().view(torch.int32)
    )


def at_offset(tensor: Tensor, num_floats: int) -> Tensor:
    """The same values at another alignment."""
    storage = torch.full((tensor.numel() + 16,), float("nan"))
    moved = storage[num_floats : num_floats + tensor.numel()].view(tensor.shape)
    return moved.copy_(tensor.detach())


def assert_gradients_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """1e-5 of each tensor's largest entry; where samples cancel, 1e-6 of the largest of all, and
    1e-6, because an error of 1e-7 in a prediction is a large part of a small prediction error."""
    largest = [e.abs().max().item() if e.numel() else 0.0 for e in expected]
    for f, e, scale in zip(found, expected, largest, strict=True):
        atol = 1e-5 * scale + 1e-6 * max(largest) + 1e-6
        torch.testing.assert_close(f.double(), e, rtol=0, atol=atol)


LAYOUTS = {
    "contiguous": lambda t: t,
    "time first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "features first": lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every second sample": lambda t: t.repeat_interleave(2, dim=0)[::2],
}


# ------------------------------------------------------------------ the differentiable operation


@instruction_sets
@few
@given(case=cases(), with_state=st.booleans(), layout=st.sampled_from(list(LAYOUTS)))
def test_lstm_agrees_with_torch(
    instruction_set: str, case: Case, with_state: bool, layout: str
) -> None:
    with using(instruction_set):
        rnn, _ = case.oracle()
        inputs = LAYOUTS[layout](case.inputs).detach().requires_grad_()
        inputs64 = case.inputs.double().requires_grad_()
        state0 = [s.requires_grad_() for s in case.state0] if with_state else []
        state64 = [s.detach().double().requires_grad_() for s in state0]

        outputs, state = lstm.lstm(
            inputs, *case.rnn.parameters(), tuple(state0) if with_state else None
        )
        outputs64, state_64 = rnn(inputs64, tuple(state64) if with_state else None)
        for found, expected in zip((outputs, *state), (outputs64, *state_64), strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)

        factors = [torch.randn_like(t) for t in (outputs, *state)]
        for results in ((outputs, *state), (outputs64, *state_64)):
            sum((t * f).sum() for t, f in zip(results, factors, strict=True)).backward()
        ours = [inputs, *state0, *case.rnn.parameters()]
        theirs = [inputs64, *state64, *rnn.parameters()]
        assert_gradients_close([t.grad for t in ours], [t.grad for t in theirs])


@pytest.mark.parametrize("loss", ["last step", "plain sum", "cell only", "hidden only"])
def test_lstm_takes_any_gradient_of_its_results(loss: str) -> None:
    case = Case(0, 21, 12, 1, 5)
    rnn, _ = case.oracle()
    for module, inputs in ((case.rnn, case.inputs), (rnn, case.inputs.double())):
        if module is case.rnn:
            outputs, (hidden, cell) = lstm.lstm(inputs, *module.parameters())
        else:
            outputs, (hidden, cell) = module(inputs)
        results = {
            "last step": outputs[:, -1].square().sum(),
            "plain sum": outputs.sum(),
            "cell only": cell.square().sum(),
            "hidden only": hidden.square().sum(),
        }
        results[loss].backward()
    assert_gradients_close(
        [p.grad for p in case.rnn.parameters()], [p.grad for p in rnn.parameters()]
    )


def test_lstm_can_go_back_twice_and_once_differentiable() -> None:
    case = Case(1, 20, 13, 2, 5)
    outputs, _ = lstm.lstm(case.inputs, *case.rnn.parameters())
    parameters = list(case.rnn.parameters())
    first = torch.autograd.grad(outputs.sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(outputs.sum(), parameters, retain_graph=True)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    inputs = case.inputs.requires_grad_()
    (slope,) = torch.autograd.grad(
        lstm.lstm(inputs, *parameters)[0].square().sum(), inputs, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_lstm_without_gradients_gives_the_same_bits() -> None:
    case = Case(2, 37, 20, 1, 5)
    outputs, _ = lstm.lstm(case.inputs, *case.rnn.parameters())
    with torch.no_grad():
        assert same_bits(outputs, lstm.lstm(case.inputs, *case.rnn.parameters())[0])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_lstm_does_not_depend_on_threads(num_threads: int) -> None:
    case = Case(3, 700, 30, 2, 5)

    def everything(num_threads: int) -> list[Tensor]:
        inputs = case.inputs.clone().requires_grad_()
        case.rnn.zero_grad()
        outputs, _ = lstm.lstm(inputs, *case.rnn.parameters(), num_threads=num_threads)
        outputs.square().sum().backward()
        return [outputs, inputs.grad, *(p.grad for p in case.rnn.parameters())]

    for a, b in zip(everything(1), everything(num_threads), strict=True):
        assert same_bits(a, b)


def test_lstm_sample_does_not_depend_on_its_place() -> None:
    case = Case(4, 50, 20, 1, 5)
    outputs, _ = lstm.lstm(case.inputs, *case.rnn.parameters())
    for place in (0, 7, 31, 49):
        alone, _ = lstm.lstm(case.inputs[place : place + 1], *case.rnn.parameters())
        assert same_bits(outputs[place : place + 1], alone)


def test_lstm_of_no_samples() -> None:
    case = Case(5, 0, 10, 1, 5)
    outputs, (hidden, cell) = lstm.lstm(case.inputs, *case.rnn.parameters())
    assert outputs.shape == (0, 10, 5)
    assert hidden.shape == cell.shape == (1, 0, 5)
    outputs.sum().backward()
    assert all((p.grad == 0).all() for p in case.rnn.parameters())


@instruction_sets
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e30", "-300"])
def test_lstm_meets_extreme_inputs_as_torch_does(instruction_set: str, value: str) -> None:
    with using(instruction_set):
        case = Case(6, 20, 6, 2, 5)
        case.inputs[3, 2, 1] = float(value)
        rnn, _ = case.oracle()
        outputs, (_, cell) = lstm.lstm(case.inputs, *case.rnn.parameters())
        outputs64, (_, cell64) = rnn(case.inputs.double())
        for found, expected in ((outputs, outputs64), (cell, cell64)):
            torch.testing.assert_close(
                found.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True
            )
        outputs.sum().backward()
        outputs64.sum().backward()
        for ours, theirs in zip(case.rnn.parameters(), rnn.parameters(), strict=True):
            assert torch.equal(ours.grad.isnan(), theirs.grad.isnan())


@instruction_sets
def test_sigmoid_and_tanh_are_accurate(instruction_set: str) -> None:
    """One step with a gate held open makes the cell equal to the other gate."""
    grid = torch.cat([torch.linspace(-80, 80, 4001), torch.logspace(-30, 1.5, 2000)])
    x = torch.cat([grid, -grid])[:, None, None]
    gate_weights = {"sigmoid": [1.0, 0, 0, 0], "tanh": [0, 0, 1.0, 0]}
    gate_biases = {"sigmoid": [0, 0, 200.0, 0], "tanh": [200.0, 0, 0, 0]}
    with using(instruction_set):
        for name, function in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh)):
            weight, bias = torch.tensor(gate_weights[name]), torch.tensor(gate_biases[name])
            _, (_, cell) = lstm.lstm(x, weight[:, None], torch.zeros(4, 1), bias, torch.zeros(4))
            exact = function(x.double().flatten())
            error = ((cell.flatten().double() - exact) / exact).abs()
            # 2 ulp, and the rounding of the exponent itself, which nn.LSTM's sums have as well
            bound = 2.4e-7 + (1.2e-7 * x.flatten().abs() if name == "sigmoid" else 0)
            assert (error <= bound).all(), (name, error.max(), x.flatten()[error.argmax()])


def test_lstm_refuses_what_it_cannot_compute() -> None:
    case = Case(7, 3, 4, 2, 5)
    parameters = list(case.rnn.parameters())
    with pytest.raises(ValueError, match=r"inputs is torch.float64 on cpu.*needs torch.float32"):
        lstm.lstm(case.inputs.double(), *parameters)
    with pytest.raises(ValueError, match=r"weight_ih is torch.float64"):
        lstm.lstm(case.inputs, *[p.double() for p in parameters])
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        lstm.lstm(case.inputs[..., 0], *parameters)
    with pytest.raises(ValueError, match=r"W at least 1"):
        lstm.lstm(case.inputs[:, :0], *parameters)
    with pytest.raises(ValueError, match=r"inputs with D=1 need"):
        lstm.lstm(case.inputs[..., :1], *parameters)
    with pytest.raises(ValueError, match=r"state of shape \(1, 2, 5\)"):
        lstm.lstm(case.inputs[:1], *parameters, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
    big = nn.LSTM(1, 65, batch_first=True)
    with pytest.raises(ValueError, match="hidden size of at most 64"):
        lstm.lstm(torch.zeros(1, 2, 1), *big.parameters())


# ------------------------------------------------------------------ the predictor's rows


def expected_row(case: Case, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and sum of squared errors of a piece by autograd in float64, and |error|."""
    rnn, head = case.oracle()
    outputs, _ = rnn(case.inputs[begin:end].double())
    error = head(outputs[:, -1]) - case.targets[begin:end].double()
    error.square().sum().backward()
    parameters = [*rnn.parameters(), *head.parameters()]
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    return gradient, error.detach().square().sum(), error.detach().abs()


@instruction_sets
@few
@given(case=cases(), data=st.data())
def test_rows_agree_with_autograd(instruction_set: str, case: Case, data: st.DataObject) -> None:
    with using(instruction_set):
        B = case.inputs.shape[0]
        cuts = sorted(data.draw(st.lists(st.integers(0, B), max_size=3)))
        bounds = list(zip([0, *cuts], [*cuts, B], strict=True))
        rows = case.rows([end - begin for begin, end in bounds])
        sizes = [p.numel() for p in case.parameters]
        assert rows.shape == (len(bounds), sum(sizes) + NUM_TOTALS)
        for row, (begin, end) in zip(rows, bounds, strict=True):
            gradient, squared_error, distance = expected_row(case, begin, end)
            *found, error, correct, count = row.split([*sizes, 1, 1, 1])
            assert_gradients_close(found, list(gradient.split(sizes)))
            torch.testing.assert_close(
                error.double()[0], squared_error, rtol=1e-5, atol=1e-6, check_dtype=False
            )
            certain = (distance - 0.5).abs() > 1e-5
            assert abs(correct.item() - (distance < 0.5)[certain].sum()) <= (~certain).sum()
            assert count.item() == end - begin


@pytest.mark.parametrize("H", [5, 6])
def test_pieces_of_many_blocks_agree_with_autograd(H: int) -> None:
    """Items of 128 samples are added up: pieces on both sides of one, two and three items."""
    sizes = [127, 128, 129, 300]
    case = Case(20, sum(sizes), 6, 1, H)
    rows = case.rows(sizes)
    begin = 0
    for row, size in zip(rows, sizes, strict=True):
        gradient, squared_error, _ = expected_row(case, begin, begin + size)
        assert_gradients_close([row[:-NUM_TOTALS]], [gradient])
        torch.testing.assert_close(row[-NUM_TOTALS].double(), squared_error, rtol=1e-5, atol=0)
        assert row[-1] == size
        begin += size
    rnn, _ = case.oracle()
    lstm.lstm(case.inputs, *case.rnn.parameters())[0].square().sum().backward()
    rnn(case.inputs.double())[0].square().sum().backward()
    assert_gradients_close(
        [p.grad for p in case.rnn.parameters()], [p.grad for p in rnn.parameters()]
    )


@instruction_sets
@few
@given(case=cases(min_samples=1))
def test_totals_are_the_rows_totals(instruction_set: str, case: Case) -> None:
    with using(instruction_set):
        B = case.inputs.shape[0]
        sizes = [B // 2, B - B // 2]
        assert same_bits(case.totals(sizes), case.rows(sizes)[:, -NUM_TOTALS:])


def test_correct_is_decided_in_float32_as_torch_does() -> None:
    case = Case(8, 64, 5, 1, 5)
    for p in case.parameters:
        p.data.zero_()  # predictions are exactly zero
    tolerance = 0.1
    near = torch.tensor(tolerance)
    values = [near, -near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(1.0))]
    case.targets = torch.stack(values * 16)[:, None]
    expected = (case.targets.abs() < tolerance).sum()
    assert expected == 16
    assert case.rows([64], tolerance=tolerance)[0, -2] == expected


SIZES_OF_PIECES = [200, 0, 37, 129, 16, 1, 13]


@instruction_sets
@pytest.mark.parametrize("num_threads", [2, 3])
def test_rows_do_not_depend_on_threads(instruction_set: str, num_threads: int) -> None:
    with using(instruction_set):
        case = Case(9, sum(SIZES_OF_PIECES), 50, 1, 5)
        alone = case.rows(SIZES_OF_PIECES)
        for _ in range(20):
            assert same_bits(alone, case.rows(SIZES_OF_PIECES, num_threads=num_threads))
        alone = case.totals(SIZES_OF_PIECES)
        assert same_bits(alone, case.totals(SIZES_OF_PIECES, num_threads=num_threads))


@instruction_sets
@pytest.mark.parametrize("H", [5, 7])
def test_rows_do_not_depend_on_alignment(instruction_set: str, H: int) -> None:
    with using(instruction_set):
        case = Case(10, 45, 12, 1, H)
        expected = case.rows([20, 25])
        for offset in range(1, 16):
            found = case.rows(
                [20, 25],
                windows=at_offset(case.inputs, offset),
                targets=at_offset(case.targets, 16 - offset),
                parameters=[at_offset(p, (offset * 7) % 16) for p in case.parameters],
                out=at_offset(torch.zeros(expected.shape), offset),
            )
            assert same_bits(expected, found)


@instruction_sets
def test_row_does_not_depend_on_neighbours(instruction_set: str) -> None:
    """Whatever stands before and behind a piece, NaN in it too; 13 leaves idle lanes."""
    with using(instruction_set):
        for size in (1, 13, 16, 150):
            case = Case(11, size, 20, 1, 5)
            alone = case.rows([size])[0]
            for before, behind in ((0, 3), (5, 0), (16, 20), (33, 150)):
                nan_before = torch.full((before, 20, 1), float("nan"))
                nan_behind = torch.full((behind, 20, 1), float("inf"))
                found = case.rows(
                    [before, size, behind],
                    windows=torch.cat([nan_before, case.inputs, nan_behind]),
                    targets=torch.cat([nan_before[:, 0], case.targets, nan_behind[:, 0]]),
                )
                assert same_bits(alone, found[1])
                assert same_bits(case.totals([size])[0], found[1, -NUM_TOTALS:])


def test_idle_lanes_add_nothing_even_to_infinite_weights() -> None:
    """An infinite weight times an idle lane's zeros is NaN; its samples' inputs are not zero."""
    case = Case(12, 3, 1, 1, 5)
    case.inputs.abs_().add_(1)
    case.rnn.weight_ih_l0.data[:, 0] = float("inf")
    row = case.rows([3])
    assert row[0, -NUM_TOTALS:].isfinite().all()
    assert row[0, -NUM_TOTALS - 6 : -NUM_TOTALS].isfinite().all()  # the head's gradient
    rnn, head = case.rnn, case.head
    (head(rnn(case.inputs)[0][:, -1]) - case.targets).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in case.parameters])
    torch.testing.assert_close(row[0, :-NUM_TOTALS], expected, rtol=1e-5, atol=1e-6)


def test_nan_sample_spoils_its_own_piece_only() -> None:
    case = Case(13, 40, 10, 1, 5)
    case.inputs[5, 3] = float("nan")
    clean = Case(13, 40, 10, 1, 5)
    rows, expected = case.rows([13, 27]), clean.rows([13, 27])
    assert rows[0, :-2].isnan().all()
    assert rows[0, -2] == (expected_row(case, 0, 13)[2] < 0.5).sum()
    assert rows[0, -1] == 13
    assert same_bits(rows[1], expected[1])


def test_results_do_not_depend_on_the_callers_float_mode() -> None:
    """Gradients of early steps of a long window, with closed gates, are subnormal numbers."""
    case = Case(14, 20, 60, 1, 5)
    case.rnn.bias_ih_l0.data[5:10] = -3

    def input_gradient() -> Tensor:
        inputs = case.inputs.clone().requires_grad_()
        outputs, _ = lstm.lstm(inputs, *case.rnn.parameters())
        (gradient,) = torch.autograd.grad(outputs[:, -1].sum(), inputs)
        return gradient

    expected = input_gradient()
    assert (expected == 0).any()
    assert torch.set_flush_denormal(True)
    try:
        assert same_bits(expected, input_gradient())
    finally:
        torch.set_flush_denormal(False)
    case.rows([20])
    assert torch.tensor(1e-40) * 1 != 0  # the caller's mode is left as it was


def test_rows_of_indices_are_rows_of_the_gathered_batch() -> None:
    case = Case(15, 60, 11, 2, 5)
    indices = torch.randint(60, (45,))
    gathered = case.rows([20, 25], windows=case.inputs[indices], targets=case.targets[indices])
    assert same_bits(gathered, case.rows([20, 25], indices=indices))
    series = torch.randn(70)
    windows = series.unfold(0, 11, 1)[:, :, None]  # (60, 11, 1), overlapping in memory
    one = Case(16, 60, 11, 1, 5)
    expected = one.rows([45], windows=windows[indices].clone(), targets=case.targets[indices])
    found = one.rows([45], windows=windows, targets=case.targets, indices=indices)
    assert same_bits(expected, found)


def test_rows_of_no_samples_are_zeros() -> None:
    case = Case(17, 0, 10, 1, 5)
    out = torch.full((3, 169), float("nan"))
    assert (case.rows([0, 0, 0], out=out) == 0).all()
    assert (case.totals([0]) == 0).all()
    assert case.rows([]).shape == (0, 169)


def test_out_is_written_and_nothing_beside_it() -> None:
    case = Case(18, 30, 10, 1, 5)
    expected = case.rows([13, 17])
    out = torch.full((4, 200), 7.0)
    view = case.rows([13, 17], out=out[:, 5:190])
    assert view.data_ptr() == out[0, 5:].data_ptr()
    assert same_bits(view, expected)
    assert same_bits(out[:2, 5:174], expected)
    assert (out[2:] == 7).all()
    assert (out[:, :5] == 7).all()
    assert (out[:, 174:] == 7).all()


def test_rows_refuse_what_does_not_fit() -> None:
    case = Case(19, 10, 4, 1, 5)
    with pytest.raises(ValueError, match="piece_sizes add up to 9, but there are 10 samples"):
        case.rows([4, 5])
    with pytest.raises(ValueError, match="piece 1 has size -1"):
        case.rows([11, -1])
    with pytest.raises(ValueError, match=r"need \(B, 1\)"):
        case.rows([10], targets=case.targets[:, 0])
    with pytest.raises(ValueError, match="6 are needed"):
        case.rows([10], parameters=case.parameters[:4])
    with pytest.raises(ValueError, match=r"targets is torch.float64"):
        case.rows([10], targets=case.targets.double())
    with pytest.raises(ValueError, match=r"parameter_5 is torch.float16"):
        case.rows([10], parameters=[*case.parameters[:5], case.parameters[5].half()])
    with pytest.raises(ValueError, match=r"at least \(1, 169\)"):
        case.rows([10], out=torch.zeros(1, 168))
    with pytest.raises(IndexError, match=r"indices\[1\] is 10, but there are 10 windows"):
        case.rows([2], indices=torch.tensor([0, 10]))
    with pytest.raises(ValueError, match=r"torch.int64"):
        case.rows([2], indices=torch.tensor([0, 1], dtype=torch.int32))


# ------------------------------------------------------------------ choice and instruction sets


def test_the_compiled_kernel_is_there() -> None:
    assert compiled.missing() == ""
    assert "plain" in lstm.instruction_sets()
    forced = os.environ.get("SINLSTM_DIST_INSTRUCTION_SET")
    assert lstm.instruction_set() == (forced or lstm.instruction_sets()[0])


def test_choice() -> None:
    auto = lstm.choose("auto", device_type="cpu", **SIZES)
    assert auto.name == "fused"
    assert auto.reason == f"compiled kernel, {compiled.label()}"
    assert lstm.choose("fused", device_type="cpu", **SIZES) == auto
    assert lstm.choose("torch", device_type="cpu", **SIZES).name == "torch"


def test_instruction_set_is_named_and_refused() -> None:
    with using("plain"):
        assert lstm.instruction_set() == "plain"
        assert lstm.choose("auto", device_type="cpu", **SIZES).reason == "compiled kernel, plain"
    with pytest.raises(ValueError, match="'neon' is not on this machine: use one of"):
        lstm.set_instruction_set("neon")


# ------------------------------------------------------------------ processes


def run_python(*parts: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "".join(parts)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


THREADED_CALL = """
import os, sys, time, torch
from sinlstm_dist import lstm
from sinlstm_dist.lstm import compiled
num_workers = compiled.kernel().num_workers
torch.manual_seed(0)
rnn, head = torch.nn.LSTM(1, 5, batch_first=True), torch.nn.Linear(5, 1)
arguments = dict(windows=torch.randn(1000, 50, 1), targets=torch.randn(1000, 1), tolerance=0.1,
                 piece_sizes=[125] * 8, parameters=[*rnn.parameters(), *head.parameters()])
alone = lstm.predictor_rows(**arguments)
assert num_workers() == 0  # one thread starts no pool
rows = lambda: lstm.predictor_rows(num_threads=3, **arguments)
assert torch.equal(rows(), alone)
assert num_workers() == 2
"""


def test_pool_survives_a_fork_and_ends_with_the_process() -> None:
    script = """
for i in range(6):
    child = os.fork()
    if child == 0:
        ok = num_workers() == 0 and torch.equal(rows(), alone) and num_workers() == 2
        sys.exit(0 if ok else 1) if i % 2 else os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(rows(), alone)
print("end")
"""
    result = run_python(THREADED_CALL, script)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


def test_idle_pool_uses_no_cpu() -> None:
    script = """
from pathlib import Path

def workers():  # of each other thread: its state, and how often it was switched to
    for task in Path("/proc/self/task").iterdir():
        if task.name != str(os.getpid()):
            lines = (task / "status").read_text().splitlines()
            yield [line for line in lines if line.startswith("State") or "ctxt_switches" in line]

def are_asleep():  # and were so all the time between two looks
    before = list(workers())
    time.sleep(0.1)
    return before == list(workers()) and all("(sleeping)" in states[0] for states in before)

assert len(list(workers())) >= 2
print(any(are_asleep() for _ in range(100)))
"""
    result = run_python(THREADED_CALL, script)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_pool_serves_threads_of_the_interpreter() -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as executor:
    results = list(executor.map(lambda _: rows(), range(100)))
assert all(torch.equal(result, alone) for result in results)
"""
    result = run_python(THREADED_CALL, script)
    assert result.returncode == 0, result.stderr


def test_small_work_is_not_spread() -> None:
    script = """
import torch
from sinlstm_dist import lstm
from sinlstm_dist.lstm import compiled
rnn, head = torch.nn.LSTM(1, 5, batch_first=True), torch.nn.Linear(5, 1)
lstm.predictor_rows(windows=torch.randn(4, 2, 1), targets=torch.randn(4, 1), tolerance=0.1,
                    piece_sizes=[1] * 4, parameters=[*rnn.parameters(), *head.parameters()],
                    num_threads=2)
assert compiled.kernel().num_workers() == 0
"""
    result = run_python(script)
    assert result.returncode == 0, result.stderr
