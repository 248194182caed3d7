"""Builds the compiled CPU kernel, if there is a C compiler; pyproject.toml holds the rest.

Without a compiler the package installs too, and says that its fast path is missing. To build the
kernel in place:

    python setup.py build_ext --inplace
"""

import sys
from glob import glob

from setuptools import Extension, setup

SOURCES = "sinlstm_dist/csrc"

# No contraction: every multiply-add is written out, so the arithmetic does not depend on what the
# compiler inlines. No -march: instruction sets are chosen at run time.
COMPILE_ARGS = [
    "-std=c11", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra"
]  # fmt: skip

kernel = Extension(
    "sinlstm_dist._kernel",
    sources=sorted(glob(f"{SOURCES}/*.c")),
    depends=sorted(glob(f"{SOURCES}/*.h")),
    define_macros=[("Py_LIMITED_API", "0x030A0000")],
    extra_compile_args=[*COMPILE_ARGS, "-pthread"] if sys.platform != "win32" else [],
    extra_link_args=["-pthread"] if sys.platform != "win32" else [],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[kernel], options={"bdist_wheel": {"py_limited_api": "cp310"}})
