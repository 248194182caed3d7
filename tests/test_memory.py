"""The memory that a step frees serves the next one, and large tensors get large pages."""

import os
import sys
from pathlib import Path
from unittest import mock

import pytest
from launching import check_same, flags, train
from lstm_cases import run_python

from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.memory import LARGE_PAGES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of glibc and Linux")


def test_arrays_that_are_freed_are_kept() -> None:
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
    result = run_python(script)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 100  # without, one for each of some 2,000 pages


@pytest.mark.parametrize(("own", "expected"), [({}, True), ({LARGE_PAGES: "0"}, False)])
def test_large_tensors_start_at_a_page(own: dict[str, str], expected: bool) -> None:
    script = """
import torch
from sinlstm_dist.processes.joining import join_world

with join_world(timeout_s=60, one_thread=True):
    print(torch.empty(10_000_000).data_ptr() % 4096 == 0)
"""
    result = run_python(script, **own)
    assert (result.returncode, result.stdout) == (0, f"{expected}\n"), result.stderr


def test_the_variable_is_as_before_afterwards() -> None:
    without = {name: value for name, value in os.environ.items() if name != LARGE_PAGES}
    with mock.patch.dict(os.environ, without, clear=True):
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
