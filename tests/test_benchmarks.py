"""The benchmarks run and say what they measured; what they measure decides no test."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(name: str, *flags: object) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_a_peer_and_this_package(tmp_path: Path) -> None:
    found = tmp_path / "peers.json"
    printed = run(
        "against_peers.py", "--batch", 5000, "--rounds", 1, "--epochs", 3,
        "--peers", "plain_pytorch", "--json", found,
    )  # fmt: skip
    assert "plain_pytorch" in printed
    (rows,) = json.loads(found.read_text())["batches"].values()
    assert {row["peer"] for row in rows} == {"sinlstm_dist", "plain_pytorch"}
    assert all(row["epoch_s"] > 0 for row in rows)


def test_a_picture_of_how_cost_grows(tmp_path: Path) -> None:
    picture = tmp_path / "scaling.png"
    axis = "processes, 5,000 samples each"
    printed = run("scaling.py", "--rounds", 1, "--axes", axis, "--output", picture)
    assert printed.count("5,000 samples each") >= 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_predicted_and_measured_cost_of_a_step(tmp_path: Path) -> None:
    found = tmp_path / "model.json"
    printed = run("cost_model.py", "--processes", 2, "--json", found)
    assert "foretold" in printed
    rows = json.loads(found.read_text())
    kinds = {(row["reduction"], row["parameters"], row["batch"]) for row in rows}
    assert kinds == set(itertools.product(("ordered", "ddp"), (166, 17_217), (100, 1000)))
    for row in rows:
        assert row["foretold_ms"] == row["own_ms"] + row["exchange_ms"]
        assert min(row["step_ms"], row["own_ms"], row["exchange_ms"]) > 0


def test_measuring_a_gpu_says_that_there_is_none() -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == "benchmarks/gpu.py measures a GPU, and torch finds none here\n"
