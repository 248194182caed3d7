"""The predictor's rows and totals against autograd in float64, and against themselves: always the
same bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lstm_cases import (
    NUM_TOTALS,
    Case,
    assert_gradients_close,
    at_offset,
    cases,
    expected_row,
    few,
    instruction_sets,
    same_bits,
    same_on_every_instruction_set,
    using,
)
from torch import Tensor

from sinlstm_dist import lstm

pytestmark = pytest.mark.kernel


@instruction_sets
@few
@given(case=cases(max_layers=3), data=st.data())
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
    """Items have 128 samples; these pieces have one item, almost two, two and three."""
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
@given(case=cases(min_samples=1, max_layers=3))
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


@few
@given(case=cases(max_layers=3), scale=st.sampled_from([1e-3, 1, 1, 20]), data=st.data())
def test_rows_do_not_depend_on_the_instruction_set(
    case: Case, scale: float, data: st.DataObject
) -> None:
    """Weights of 20 close gates, so that gradients underflow."""
    for p in case.parameters:
        p.data.mul_(scale)
    B = case.inputs.shape[0]
    cut = data.draw(st.integers(0, B))
    sizes = [cut, B - cut]
    assert same_on_every_instruction_set(lambda: [case.rows(sizes), case.totals(sizes)])


def test_rows_of_many_items_do_not_depend_on_the_instruction_set() -> None:
    case = Case(23, sum(SIZES_OF_PIECES), 50, 1, 5)
    assert same_on_every_instruction_set(lambda: [case.rows(SIZES_OF_PIECES)])


SIZES_OF_PIECES = [200, 0, 37, 129, 16, 1, 13]


@instruction_sets
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("num_threads", [2, 3])
def test_rows_do_not_depend_on_threads(instruction_set: str, num_threads: int, L: int) -> None:
    with using(instruction_set):
        case = Case(9, sum(SIZES_OF_PIECES), 50, 1, 5, L=L)
        alone = case.rows(SIZES_OF_PIECES)
        for _ in range(20):
            assert same_bits(alone, case.rows(SIZES_OF_PIECES, num_threads=num_threads))
        alone = case.totals(SIZES_OF_PIECES)
        assert same_bits(alone, case.totals(SIZES_OF_PIECES, num_threads=num_threads))


@instruction_sets
@pytest.mark.parametrize(("H", "L"), [(5, 1), (7, 1), (5, 3), (7, 2)])
def test_rows_do_not_depend_on_alignment(instruction_set: str, H: int, L: int) -> None:
    with using(instruction_set):
        case = Case(10, 45, 12, 1, H, L=L)
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
@pytest.mark.parametrize("L", [1, 2])
def test_row_does_not_depend_on_neighbours(instruction_set: str, L: int) -> None:
    """The pieces before and after it hold NaN and infinity; 13 samples leave idle lanes."""
    with using(instruction_set):
        for size in (1, 13, 16, 150):
            case = Case(11, size, 20, 1, 5, L=L)
            alone = case.rows([size])[0]
            for before, after in ((0, 3), (5, 0), (16, 20), (33, 150)):
                nan_before = torch.full((before, 20, 1), float("nan"))
                inf_after = torch.full((after, 20, 1), float("inf"))
                found = case.rows(
                    [before, size, after],
                    windows=torch.cat([nan_before, case.inputs, inf_after]),
                    targets=torch.cat([nan_before[:, 0], case.targets, inf_after[:, 0]]),
                )
                assert same_bits(alone, found[1])
                assert same_bits(case.totals([size])[0], found[1, -NUM_TOTALS:])


def test_idle_lanes_add_nothing_even_to_infinite_weights() -> None:
    """An infinite weight times the zeros of an idle lane is NaN. The samples' inputs are not 0."""
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


def test_results_do_not_depend_on_the_float_mode_of_the_caller() -> None:
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


def test_rows_of_no_samples_are_zeros() -> None:
    case = Case(17, 0, 10, 1, 5)
    out = torch.full((3, 169), float("nan"))
    assert (case.rows([0, 0, 0], out=out) == 0).all()
    assert (case.totals([0]) == 0).all()
    assert case.rows([]).shape == (0, 169)


def test_only_the_rows_in_out_are_written() -> None:
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
    for count in (0, 2, 4, 5):
        with pytest.raises(ValueError, match=rf"{count} parameters: .* 4 of each layer and 2 more"):
            case.rows([10], parameters=case.parameters[:count])
    with pytest.raises(ValueError, match=r"those of more layers with D = H"):
        case.rows([10], parameters=[*case.parameters[:4], *case.parameters])
    with pytest.raises(ValueError, match=r"targets is torch.float64"):
        case.rows([10], targets=case.targets.double())
    with pytest.raises(ValueError, match=r"parameter_5 is torch.float16"):
        case.rows([10], parameters=[*case.parameters[:5], case.parameters[5].half()])
    with pytest.raises(ValueError, match=r"at least \(1, 169\)"):
        case.rows([10], out=torch.zeros(1, 168))


@pytest.mark.parametrize("L", [1, 2, 3, 16])
def test_layers_up_to_the_most(L: int) -> None:
    """The numbers of each layer stand in its own columns: compared with autograd."""
    case = Case(24, 20, 6, 2, 3, L=L)
    sizes = [p.numel() for p in case.parameters]
    assert len(sizes) == 4 * L + 2
    gradient, squared_error, _ = expected_row(case, 0, 20)
    *found, error, _, _ = case.rows([20])[0].split([*sizes, 1, 1, 1])
    assert_gradients_close(found, list(gradient.split(sizes)))
    torch.testing.assert_close(error.double()[0], squared_error, rtol=1e-5, atol=0)


def test_more_layers_than_the_most_are_refused() -> None:
    with pytest.raises(ValueError, match=r"70 parameters: .* of at most 16 layers"):
        Case(25, 2, 3, 1, 1, L=17).rows([2])


@pytest.mark.parametrize("W", [2**32 + 4, 2**24 + 1])
def test_sizes_that_do_not_fit_are_refused(W: int) -> None:
    """A window that is the same value in memory; its length must not be cut to 32 bits."""
    case = Case(21, 3, 4, 1, 5)
    with pytest.raises(ValueError, match=rf"window {W}, .* a window of at most {2**24}"):
        case.rows([3], windows=torch.ones(1, 1, 1).expand(3, W, 1))


def test_piece_sizes_whose_sum_overflows_are_refused() -> None:
    with pytest.raises(ValueError, match=f"piece_sizes add up to {2**63 - 1}, but"):
        Case(22, 0, 4, 1, 5).rows([2**62] * 4)
