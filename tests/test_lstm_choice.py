"""Which recurrence is chosen and why; none of it needs the compiled kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sinlstm_dist import lstm

ROOT = Path(__file__).parents[1]
SIZES = {"input_size": 1, "hidden_size": 5, "num_layers": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device_type": "mps"}, "device mps"),
        ({"num_layers": 2}, "2 layers"),
        ({"hidden_size": 512}, "hidden size 512 > 64"),
    ],
)
def test_choice_says_why_not(change: dict[str, object], reason: str) -> None:
    arguments = {"device_type": "cpu", **SIZES, **change}
    assert lstm.choose("auto", **arguments) == lstm.Choice("torch", reason)
    with pytest.raises(ValueError, match=f'"fused" cannot be had with {reason}'):
        lstm.choose("fused", **arguments)


@pytest.mark.parametrize(
    ("change", "obstacle"), [({"num_layers": 2}, "2 layers"), ({"hidden_size": 512}, "512 > 64")]
)
def test_a_gpu_gets_the_unmeasured_kernel_only_if_asked(
    change: dict[str, object], obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**SIZES, "device_type": "cuda"}
    measured = "device cuda, where the Triton kernel has not been measured"
    assert lstm.choose("auto", **arguments) == lstm.Choice("torch", measured)
    with pytest.raises(ValueError, match=obstacle):
        lstm.choose("fused", **{**arguments, **change})
    monkeypatch.setattr(sys, "path", [])  # nothing is found that has not been imported
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    with pytest.raises(ValueError, match=r"no Triton: .*pip install 'sinlstm-dist\[triton\]'"):
        lstm.choose("fused", **arguments)


def test_choice_of_the_unknown() -> None:
    with pytest.raises(ValueError, match="'cudnn' is unknown"):
        lstm.choose("cudnn", device_type="cpu", **SIZES)


@pytest.mark.kernel
def test_another_instruction_set_can_be_forced_and_must_be_there() -> None:
    """As on a cluster whose nodes have different ones: all must compute the same bits."""
    script = """
from sinlstm_dist import lstm
print(lstm.choose("auto", device_type="cpu", input_size=1, hidden_size=5, num_layers=1).reason)
"""
    for name, expected in (("plain", "compiled kernel, plain"), ("neon", "'neon' is not on this")):
        environment = {**os.environ, "SINLSTM_DIST_INSTRUCTION_SET": name}
        ended = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert expected in ended.stdout + ended.stderr
        assert ended.returncode == (name == "neon")


def run_python(*parts: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "".join(parts)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_package_builds_and_explains_itself_without_a_compiler(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "sinlstm_dist" / "lstm", tmp_path / "sinlstm_dist/lstm", ignore=ignore)
    (tmp_path / "sinlstm_dist/__init__.py").touch()
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "CC": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert not list(tmp_path.rglob("*.so"))
    script = """
import sys, torch
from sinlstm_dist import lstm
sizes = dict(device_type="cpu", input_size=1, hidden_size=5, num_layers=1)
choice = lstm.choose("auto", **sizes)
assert choice.name == "torch" and choice.reason.startswith("no compiled kernel: "), choice
for call in (lambda: lstm.choose("fused", **sizes), lstm.instruction_set):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        print(error)
"""
    result = run_python(script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    chosen, used = result.stdout.splitlines()
    assert 'lstm="fused" cannot be had with no compiled kernel: ' in chosen
    assert "install sinlstm-dist where there is a C compiler" in used
