"""Two processes, over NCCL and over gloo, on one GPU if there is only one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import launching
import pytest
from gpu_runs import BACKENDS, DEVICE, SETTINGS, TRAINED, on_two, python_arguments, train
from launching import check_same, finish, flags, free_port, has_begun, metrics, run, summary

HOST = socket.gethostname()
ENDLESS = {**SETTINGS, "train.epochs": 100_000, "train.timeout_s": 10}


@BACKENDS
@pytest.mark.parametrize("name", ["torch", "fused", "shared out", "own model"])
def test_two_give_the_bits_of_one(name, backend, tmp_path):
    train(tmp_path / "one", TRAINED[name])
    (tmp_path / "two").mkdir()
    ended = run(on_two(backend, "train", *flags(TRAINED[name])), cwd=tmp_path / "two")
    assert ended.code == 0, ended.stdout + ended.stderr
    check_same(tmp_path / "one/run", tmp_path / "two/run")
    found = summary(tmp_path / "two/run")
    assert (found["world_size"], found["device"]) == (2, DEVICE)


@BACKENDS
def test_ddp_reduction_trains_on_two(backend, tmp_path):
    settings = {**TRAINED["torch"], "train.reduction": "ddp"}
    train(tmp_path / "one", settings)
    (tmp_path / "two").mkdir()
    ended = run(on_two(backend, "train", *flags(settings)), cwd=tmp_path / "two")
    assert ended.code == 0, ended.stdout + ended.stderr
    one, two = (metrics(tmp_path / name / "run")[-1] for name in ("one", "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)  # other sums


@BACKENDS
def test_one_goes_on_where_two_have_stopped(backend, tmp_path):
    settings = {**TRAINED["torch"], "checkpoint.every_epochs": 1}
    ended = run(on_two(backend, "train", *flags({**settings, "train.epochs": 1})), cwd=tmp_path)
    assert ended.code == 0, ended.stdout + ended.stderr
    train(tmp_path, settings)
    train(tmp_path / "straight", settings)
    check_same(tmp_path / "run", tmp_path / "straight/run")


@pytest.mark.parametrize("command", ["train", "verify"])
def test_over_nccl_they_are_refused_in_words(command, tmp_path):
    """Before NCCL refuses them in its own."""
    arguments = flags(SETTINGS) if command == "train" else []
    (first, *_) = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    words = launching.command(*arguments, processes=2, module=f"sinlstm_dist.{command}")
    ended = run(words, cwd=tmp_path, CUDA_VISIBLE_DEVICES=first)
    said = ended.stdout + ended.stderr
    assert ended.code != 0
    assert "have the same GPU" in said
    assert not (tmp_path / "run").exists()


def start_two(backend: str, cwd: Path) -> list[subprocess.Popen[str]]:
    """Two training processes without a launcher, which would end the one that is left."""
    world = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    words = [sys.executable, *python_arguments(backend, "train"), *flags(ENDLESS)]
    return [
        launching.spawn(words, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in range(2)
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@BACKENDS
def test_a_lost_process_is_named(backend, number, tmp_path):
    first, lost = start_two(backend, tmp_path)
    try:
        launching.wait_for(lambda: has_begun(tmp_path / "run") or first.poll() is not None)
        os.kill(lost.pid, number)
        ended = finish(first, timeout=120)
    finally:
        os.killpg(lost.pid, signal.SIGKILL)
        lost.communicate()
    assert ended.code == 1, ended.stdout + ended.stderr
    assert f"rank 1 on {HOST} died, hangs or cannot be reached" in ended.stderr
    assert summary(tmp_path / "run")["outcome"] == "failed"
