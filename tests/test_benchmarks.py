"""The benchmarks run and say what they measured; what they measure decides no test."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_setting_of_the_table(tmp_path: Path) -> None:
    found = tmp_path / "settings.json"
    printed = run("settings.py", "--quick", "--only", "batch 100, ddp", "--json", found)
    assert "A peer is faster in " in printed
    (row,) = json.loads(found.read_text())["settings"].values()
    assert row["reduction"] == "ddp"
    assert {"sinlstm_dist", "plain_pytorch"} <= {program["peer"] for program in row["rows"]}


def test_the_table_has_twenty_settings() -> None:
    """Each with whole steps, of which every program makes the same number."""
    program = (
        "import json, settings; from dataclasses import asdict\n"
        "print(json.dumps([asdict(setting) for setting in settings.SETTINGS]))"
    )
    rows = json.loads(python(program))
    assert len({row["name"] for row in rows}) == len(rows) == 20
    assert not any(row["workload"]["train_windows"] % row["workload"]["batch"] for row in rows)


PEERS_OF_ALL_SETTINGS = (
    "plain_pytorch", "jax_scan", "accelerate_loop", "hf_trainer", "lightning_trainer",
)  # fmt: skip


def python(program: str, *, folder: Path = BENCHMARKS) -> str:
    """What a program prints that may import the files of a folder."""
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return ended.stdout


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """This package's epochs of one step each, from the weights of the peers."""
    folder = tmp_path_factory.mktemp("ours")
    python(
        "from network import start; from workload import Workload\n"
        "from safetensors.torch import save_file\n"
        "model = start(Workload(hidden_size=8, num_layers=2))\n"
        f"save_file(model.state_dict(), {str(folder / 'start.safetensors')!r})",
        folder=BENCHMARKS / "peers",
    )
    settings = {
        "data.train_size": 60, "data.test_size": 20, "data.window": 20, "model.hidden_size": 8,
        "model.num_layers": 2, "optim.momentum": 0.9, "train.global_batch_size": 60,
        "train.epochs": 5, "train.init_from": folder / "start.safetensors",
        "output.dir": folder / "run",
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    train = [sys.executable, "-m", "sinlstm_dist.train", *flags]
    subprocess.run(train, check=True, capture_output=True, timeout=120)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses_of(peer: str, *, momentum: float) -> dict[str, list[float]]:
    printed = run(
        f"peers/{peer}.py", "--batch", 60, "--train-windows", 60, "--test-windows", 20,
        "--window", 20, "--hidden-size", 8, "--num-layers", 2, "--momentum", momentum,
        "--epochs", 5,
    )  # fmt: skip
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("peer", PEERS_OF_ALL_SETTINGS)
def test_a_peer_learns_the_same(peer: str, ours: list[dict[str, float]]) -> None:
    """Two layers with momentum: the losses of five steps, rounded in other orders."""
    theirs = losses_of(peer, momentum=0.9)
    for key in ("train_loss", "test_loss"):
        assert theirs[key] == pytest.approx([epoch[key] for epoch in ours], rel=1e-5), key


def test_a_peer_without_momentum_learns_something_else(ours: list[dict[str, float]]) -> None:
    """From the second step on, which is the first that has a velocity."""
    theirs = losses_of("plain_pytorch", momentum=0.0)["train_loss"]
    expected = [epoch["train_loss"] for epoch in ours]
    assert theirs[:2] == pytest.approx(expected[:2], rel=1e-5)
    assert theirs[2:] != pytest.approx(expected[2:], rel=1e-3)


def test_the_article_has_no_other_settings() -> None:
    command = [sys.executable, str(BENCHMARKS / "peers/article.py"), "--num-layers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "knows only the article's network" in ended.stderr
