"""The GPU's kernel: compiled for GPUs, and run on the CPU, where it has the compiled kernel's bits.

tests/gpu/ runs it on a GPU.
"""

import ctypes
import re
import subprocess
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builds import ROOT
from lstm_cases import Case, same_bits
from torch import Tensor

from sinlstm_dist.arithmetic import OWN, RECURRENCE
from sinlstm_dist.config import load_config
from sinlstm_dist.lstm import cuda
from sinlstm_dist.new_task import new_task

FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-mfma", "-ffp-contract=off", "-Wno-multichar")
MOVES = {"ld", "st", "mov", "selp", "setp", "shfl", "abs", "neg"}
SIZES = [(1, 5), (1, 1), (1, 13), (2, 8), (3, 6), (1, 33), (16, 17), (1, 64)]


class OnCpu(cuda.Program):
    """The kernels, each thread a fiber of the harness."""

    def __init__(self, library: Path, input_size: int, hidden_size: int) -> None:
        self._input_size, self._hidden_size = input_size, hidden_size
        self._library = ctypes.CDLL(library)
        self._library.launch.restype = ctypes.c_bool
        self.backwards = False

    def launch(self, kernel, grid, block, *arguments, shared_bytes=0):
        if 0 in grid:
            return
        kinds = {int: ctypes.c_int, float: ctypes.c_float}
        held = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else kinds[type(a)](a)
            for a in arguments
        ]
        values = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        sizes = [(ctypes.c_int * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        assert self._library.launch(
            kernel.encode(), *sizes, shared_bytes, values, ctypes.c_bool(self.backwards)
        )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnCpu]:
    """Build the kernels for an input size and a hidden size."""
    folder = tmp_path_factory.mktemp("gpu")

    @lru_cache
    def build(input_size: int, hidden_size: int) -> OnCpu:
        library = folder / f"{input_size}-{hidden_size}.so"
        sizes = cuda.defined(input_size, hidden_size)
        words = ["g++", *FLAGS, *sizes, f"-I{cuda.SOURCES}", ROOT / "tests/gpu_harness.cpp"]
        built = subprocess.run([*words, "-o", library], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        return OnCpu(library, input_size, hidden_size)

    return build


@pytest.fixture
def rows(program, monkeypatch) -> Callable[..., Tensor]:
    """`cuda.predictor` on a Case, run on the CPU."""

    def compute(case: Case, piece_sizes: list[int], *, backwards: bool = False, **keywords: Any):
        kernels = program(case.inputs.shape[2], case.rnn.hidden_size)
        kernels.backwards = backwards
        monkeypatch.setattr(cuda.Program, "of", lambda *sizes: kernels)
        arguments = {
            "windows": case.inputs, "targets": case.targets, "tolerance": 0.5,
            "parameters": [p.detach() for p in case.parameters], "with_gradient": True, **keywords,
        }  # fmt: skip
        return cuda.predictor(piece_sizes=piece_sizes, **arguments)

    return compute


@pytest.mark.kernel
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("piece_sizes", [[13], [16, 0, 1]])
def test_rows_have_the_bits_of_the_cpu(sizes, piece_sizes, rows):
    D, H = sizes
    case = Case(H, sum(piece_sizes), 7 if H < 20 else 3, D, H)
    with torch.no_grad():
        expected = case.rows(piece_sizes)
        assert same_bits(rows(case, piece_sizes), expected)
        assert same_bits(rows(case, piece_sizes, backwards=True), expected)
        totals = rows(case, piece_sizes, with_gradient=False)
        assert same_bits(totals, expected[:, -cuda.NUM_TOTALS :])


@pytest.mark.kernel
@pytest.mark.parametrize("sizes", [(1, 5), (3, 13)])
def test_items_are_added_in_their_order(sizes, rows):
    case = Case(6, 340, 7, *sizes)
    assert same_bits(rows(case, [300, 40]), case.rows([300, 40]).detach())


@pytest.mark.kernel
def test_gradients_that_vanish_have_the_bits_of_the_cpu(rows):
    case = Case(1, 20, 300, 1, 5)
    with torch.no_grad():
        case.head.weight *= 1e-37
        expected = case.rows([20])
    assert (expected[:, :180] == 0).any()
    assert 0 < expected.abs()[expected != 0].min() < 1e-37
    assert same_bits(rows(case, [20]), expected)


@pytest.mark.kernel
def test_parts_of_a_batch_have_the_bits_of_the_whole(rows, monkeypatch):
    case, piece_sizes = Case(3, 400, 4, 1, 5), [300, 0, 100]
    whole = rows(case, piece_sizes)
    monkeypatch.setattr(cuda, "TAPE_NUMBERS", 1)  # one item has its tapes in memory
    cuda._cut.cache_clear()
    parts = cuda._cut(tuple(piece_sizes), 400, torch.device("cpu"), 1).parts
    assert [len(items) for _, items in parts] == [1, 1, 1, 1]
    assert same_bits(rows(case, piece_sizes), whole)


@pytest.mark.kernel
def test_rows_go_where_the_caller_says(rows):
    case, out = Case(4, 13, 5, 1, 5), torch.full((3, 172), 7.0)
    found = rows(case, [13, 0], out=out)
    assert found.data_ptr() == out.data_ptr()
    assert same_bits(out[:2, :169], case.rows([13, 0]).detach())
    assert (out[2] == 7).all()
    assert (out[:, 169:] == 7).all()


@pytest.mark.kernel
def test_a_whole_number_is_a_tolerance_too(rows):
    case = Case(8, 13, 5, 1, 5)
    assert same_bits(rows(case, [13], tolerance=1), rows(case, [13], tolerance=1.0))


@pytest.mark.kernel
def test_parts_do_not_share_the_memory(rows, monkeypatch):
    """Of two parts' tapes, only one's are there."""
    alive: list[weakref.ref[Tensor]] = []
    new_empty = Tensor.new_empty

    def noted(tensor, *sizes):
        found = new_empty(tensor, *sizes)
        if found.dim() == 2 and found.shape[0] == 8:  # a part's blocks
            assert not any(other() is not None for other in alive)
            alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(cuda, "TAPE_NUMBERS", 1)
    monkeypatch.setattr(Tensor, "new_empty", noted)
    rows(Case(9, 256, 4, 1, 5), [256])
    assert len(alive) == 2


def test_ddp_reduction_goes_through_torch(monkeypatch):
    """It differentiates the model, which on a GPU is cuDNN's."""
    monkeypatch.setattr(cuda, "obstacle", lambda *sizes: "")
    world = SimpleNamespace(device=torch.device("cuda"))
    for reduction, name in (("ordered", "fused"), ("ddp", "torch")):
        config = load_config(overrides={"train.reduction": reduction})
        task, code = new_task(config, world)
        assert f"recurrence: {name} (" in task.facts["model"]
        assert code[RECURRENCE] == ("nn.LSTM" if name == "torch" else OWN)


def test_it_refuses_what_it_cannot_compute(rows):
    case = Case(5, 4, 3, 1, 5)
    with pytest.raises(ValueError, match=r"piece_sizes \(3,\) do not add up to the 4 samples"):
        rows(case, [3])
    with pytest.raises(ValueError, match=r"torch\.float64 on cpu: the GPU's kernel needs"):
        rows(case, [4], targets=case.targets.double())
    with pytest.raises(ValueError, match="hidden size 65"):
        cuda.predictor(
            torch.zeros(1, 2, 1), torch.zeros(1, 1), [1], [torch.zeros(4, 65)] * 6, 0.1,
            with_gradient=True,
        )  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("sizes", SIZES)
def test_it_compiles_for_gpus(sizes, architecture):
    assert cuda.compiled(*sizes, architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("may_contract", ["false", "true"])
def test_the_compiler_contracts_and_approximates_nothing(may_contract, monkeypatch):
    """In the compiler's own assembly, since machine code divides by several instructions. There an
    operation without "rn" may be contracted."""
    from cuda.bindings import nvrtc

    assert "-fmad=false" in cuda.OPTIONS
    options = [option.replace("-fmad=false", f"-fmad={may_contract}") for option in cuda.OPTIONS]
    monkeypatch.setattr(cuda, "OPTIONS", options)
    monkeypatch.setattr(nvrtc, "nvrtcGetCUBINSize", nvrtc.nvrtcGetPTXSize)
    monkeypatch.setattr(nvrtc, "nvrtcGetCUBIN", nvrtc.nvrtcGetPTX)
    text = cuda.compiled(1, 5, "compute_90").decode()
    used = set(re.findall(r"\b(?:\w+)\.(?:[a-z0-9]+\.)*f32(?:\.f64)?\b", text))
    assert {name for name in used if name.split(".")[0] not in MOVES} == {
        "add.rn.ftz.f32", "sub.rn.ftz.f32", "mul.rn.ftz.f32", "fma.rn.ftz.f32", "div.rn.ftz.f32",
        "cvt.rn.ftz.f32.f64", "cvt.ftz.f64.f32",
    }  # fmt: skip


def test_a_compiler_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(cuda, "OPTIONS", ["-std=c++89"])
    with pytest.raises(RuntimeError, match=r"csrc/gpu\.cu for sm_90: "):
        cuda.compiled(1, 5, "sm_90")
