"""The experimental Triton kernel against torch.nn.LSTM in float64, and against itself: always the
same bits.

Without a GPU, Triton's interpreter runs it on the CPU. The environment must ask for that before
Triton is imported, so the kernel runs in a process of its own. With a GPU, the same tests use it.
"""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lstm_cases import NUM_TOTALS, Case, assert_gradients_close, expected_row, same_bits
from torch import Tensor

from sinlstm_dist import lstm
from sinlstm_dist.model import Predictor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRET = {"TRITON_INTERPRET": "1"} if DEVICE == "cpu" else {}
Kernel = Callable[..., Tensor]

pytestmark = pytest.mark.skipif(
    not find_spec("triton") and not os.environ.get("CI"), reason="no Triton on this machine"
)


def new_process(environment: dict[str, str]) -> ProcessPoolExecutor:
    """A process that imports Triton in this environment."""
    return ProcessPoolExecutor(1, get_context("spawn"), set_environment, (environment,))


def set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def compute(windows: Tensor, targets: Tensor, parameters: list[Tensor], **keywords: Any) -> Tensor:
    """Call it as training does on a GPU; on the CPU that call would use the compiled kernel."""
    from sinlstm_dist.lstm import triton_experimental

    weights = [p.to(DEVICE) for p in parameters]
    keywords = {"tolerance": 0.5, "with_gradient": True, **keywords}
    if "out" in keywords:
        keywords["out"] = keywords["out"].to(DEVICE)
    if DEVICE == "cuda":
        function = lstm.predictor_rows if keywords.pop("with_gradient") else lstm.predictor_totals
    else:
        function = triton_experimental.predictor
    rows = function(
        windows=windows.to(DEVICE), targets=targets.to(DEVICE), parameters=weights, **keywords
    )
    return keywords.get("out", rows).cpu()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """`compute` on a Case; keywords replace its tensors."""
    with new_process(INTERPRET) as process:

        def call(case: Case, piece_sizes: list[int], **keywords: Any) -> Tensor:
            arguments = {
                "windows": case.inputs,
                "targets": case.targets,
                "parameters": [p.detach() for p in case.parameters],
                **keywords,
            }
            return process.submit(compute, piece_sizes=piece_sizes, **arguments).result(timeout=120)

        yield call


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        draw(st.integers(0, 2**31)),
        draw(st.integers(0, 40)),  # samples: of a piece, up to three blocks
        draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 1, 2, 8, 15, 16])),
        draw(st.sampled_from([1, 2, 5, 5, 8, 16, 17, 33, 64])),
    )


@settings(
    max_examples=10,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases(), data=st.data())
def test_rows_agree_with_autograd(kernel: Kernel, case: Case, data: st.DataObject) -> None:
    B = case.inputs.shape[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, B), max_size=3)))
    bounds = list(zip([0, *cuts], [*cuts, B], strict=True))
    piece_sizes = [end - begin for begin, end in bounds]
    rows = kernel(case, piece_sizes)
    assert same_bits(kernel(case, piece_sizes, with_gradient=False), rows[:, -NUM_TOTALS:])
    sizes = [p.numel() for p in case.parameters]
    assert rows.shape == (len(bounds), sum(sizes) + NUM_TOTALS)
    for row, (begin, end) in zip(rows, bounds, strict=True):
        gradient, squared_error, distance = expected_row(case, begin, end)
        *found, error, correct, count = row.split([*sizes, 1, 1, 1])
        assert_gradients_close(found, list(gradient.split(sizes)))
        torch.testing.assert_close(error.double()[0], squared_error, rtol=1e-5, atol=1e-6)
        certain = (distance - 0.5).abs() > 1e-5
        assert abs(correct.item() - (distance < 0.5)[certain].sum()) <= (~certain).sum()
        assert count.item() == end - begin


def test_predictions_agree_with_torch(kernel: Kernel) -> None:
    """A piece of one sample shows its prediction's error; float32 rounds by 6e-8 of it."""
    case = Case(1, 20, 12, 1, 5)
    error = kernel(case, [1] * 20, with_gradient=False)[:, 0].double().sqrt()
    expected = expected_row(case, 0, 20)[2].flatten()
    torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 13, 16, 35])
def test_a_row_does_not_depend_on_its_neighbours(kernel: Kernel, size: int) -> None:
    """The pieces before and after it hold NaN and infinity; after three blocks, another program
    computes it."""
    case = Case(2, size, 3, 2, 5)
    alone = kernel(case, [size])[0]
    for before, after in ((0, 3), (5, 20), (16, 0), (33, 7)):
        nan, inf = torch.full((before, 3, 2), torch.nan), torch.full((after, 3, 2), torch.inf)
        found = kernel(
            case,
            [before, size, after],
            windows=torch.cat([nan, case.inputs, inf]),
            targets=torch.cat([nan[:, 0, :1], case.targets, inf[:, 0, :1]]),
        )
        assert same_bits(alone, found[1])


