"""The C sources of the compiled kernel: they give no warnings, and check arguments by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lstm_cases import ROOT

from sinlstm_dist import compiled

pytestmark = pytest.mark.kernel


def test_the_sources_compile_without_warnings(tmp_path: Path) -> None:
    """With the flags of setup.py, which include -Wall and -Wextra, and with -Werror."""
    folders = [f"--build-lib={tmp_path}/lib", f"--build-temp={tmp_path}/temp"]
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env={**os.environ, "CFLAGS": "-Werror"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert list(tmp_path.glob("lib/**/_kernel*.so")), built.stderr  # the extension is optional
    commands = [line for line in built.stdout.splitlines() if " -c " in line]
    assert len(commands) == len(list(ROOT.glob("sinlstm_dist/csrc/*.c")))
    assert all("-Wall -Wextra" in command for command in commands)


def test_arguments_have_names_and_an_order() -> None:
    tape_size = compiled.kernel().tape_size
    for _ in range(2):
        assert tape_size(window=2, input_size=1, hidden_size=5) == 16 * (2 + 2 * 3 * 5 + 5 * 2 * 5)
    with pytest.raises(TypeError, match="0 named and 3 unnamed arguments given: 3 named needed"):
        tape_size(2, 1, 5)
    with pytest.raises(TypeError, match="2 named and 1 unnamed arguments given: 3 named needed"):
        tape_size(2, input_size=1, hidden_size=5)
    with pytest.raises(TypeError, match="2 named and 0 unnamed arguments given: 3 named needed"):
        tape_size(window=2, input_size=1)
    with pytest.raises(TypeError, match="argument 0 is 'input_size': window needed"):
        tape_size(input_size=1, window=2, hidden_size=5)
    with pytest.raises(TypeError, match="argument 2 is 'hidden': hidden_size needed"):
        tape_size(window=2, input_size=1, hidden=5)
    with pytest.raises(TypeError, match="int"):
        tape_size(window=2.0, input_size=1, hidden_size=5)


@pytest.mark.parametrize(
    ("function", "count"), [("predictor", 22), ("lstm_forward", 19), ("lstm_backward", 18)]
)
def test_numbers_without_names_are_refused(function: str, count: int) -> None:
    """Each function refuses them before it reads an address."""
    call = getattr(compiled.kernel(), function)
    with pytest.raises(TypeError, match=f"0 named and {count} unnamed arguments given: {count}"):
        call(*range(count))
    with pytest.raises(TypeError, match="argument 0 is 'a0'"):
        call(**{f"a{i}": 0 for i in range(count)})
