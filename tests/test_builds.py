"""The kernel computes the same bits whichever compiler built it, and however it optimised."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from builds import Build, Edit, ask, machine
from lstm_cases import instruction_sets

pytestmark = pytest.mark.kernel

O2 = Edit("setup.py", '"-O3"', '"-O2"')
SOUND = {
    "gcc -O3": Build("gcc"),
    "gcc -O2": Build("gcc", (O2,)),
    "clang -O3": Build("clang"),
    "clang -O2": Build("clang", (O2,)),
}
ALTERED = {
    "contraction": Edit("setup.py", "-ffp-contract=off", "-ffp-contract=fast"),
    "the last bit of a coefficient": Edit(
        "sinlstm_dist/csrc/activations.h", "0x1.62e430p-1f", "0x1.62e432p-1f"
    ),
    "another order of the lanes' sum": Edit(
        "sinlstm_dist/csrc/simd.h",
        "for (int width = LANES / 2; width > 0; width /= 2)\n"
        "        for (int i = 0; i < width; i++) lane[i] += lane[i + width];",
        "for (int i = 1; i < LANES; i++) lane[0] += lane[i];",
    ),
    "another order of the gates' sum": Edit(
        "sinlstm_dist/csrc/backward.h",
        "for (int r = 0; r < 4 * H; r++, weight += width) {",
        "weight += 4 * H * width;\n"
        "    for (int r = 4 * H - 1; r >= 0; r--) {\n"
        "        weight -= width;",
    ),
}
# The rows of a batch and the recurrence's own passes, of the article's size and of others.
DIGESTS = """
import hashlib, json, torch
from sinlstm_dist import lstm

def results(W, D, H):
    torch.manual_seed(0)
    rnn, head = torch.nn.LSTM(D, H, batch_first=True), torch.nn.Linear(H, 1)
    inputs, targets = torch.randn(150, W, D, requires_grad=True), torch.randn(150, 1)
    yield lstm.predictor_rows(
        windows=inputs.detach(), targets=targets, piece_sizes=[137, 13], tolerance=0.5,
        parameters=[*rnn.parameters(), *head.parameters()],
    )
    outputs, _ = lstm.lstm(inputs, *rnn.parameters())
    outputs.square().sum().backward()
    yield from (outputs.detach(), inputs.grad, *(p.grad for p in rnn.parameters()))

def digest():
    sha = hashlib.sha256()
    for W, D, H in [(50, 1, 5), (50, 1, 7), (300, 1, 5), (30, 3, 16)]:
        for result in results(W, D, H):
            sha.update(result.contiguous().numpy().tobytes())
    return sha.hexdigest()

digests = {}
for name in lstm.instruction_sets():
    lstm.set_instruction_set(name)
    digests[name] = digest()
print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def digests(compilers: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each build, the digest that it gives on each instruction set."""
    builds = {**SOUND, **{name: Build(edits=(edit,)) for name, edit in ALTERED.items()}}
    folders = [tmp_path_factory.mktemp("build") for _ in builds]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(Build.make, builds.values(), folders)
        return dict(zip(builds, pool.map(ask, itertools.repeat(DIGESTS), made), strict=True))


@pytest.fixture(scope="module")
def installed() -> dict[str, str]:
    """The digests of the package as it is installed."""
    return ask(DIGESTS)


def test_every_instruction_set_gives_the_same_bits(installed):
    assert len(set(installed.values())) == 1, (machine(), installed)


@pytest.mark.parametrize("name", SOUND)
def test_every_compiler_gives_the_same_bits(name, digests, installed):
    assert digests[name] == installed, machine()


@instruction_sets
@pytest.mark.parametrize("name", ALTERED)
def test_other_arithmetic_gives_other_bits(name, instruction_set, digests, installed):
    assert digests[name][instruction_set] != installed[instruction_set], machine()
