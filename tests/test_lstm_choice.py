"""Which implementation of the recurrence and which instruction set is used, and why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import flags
from lstm_cases import ROOT, SIZES, run_python, using
from safetensors.torch import load_file

from sinlstm_dist import compiled, lstm
from sinlstm_dist.golden import GOLDEN, weights_digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device_type": "mps"}, "device mps"),
        ({"num_layers": 17}, "17 layers > 16"),
        ({"hidden_size": 512}, "hidden size 512 > 64"),
    ],
)
def test_choice_says_why_not(change: dict[str, object], reason: str) -> None:
    arguments = {"device_type": "cpu", **SIZES, **change}
    assert lstm.choose("auto", **arguments) == lstm.Choice("torch", reason)
    with pytest.raises(ValueError, match=f'"fused" cannot be used with {reason}'):
        lstm.choose("fused", **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has these where there is a GPU")
def test_a_gpu_without_the_kernel_uses_torch() -> None:
    arguments = {**SIZES, "device_type": "cuda"}
    auto = lstm.choose("auto", **arguments)
    assert auto.name == "torch"
    assert auto.reason.startswith("no GPU kernel: ")
    with pytest.raises(ValueError, match=r"cannot be used with no GPU kernel: .* cuda-bindings"):
        lstm.choose("fused", **arguments)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="'cudnn' is unknown"):
        lstm.choose("cudnn", device_type="cpu", **SIZES)


@pytest.mark.kernel
def test_the_compiled_kernel_is_there() -> None:
    assert compiled.missing() == ""
    assert "plain" in lstm.instruction_sets()
    forced = os.environ.get("SINLSTM_DIST_INSTRUCTION_SET")
    assert lstm.instruction_set() == (forced or lstm.instruction_sets()[0])


@pytest.mark.kernel
def test_choice() -> None:
    auto = lstm.choose("auto", device_type="cpu", **SIZES)
    assert auto.name == "fused"
    assert auto.reason == f"compiled kernel, {compiled.label()}"
    assert lstm.choose("fused", device_type="cpu", **SIZES) == auto
    assert lstm.choose("auto", device_type="cpu", **{**SIZES, "num_layers": 16}) == auto
    assert lstm.choose("torch", device_type="cpu", **SIZES).name == "torch"


@pytest.mark.kernel
def test_instruction_set_is_named_and_refused() -> None:
    with using("plain"):
        assert lstm.instruction_set() == "plain"
        assert lstm.choose("auto", device_type="cpu", **SIZES).reason == "compiled kernel, plain"
    with pytest.raises(ValueError, match="'neon' is not on this machine: use one of"):
        lstm.set_instruction_set("neon")


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("name", "expected"), [("plain", "compiled kernel, plain"), ("neon", "'neon' is not on this")]
)
def test_the_environment_can_ask_for_an_instruction_set(name: str, expected: str) -> None:
    """For clusters whose machines differ: all of them must compute the same bits."""
    script = """
from sinlstm_dist import lstm
print(lstm.choose("auto", device_type="cpu", input_size=1, hidden_size=5, num_layers=1).reason)
"""
    ended = run_python(script, SINLSTM_DIST_INSTRUCTION_SET=name)
    assert expected in ended.stdout + ended.stderr
    assert ended.returncode == (name == "neon")


def test_package_builds_and_explains_itself_without_a_compiler(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "sinlstm_dist", tmp_path / "sinlstm_dist", ignore=ignore)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "CC": "/bin/false"},  # a compiler that fails
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert not list(tmp_path.rglob("*.so"))
    # An installation in editable mode would find the kernel of its own folder.
    (tmp_path / "sinlstm_dist/_kernel.py").write_text("raise ImportError('never built')")
    script = """
import sys, torch
from sinlstm_dist import lstm
sizes = dict(device_type="cpu", input_size=1, hidden_size=5, num_layers=1)
choice = lstm.choose("auto", **sizes)
assert choice.name == "torch", choice
print(choice.reason)
for call in (lambda: lstm.choose("fused", **sizes), lstm.instruction_set):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        print(error)
"""
    result = run_python(script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reason, chosen, used = result.stdout.splitlines()
    assert reason.startswith("no compiled kernel: never built; ")
    assert reason.endswith('its bits, the same on any CPU, need it or lstm="reference"')
    assert 'lstm="fused" cannot be used with no compiled kernel: ' in chosen
    assert "install sinlstm-dist where there is a C compiler" in used
    golden = GOLDEN["momentum"]
    arguments = flags({**golden.changed, "model.lstm": "reference", "output.dir": "run"})
    ended = run_python(f"from sinlstm_dist.train import main; main({arguments})", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "recurrence: reference" in ended.stdout
    assert weights_digest(load_file(tmp_path / "run" / "model.safetensors")) == golden.digest
