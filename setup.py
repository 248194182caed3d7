"""Builds the compiled CPU kernel, if there is a C compiler; pyproject.toml holds the rest.

Without a compiler the package installs all the same and says that its fast path is missing.
To build it in place:

    python setup.py build_ext --inplace
"""

import sys

from setuptools import Extension, setup

SOURCES = "sinlstm_dist/lstm/csrc"

# No contraction: every multiply-add is written out, so the arithmetic does not change with what
# the compiler inlines where. No -march: instruction sets are chosen at run time.
COMPILE_ARGS = ["-std=c11", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off"]

kernel = Extension(
    "sinlstm_dist.lstm._kernel",
    sources=[
        f"{SOURCES}/{name}.c" for name in ("module", "pool", "isa_plain", "isa_avx2", "isa_avx512")
    ],
    depends=[f"{SOURCES}/{name}.h" for name in ("activations", "block", "kernel", "pool", "simd")],
    define_macros=[("Py_LIMITED_API", "0x030A0000")],
    extra_compile_args=[*COMPILE_ARGS, "-pthread"] if sys.platform != "win32" else [],
    extra_link_args=["-pthread"] if sys.platform != "win32" else [],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[kernel], options={"bdist_wheel": {"py_limited_api": "cp310"}})