def test_idle_lanes_and_units_add_nothing_to_infinities(kernel: Kernel) -> None:
    """With an infinite input and an infinite weight, results are finite where torch's are."""
    case = Case(3, 5, 3, 2, 5)
    case.inputs[2, 0, 1] = torch.inf
    case.parameters[0].data[3, 0] = -torch.inf
    row = kernel(case, [5])[0]
    gradient, squared_error, _ = expected_row(case, 0, 5)
    assert squared_error.isfinite()
    torch.testing.assert_close(row[-3].double(), squared_error, rtol=1e-5, atol=1e-6)
    assert torch.equal(row[:-NUM_TOTALS].isnan(), gradient.isnan())


def test_pieces_without_samples(kernel: Kernel) -> None:
    case = Case(4, 3, 2, 1, 5)
    rows = kernel(case, [0, 3, 0])
    assert rows[1, -1] == 3
    assert not rows[::2].any()
    none = Case(4, 0, 2, 1, 5)
    assert not kernel(none, [0, 0]).any()
    assert kernel(none, []).shape == (0, rows.shape[1])


def test_strides_and_out(kernel: Kernel) -> None:
    case = Case(5, 7, 4, 3, 5)
    expected = kernel(case, [3, 4])
    time_first = case.inputs.transpose(0, 1).contiguous().transpose(0, 1)
    assert same_bits(kernel(case, [3, 4], windows=time_first), expected)
    every_second = case.inputs.repeat_interleave(2, 0)[::2]
    room = torch.full((3, expected.shape[1] + 1), -7.0)
    found = kernel(case, [3, 4], windows=every_second, out=room)
    assert same_bits(found[:2, :-1], expected)
    assert (found[2] == -7).all()
    assert (found[:, -1] == -7).all()


def test_correct_is_decided_in_float32_as_torch_does(kernel: Kernel) -> None:
    case = Case(6, 4, 2, 1, 5)
    for p in case.parameters:
        p.data.zero_()  # predictions are exactly zero
    near = torch.tensor(0.1)
    case.targets = torch.stack([near, -near, near.nextafter(-near), near.nextafter(2 * near)])[
        :, None
    ]
    assert (case.targets.abs() < 0.1).sum() == 1
    assert kernel(case, [4], tolerance=0.1)[0, -2] == 1


def test_refuses_what_it_cannot_compute(kernel: Kernel) -> None:
    case = Case(7, 3, 2, 1, 5)
    with pytest.raises(ValueError, match=r"\(2, 2\) do not add up to the 3 samples"):
        kernel(case, [2, 2])
    with pytest.raises(ValueError, match=r"\(4, -1\) do not add up"):
        kernel(case, [4, -1])
    with pytest.raises(ValueError, match=r"a tensor is torch\.float64"):
        kernel(case, [3], targets=case.targets.double())
    with pytest.raises(ValueError, match="hidden size 65: the Triton kernel needs"):
        kernel(Case(7, 3, 2, 1, 65), [3])
    with pytest.raises(ValueError, match="window 0"):
        kernel(case, [3], windows=case.inputs[:, :0])


def compile_for(capability: int) -> str:
    """The PTX code of the kernel for the article's size; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sinlstm_dist.lstm.triton_experimental import (
        NUM_STAGES,
        NUM_WARPS,
        _block_rows,
        _piece_rows,
    )

    constants = {"LANES": 16, "FEATURES": 16, "UNITS": 16}
    for function in (_block_rows, _piece_rows):
        assert all(p.do_not_specialize for p in function.params if not p.is_constexpr)
    signature = dict.fromkeys(_block_rows.arg_names, "*fp32")
    signature |= dict.fromkeys(constants, "constexpr") | {"blocks": "*i32", "tolerance": "fp32"}
    numbers = ("num_blocks", "stride_sample", "stride_step", "stride_feature", "stride_target")
    signature |= dict.fromkeys((*numbers, "width", "W", "D", "H", "with_gradient"), "i32")
    source = ASTSource(_block_rows, signature, constants)
    options = {"num_warps": NUM_WARPS[16], "num_stages": NUM_STAGES}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm[
        "ptx"
    ]


def test_it_compiles_without_tf32_or_atomics(tmp_path: Path) -> None:
    """The interpreter has neither; Triton's compiler would turn sums of products into TF32."""
    with new_process({"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}) as process:
        ptx = process.submit(compile_for, 80).result(timeout=120)
    assert "fma.rn.f32" in ptx
    assert not re.search(r"tf32|\bmma\b|\batom\b|\bred\b", ptx)


def test_it_is_used_only_if_asked_for() -> None:
    sizes = {"device_type": "cuda", "input_size": 1, "hidden_size": 5, "num_layers": 1}
    chosen = lstm.Choice("fused", "Triton kernel, experimental: never run on a GPU")
    assert lstm.choose("fused", **sizes) == chosen
    assert lstm.choose("auto", **sizes).name == "torch"


def test_forward_on_another_device_uses_torch() -> None:
    """The meta device has no memory, so the compiled kernel would fail on it."""
    model = Predictor(fused=True).to("meta")
    assert model(torch.empty(3, 4, 1, device="meta")).shape == (3, 1)
