"""Freed memory is used again, and large tensors get large pages."""

import os
import platform
from pathlib import Path

import pytest
from launching import check_same, flags, train
from lstm_cases import run_python

from sinlstm_dist.processes.allocation import HAS_LARGE_PAGES, LARGE_PAGES
from sinlstm_dist.processes.joining import join_world

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not HAS_LARGE_PAGES, reason="needs Linux with glibc"
)


@pytest.fixture(autouse=True)
def _usual_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the user's shell asks of glibc and torch."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_", "THP_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "are_kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)]
)
def test_arrays_that_are_freed_are_kept(variables: dict[str, str], are_kept: bool) -> None:
    script = """
import resource
import numpy as np
from sinlstm_dist.processes.joining import join_world

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with join_world(timeout_s=60, one_thread=True):
    for _ in range(5):
        before = faults()
        arrays = [np.ones(4_000_000, np.uint8) for _ in range(3)]
        del arrays
print(faults() - before)
"""
    result = run_python(script, **variables)
    assert result.returncode == 0, result.stderr
    assert (int(result.stdout) < 100) == are_kept  # the arrays have 2,930 pages of 4 KiB


@pytest.mark.parametrize(("value", "are_large"), [("", True), ("1", True), ("0", False)])
def test_large_tensors_get_large_pages(value: str, are_large: bool) -> None:
    script = """
import torch
from sinlstm_dist.processes.joining import join_world

with join_world(timeout_s=60, one_thread=True):
    # torch lets a tensor start at a page where it asks for large ones.
    print(torch.empty(10_000_000).data_ptr() % 4096 == 0)
"""
    result = run_python(script, **{LARGE_PAGES: value})
    assert (result.stdout, result.stderr) == (f"{are_large}\n", "")


def test_the_variable_is_restored() -> None:
    with join_world(timeout_s=60, one_thread=True):
        assert os.environ[LARGE_PAGES] == "1"
    assert LARGE_PAGES not in os.environ


def test_large_pages_change_no_bit(tmp_path: Path) -> None:
    settings = {
        "data.train_size": 600, "data.test_size": 100, "model.hidden_size": 128,
        "train.global_batch_size": 600, "train.virtual_shards": 1, "train.epochs": 2,
    }  # fmt: skip
    for pages in ("0", "1"):
        arguments = flags({**settings, "output.dir": f"run{pages}"})
        assert train(arguments, cwd=tmp_path, **{LARGE_PAGES: pages}).code == 0
    check_same(tmp_path / "run0", tmp_path / "run1")
