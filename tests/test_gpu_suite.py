"""The tests of tests/gpu need a GPU: elsewhere they say so, and plain pytest does not know them."""

import sys

from builds import ROOT
from launching import Ended, run


def pytest(*arguments: str) -> Ended:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return run(words, cwd=ROOT, CUDA_VISIBLE_DEVICES="")


def test_without_a_gpu_nothing_counts_as_tested():
    ended = pytest("tests/gpu")
    assert ended.code == 4
    assert "tests/gpu needs a GPU, and torch finds none here: nothing is tested" in ended.stderr
    assert ended.stdout == ""


def test_plain_pytest_leaves_them_out():
    ended = pytest("--collect-only", "--ignore-glob", "tests/test_*.py")
    assert (ended.code, "no tests collected" in ended.stdout) == (5, True), ended.stdout
