"""The kernel's bits on an Arm processor, which qemu plays here, are those of this machine."""

import subprocess
from pathlib import Path

import pytest
from builds import ROOT, Edit, copy_package, machine
from lstm_cases import AVAILABLE

pytestmark = pytest.mark.kernel

SOURCES = ROOT / "sinlstm_dist" / "csrc"
HARNESS = ROOT / "tests" / "arm_harness.c"
FLAGS = ("-std=c11", "-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread")
NUM_PROBLEMS = (
    3 * 17 * 3  # kinds of weights, hidden sizes, windows and layers
    + 3 * 2  # deviations of the noise, windows
    + 6  # sizes of a shuffle
)


def build(compiler: str, *more: str, into: Path, sources: Path = SOURCES) -> Path:
    """Link the harness with all of the kernel but its Python module."""
    files = [path for path in sources.glob("*.c") if path.name != "module.c"]
    words = [compiler, *FLAGS, *more, f"-I{sources}", HARNESS, *files, "-o", into]
    built = subprocess.run(words, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return into


def rows(*words: str | Path) -> dict[str, list[str]]:
    """What the harness prints: the bits of each problem's row."""
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    lines = [line.split(": ") for line in printed.splitlines()]
    assert len(lines) == NUM_PROBLEMS
    return {problem: bits.split() for problem, bits in lines}


def differences(found: dict[str, list[str]], expected: dict[str, list[str]]) -> list[str]:
    return [problem for problem in expected if found[problem] != expected[problem]]


@pytest.fixture(scope="module")
def harness(compilers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness, built for this machine."""
    return build("gcc", into=tmp_path_factory.mktemp("here") / "harness")


@pytest.fixture(scope="module")
def arm_rows(aarch64: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What an Arm processor computes."""
    folder = tmp_path_factory.mktemp("arm")
    return rows("qemu-aarch64", build(aarch64, "-static", into=folder / "harness"), "plain")


@pytest.mark.parametrize("instruction_set", AVAILABLE)
def test_arm_gives_the_bits_of_this_machine(instruction_set, harness, arm_rows):
    assert differences(arm_rows, rows(harness, instruction_set)) == [], machine()


def test_subnormal_numbers_are_among_them(harness, tmp_path):
    """Where they are kept, each gradient that vanishes is another one."""
    kept = Edit("sinlstm_dist/csrc/float_mode.h", "0x9fc0u", "0x1f80u")
    sources = copy_package(tmp_path, kept) / "sinlstm_dist" / "csrc"
    other = build("clang", into=tmp_path / "harness", sources=sources)  # the quicker
    differ = differences(rows(other, "plain"), rows(harness, "plain"))
    assert len([problem for problem in differ if "vanishing" in problem]) == 3 * 17
