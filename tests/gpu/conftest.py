"""The tests that need a GPU: `python -m pytest tests/gpu -n 8`. Plain pytest leaves them out.

They run from a checkout after `python setup.py build_ext --inplace`, without a network.
"""

import os

import pytest
import torch
from gpu_runs import ROOT
from xdist.scheduler import LoadScheduling

from sinlstm_dist import compiled


def pytest_configure() -> None:
    """Without a GPU no test may count as passed or skipped: the whole run is an error."""
    if not torch.cuda.is_available():
        raise pytest.UsageError(
            "tests/gpu needs a GPU, and torch finds none here: nothing is tested"
        )
    if compiled.missing():
        raise pytest.UsageError(f"tests/gpu compares with the CPU: {compiled.missing()}")
    # What the tests start lies elsewhere, and the package may not be installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScheduling:
    """With `-n 8`, a worker takes a test, not a file: each test starts its own processes."""
    return LoadScheduling(config, log)
