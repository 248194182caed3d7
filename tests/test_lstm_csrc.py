"""The C sources of the compiled kernel: they give no warnings, check arguments by name, and round a
multiply-add once."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lstm_cases import AVAILABLE, ROOT

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
    ("function", "count"), [("predictor", 17), ("lstm_forward", 19), ("lstm_backward", 18)]
)
def test_numbers_without_names_are_refused(function: str, count: int) -> None:
    """Each function refuses them before it reads an address."""
    call = getattr(compiled.kernel(), function)
    with pytest.raises(TypeError, match=f"0 named and {count} unnamed arguments given: {count}"):
        call(*range(count))
    with pytest.raises(TypeError, match="argument 0 is 'a0'"):
        call(**{f"a{i}": 0 for i in range(count)})


# Multiply-adds


FLAGS = {
    "plain": [],
    "avx2": ["-DISA_AVX2", "-mavx2", "-mfma"],
    "avx512": ["-DISA_AVX512", "-mavx512f"],
}


def multiply_adds(folder: Path, instruction_set: str) -> ctypes.CDLL:
    """The functions of v_fma.c, compiled for an instruction set."""
    library = folder / f"{instruction_set}.so"
    command = ["cc", "-O2", "-ffp-contract=off", "-shared", "-fPIC", *FLAGS[instruction_set]]
    files = ["-I", ROOT / "sinlstm_dist/csrc", "-o", library, ROOT / "tests/v_fma.c"]
    subprocess.run([*command, *files], check=True, timeout=120)
    return ctypes.CDLL(str(library))


def of_any_bits(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Any floats, subnormals, infinities and NaN among them."""
    return list(rng.integers(0, 2**32, (3, count), dtype=np.uint32).view(np.float32))


def of_special_values(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    tiny, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    values = [0, 1, 1 + 2**-23, 1 - 2**-24, 3, tiny, tiny * (1 + 2**-23), tiny / 2, largest, 2**63]
    values += [2**-63, 2**-149, np.inf, np.nan]
    return list(rng.choice(np.array([*values, *np.negative(values)], np.float32), (3, count)))


def of_near_halves(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """a b is half or a quarter of c's last place, or next to it; from underflow to overflow."""
    near = 1 + rng.choice([-1, 0, 1], (2, count)) * 2.0 ** -rng.integers(1, 24, (2, count))
    sign = rng.choice([-1, 1], (2, count))
    exponent = rng.choice([-129, -127, -126, -125, -100, -3, 0, 50, 126, 127], count)
    mantissa = rng.choice([2**23, 2**23 + 1, 2**24 - 1, 0], count)
    mantissa = np.where(mantissa, mantissa, rng.integers(2**23, 2**24, count))
    c = np.ldexp(mantissa * sign[0], exponent - 23)
    low = exponent // 2 - 12
    a, b = near[0] * sign[1] * 2.0**low, near[1] * 2.0 ** (exponent - 24 - low)
    b *= rng.choice([1, 0.5], count)
    return [numbers.astype(np.float32) for numbers in (a, b, c)]


def of_near_cancellations(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """c is -a b, rounded or a few places off; results down to underflow."""
    exponents = rng.integers(-62, 63, (2, count))
    a, b = np.ldexp(1 + rng.random((2, count)), exponents).astype(np.float32)
    c = (-a.astype(np.float64) * b).astype(np.float32)
    c = (c.view(np.int32) + rng.integers(-2, 3, count, dtype=np.int32)).view(np.float32)
    return [a, b, c]


@pytest.mark.parametrize("instruction_set", AVAILABLE[:-1])
@pytest.mark.parametrize(
    "draw", [of_any_bits, of_special_values, of_near_halves, of_near_cancellations]
)
def test_plain_multiply_adds_round_once(instruction_set: str, draw, tmp_path: Path) -> None:
    """They have the bits of the CPU's own instruction; which NaN it is counts nowhere."""
    count = 2**20
    arrays = draw(np.random.default_rng(0), count)
    plain, expected = (multiply_adds(tmp_path, name) for name in ("plain", instruction_set))
    for function in ("fma_of", "fnma_of"):
        results = []
        for library in (plain, expected):
            out = np.empty(count, np.float32)
            addresses = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, out)]
            getattr(library, function)(ctypes.c_int64(count), *addresses)
            results.append(np.where(np.isnan(out), np.float32(np.nan), out).view(np.uint32))
        different = np.flatnonzero(results[0] != results[1])
        assert different.size == 0, [array[different[0]].item().hex() for array in arrays]
