"""Every golden configuration ends with its known weights: on any CPU, with any number of processes.

Other compilers are the matter of test_builds.py, another kind of CPU that of test_arm.py.
"""

import json
import sys
from pathlib import Path

import pytest
from builds import ROOT, machine
from launching import flags, run
from lstm_cases import AVAILABLE, run_python
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from safetensors.torch import load_file

from sinlstm_dist.golden import GOLDEN, KNOWN, weights_digest

pytestmark = pytest.mark.kernel

NUMPY_HAS = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
TORCH = {"ATEN_CPU_CAPABILITY": "default"}
NUMPY = {"NPY_DISABLE_CPU_FEATURES": " ".join(NUMPY_HAS)}
KERNEL = {"SINLSTM_DIST_INSTRUCTION_SET": "plain"}
VARIABLES = {
    **{name: {"SINLSTM_DIST_INSTRUCTION_SET": name} for name in AVAILABLE},
    "torch for any CPU": TORCH,
    "numpy for any CPU": NUMPY,
    "two threads": {"OMP_NUM_THREADS": "2"},
    "all for any CPU": {**KERNEL, **TORCH, **NUMPY},
}


def digest(folder: Path) -> str:
    return weights_digest(load_file(folder / "model.safetensors"))


# Each alone, and all numbers of processes; test_same_bits.py has other sizes on each of them.
WORLDS = [*((name, 1) for name in GOLDEN), *zip(GOLDEN, (2, 3, 4, 8, 8, 3), strict=True)]


@pytest.mark.parametrize(("name", "processes"), WORLDS)
def test_any_number_of_processes_reaches_the_digest(name, processes, nursery, tmp_path):
    arguments = flags({**GOLDEN[name].changed, "output.dir": "run"})
    launch = nursery.run(arguments, cwd=tmp_path, processes=processes)
    assert launch.codes == [0] * processes, launch.stderr
    assert digest(tmp_path / "run") == GOLDEN[name].digest, machine()


@pytest.mark.parametrize("variation", VARIABLES)
def test_any_cpu_reaches_the_digests(variation, tmp_path):
    """These variables make this CPU's libraries compute as an older one would."""
    runs = [{**golden.changed, "output.dir": name} for name, golden in GOLDEN.items()]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    words = [sys.executable, str(ROOT / "tests" / "train_many.py"), "runs.json"]
    ended = run(words, cwd=tmp_path, **VARIABLES[variation])
    assert ended.code == 0, ended.stderr
    found = {name: digest(tmp_path / name) for name in GOLDEN}
    assert found == KNOWN, machine()


def test_the_variables_have_an_effect():
    ended = run_python(
        "import torch\n"
        "from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__\n"
        "from sinlstm_dist import compiled\n"
        "print(torch.backends.cpu.get_cpu_capability(), compiled.instruction_set(),\n"
        "      [name for name in __cpu_dispatch__ if __cpu_features__[name]])",
        **VARIABLES["all for any CPU"],
    )
    assert ended.stdout == "DEFAULT plain []\n", ended.stderr
