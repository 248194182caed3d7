"""Options and fixtures of the whole test run."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builds
import launching
import pytest
import slurm
from nursery import Launch, Nursery
from xdist.scheduler import LoadFileScheduling

from sinlstm_dist import compiled
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.world import World

collect_ignore = ["gpu"]  # collected only where it is named: python -m pytest tests/gpu


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-kill-matrix",
        action="store_true",
        help="in test_kill_matrix.py, kill at every file operation, not at some (minutes)",
    )
    parser.addoption(
        "--alterations",
        type=int,
        default=60,
        help="in test_altered_checkpoints.py, how many random alterations of a checkpoint",
    )
    parser.addoption(
        "--exits",
        type=int,
        default=10,
        help="in test_same_bits.py, how often a world of three must leave cleanly",
    )
    parser.addoption(
        "--full-verify",
        action="store_true",
        help="in test_verify.py, inject every fault on one, two and three processes (minutes)",
    )


def pytest_configure() -> None:
    """Let what tests start hear Ctrl-C and a closed terminal, also after `nohup pytest &`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Installed without a compiler, the package has no kernel to test; in CI it must have one."""
    if compiled.missing() and not os.environ.get("CI"):
        without = pytest.mark.skip(reason=compiled.missing())
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker(without)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """With `-n 2`, a worker takes a whole file, whose tests share what it has started."""
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture
def world() -> Iterator[World]:
    """A world of this process alone."""
    with join_world(timeout_s=60, one_thread=True) as joined:
        yield joined


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts many training processes quickly; see nursery.py."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def trained_run(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of launching.SMALL; to be read, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    ended = nursery.run(launching.flags({**launching.SMALL, "output.dir": "run"}), cwd=folder)
    assert ended.codes == [0], ended.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def straight(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of launching.SETTINGS that nothing happened to; likewise."""
    folder = tmp_path_factory.mktemp("straight")
    ended = nursery.run(launching.flags(launching.SETTINGS), cwd=folder)
    assert ended.codes == [0], ended.stderr
    return folder / "run"


@pytest.fixture
def train(nursery: Nursery, tmp_path: Path) -> Callable[..., Launch]:
    """Train with launching.SETTINGS and changes to them."""

    def run(changes: dict[str, object] | None = None, **keywords: Any) -> Launch:
        settings = {**launching.SETTINGS, **(changes or {})}
        return nursery.run(launching.flags(settings), cwd=tmp_path, **keywords)

    return run


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """A real Slurm of two nodes; in CI it must be there, elsewhere its tests are skipped."""
    _need(slurm.missing_programs())
    cluster = slurm.Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def shellcheck() -> str:
    """The program, on the same terms."""
    _need([] if shutil.which("shellcheck") else ["shellcheck"])
    return "shellcheck"


@pytest.fixture(scope="session")
def mpirun() -> str:
    """The program, on the same terms."""
    _need([] if shutil.which("mpirun") else ["mpirun"])
    return "mpirun"


@pytest.fixture(scope="session")
def tmux() -> str:
    """The program, on the same terms."""
    _need([] if shutil.which("tmux") else ["tmux"])
    return "tmux"


@pytest.fixture(scope="session")
def compilers() -> None:
    """gcc and clang, on the same terms."""
    _need([name for name in ("gcc", "clang") if not shutil.which(name)])


@pytest.fixture(scope="session")
def aarch64() -> str:
    """A compiler for 64-bit Arm, whose programs run here too, in qemu-aarch64; likewise."""
    compiler = "aarch64-linux-gnu-gcc"
    _need([name for name in (compiler, "qemu-aarch64") if not shutil.which(name)])
    return compiler


@pytest.fixture(scope="session")
def nameless() -> list[str]:
    """What starts a command as on a machine whose name does not resolve, with no network but its
    own; on the same terms."""
    programs = [name for name in ("unshare", "ip") if not shutil.which(name)]
    _need(programs if os.geteuid() == 0 else [*programs, "the rights of root"])
    name_it = 'ip link set lo up; hostname nowhere.invalid; exec "$@"'
    return ["unshare", "--uts", "--net", "bash", "-euc", name_it, "bash"]


def _need(missing: list[str]) -> None:
    if missing:
        without = pytest.fail if os.environ.get("CI") else pytest.skip
        without(f"needs {', '.join(missing)}: see .ci/run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what a reader of CI's log wants to see: how many tests ran on Slurm, and on which CPU the
    golden weights were reached, since CI's machines differ."""
    ran = [
        report.nodeid
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
    ]
    if on_slurm := [name for name in ran if "test_slurm" in name]:
        terminalreporter.write_line(f"{len(on_slurm)} tests ran on a real Slurm of two nodes")
    if golden := [name for name in ran if "test_golden" in name]:
        terminalreporter.write_line(f"{len(golden)} golden tests ran on {builds.machine()}")
