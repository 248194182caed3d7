"""Options and fixtures of the whole test run."""

from collections.abc import Iterator

import pytest
from nursery import Nursery


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-kill-matrix",
        action="store_true",
        help="in test_kill_matrix.py, kill at every file operation, not at some (minutes)",
    )


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts many training processes quickly; see nursery.py."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()
