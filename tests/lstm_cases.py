"""Random cases for tests of the recurrence, what torch computes for them, and how to compare.

Tolerances: float32 keeps 6e-8 relative; outputs lie in (-1, 1) and pass tens of roundings (1e-6);
gradients add hundreds of terms, and are compared relative to their largest entry (1e-5).
"""

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sinlstm_dist import compiled, lstm

ROOT = Path(__file__).parents[1]
SIZES = {"input_size": 1, "hidden_size": 5, "num_layers": 1}
NUM_TOTALS = 3

few = settings(max_examples=12, deadline=None, database=None)
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

    def __init__(self, seed: int, B: int, W: int, D: int, H: int, *, L: int = 1) -> None:
        torch.manual_seed(seed)
        self.inputs = torch.randn(B, W, D)
        self.targets = torch.randn(B, 1)
        self.rnn, self.head = nn.LSTM(D, H, L, batch_first=True), nn.Linear(H, 1)
        self.state0 = (torch.randn(1, B, H), torch.randn(1, B, H))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.rnn.parameters(), *self.head.parameters()]

    def oracle(self) -> tuple[nn.LSTM, nn.Linear]:
        return copy.deepcopy(self.rnn).double(), copy.deepcopy(self.head).double()

    def rows(self, piece_sizes: list[int], **keywords: Any) -> Tensor:
        return lstm.predictor_rows(piece_sizes=piece_sizes, **{**self.arguments, **keywords})

    def totals(self, piece_sizes: list[int], **keywords: Any) -> Tensor:
        return lstm.predictor_totals(piece_sizes=piece_sizes, **{**self.arguments, **keywords})

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "windows": self.inputs,
            "targets": self.targets,
            "parameters": self.parameters,
            "tolerance": 0.5,
        }


@st.composite
def cases(draw: st.DrawFn, *, min_samples: int = 0, max_layers: int = 1) -> Case:
    H = draw(st.sampled_from([1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 16, 33, 64]))
    return Case(
        draw(st.integers(0, 2**31)),
        draw(st.integers(min_samples, 40)),
        draw(st.sampled_from([1, 2, 9, 10, 11, 23, 24, 25, 50] if H <= 9 else [1, 3, 24, 25])),
        draw(st.sampled_from([1, 1, 2, 3, 4, 7])),
        H,
        L=draw(st.integers(1, max_layers)),
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(
        a.detach().contiguous().view(torch.int32), b.detach().contiguous().view(torch.int32)
    )


def same_on_every_instruction_set(compute: Callable[[], list[Tensor]]) -> bool:
    """Whether `compute` returns the same bits with each instruction set of this machine."""
    results = []
    for name in AVAILABLE:
        with using(name):
            results.append(compute())
    return all(
        same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
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


def expected_row(case: Case, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and sum of squared errors of a piece by autograd in float64, and |error|."""
    rnn, head = case.oracle()
    outputs, _ = rnn(case.inputs[begin:end].double())
    error = head(outputs[:, -1]) - case.targets[begin:end].double()
    error.square().sum().backward()
    parameters = [*rnn.parameters(), *head.parameters()]
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    return gradient, error.detach().square().sum(), error.detach().abs()


def run_python(
    script: str, *, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
