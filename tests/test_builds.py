"""The kernel computes the same bits whichever compiler built it, and however it optimised."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from builds import ROOT, Edit, build, copy_package, digests, machine
from lstm_cases import instruction_sets

from sinlstm_dist.golden import GOLDEN, KNOWN

pytestmark = pytest.mark.kernel

Digests = dict[str, dict[str, str]]  # by instruction set and name, see digests.py

SOUND = ("gcc -O2", "gcc -O3", "clang -O2", "clang -O3")
ALTERED = {
    "contraction": Edit("setup.py", "-ffp-contract=off", "-ffp-contract=fast"),
    "the last bit of a coefficient": Edit(
        "sinlstm_dist/csrc/activations.h", "0x1.62e430p-1f", "0x1.62e432p-1f"
    ),
    "another order of the lanes' sum": Edit(
        "sinlstm_dist/csrc/simd.h",
        "for (int i = 0; i < 8; i++) lane[i] += lane[i + 8];\n"
        "    for (int i = 0; i < 4; i++) lane[i] += lane[i + 4];\n"
        "    return (lane[0] + lane[2]) + (lane[1] + lane[3]);",
        "for (int i = 1; i < LANES; i++) lane[0] += lane[i];\n    return lane[0];",
    ),
    "another order of the gates' sum": Edit(
        "sinlstm_dist/csrc/backward.h",
        "for (int r = 0; r < 4 * H; r++, weight += width) {",
        "weight += 4 * H * width;\n"
        "    for (int r = 4 * H - 1; r >= 0; r--) {\n"
        "        weight -= width;",
    ),
}


@pytest.fixture(scope="module")
def found(compilers: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Digests]:
    """Of each build, the digests on each instruction set."""
    optimized = {name: Edit("setup.py", '"-O3"', f'"{name.split()[1]}"') for name in SOUND}
    edits = {**optimized, **ALTERED}
    folders = {name: tmp_path_factory.mktemp("build") for name in edits}

    def make(name: str) -> Digests:
        copy_package(folders[name], edits[name])
        build(folders[name], compiler="gcc" if name.startswith("gcc") else "clang")  # the quicker
        return digests(folders[name], folders[name] / "digests.json")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(edits, pool.map(make, edits), strict=True))


@pytest.fixture(scope="module")
def kernel_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the installed kernel's functions give on every instruction set."""
    installed = digests(ROOT, tmp_path_factory.mktemp("installed") / "digests.json")
    [digest] = {found["kernel"] for found in installed.values()}
    return digest


@instruction_sets
@pytest.mark.parametrize("name", SOUND)
def test_every_compiler_gives_the_same_bits(name, instruction_set, found, kernel_digest):
    expected = {"kernel": kernel_digest, **KNOWN}
    assert found[name][instruction_set] == expected, machine()


@instruction_sets
@pytest.mark.parametrize("name", ALTERED)
def test_other_arithmetic_gives_other_weights(name, instruction_set, found):
    """Without AVX2, an x86 processor has no instruction to contract into."""
    without = (name, instruction_set) == ("contraction", "plain")
    weights = {config: found[name][instruction_set][config] for config in GOLDEN}
    assert (weights == KNOWN) is without, machine()
