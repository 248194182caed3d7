"""Two processes on one GPU, over NCCL and over gloo; without disguise they are refused."""

import os
import signal
import socket
import sys

import launching
import pytest
import torch
from gpu_runs import DEVICE, ON_ONE_GPU, SETTINGS, TRAINED, on_one_gpu, train
from launching import check_same, finish, flags, free_port, has_begun, metrics, run, summary

HOST = socket.gethostname()
ENDLESS = {**SETTINGS, "train.epochs": 100_000, "train.timeout_s": 10}
two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="two processes over NCCL need two GPUs; here is one"
)


BACKENDS = pytest.mark.parametrize("backend", ["nccl", "gloo"])


@BACKENDS
@pytest.mark.parametrize("name", ["torch", "fused", "shared out", "own model"])
def test_two_give_the_bits_of_one(name, backend, tmp_path):
    train(tmp_path / "one", TRAINED[name])
    (tmp_path / "two").mkdir()
    ended = run(on_one_gpu(backend, "train", *flags(TRAINED[name])), cwd=tmp_path / "two")
    assert ended.code == 0, ended.stdout + ended.stderr
    check_same(tmp_path / "one/run", tmp_path / "two/run")
    found = summary(tmp_path / "two/run")
    assert (found["world_size"], found["device"]) == (2, DEVICE)


@BACKENDS
def test_ddp_reduction_trains_on_two(backend, tmp_path):
    settings = {**TRAINED["torch"], "train.reduction": "ddp"}
    train(tmp_path / "one", settings)
    (tmp_path / "two").mkdir()
    ended = run(on_one_gpu(backend, "train", *flags(settings)), cwd=tmp_path / "two")
    assert ended.code == 0, ended.stdout + ended.stderr
    one, two = (metrics(tmp_path / name / "run")[-1] for name in ("one", "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)  # other sums


@BACKENDS
def test_one_goes_on_where_two_have_stopped(backend, tmp_path):
    settings = {**TRAINED["torch"], "checkpoint.every_epochs": 1}
    ended = run(on_one_gpu(backend, "train", *flags({**settings, "train.epochs": 1})), cwd=tmp_path)
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


def start_two(cwd, *, module: list[str], variables: list[dict[str, str]]):
    """Two training processes without a launcher, which would end the one that is left."""
    world = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    words = [sys.executable, *module, *flags(ENDLESS)]
    return [
        launching.spawn(words, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **world, **own)
        for rank, own in enumerate(variables)
    ]


def check_the_other_names_it(first, lost, cwd, *, number: int) -> None:
    try:
        launching.wait_for(lambda: has_begun(cwd / "run") or first.poll() is not None)
        os.kill(lost.pid, number)
        ended = finish(first, timeout=120)
    finally:
        os.killpg(lost.pid, signal.SIGKILL)
        lost.communicate()
    assert ended.code == 1, ended.stdout + ended.stderr
    assert f"rank 1 on {HOST} died, hangs or cannot be reached" in ended.stderr
    assert summary(cwd / "run")["outcome"] == "failed"


@pytest.mark.parametrize(
    ("backend", "number"),
    [("nccl", signal.SIGKILL), ("nccl", signal.SIGSTOP), ("gloo", signal.SIGKILL)],
)
def test_a_lost_process_is_named(backend, number, tmp_path):
    module = [str(ON_ONE_GPU), backend, "sinlstm_dist.train"]
    both = start_two(tmp_path, module=module, variables=[{}, {}])
    check_the_other_names_it(*both, tmp_path, number=number)


@two_gpus
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_is_named_over_nccl(number, tmp_path):
    module = ["-m", "sinlstm_dist.train"]
    both = start_two(tmp_path, module=module, variables=[{}, {}])
    check_the_other_names_it(*both, tmp_path, number=number)


@two_gpus
def test_each_process_may_see_one_gpu_only(tmp_path):
    """Some launchers give each process a GPU of its own, which is then number 0."""
    variables = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    both = launching.each(flags(TRAINED["torch"]), cwd=tmp_path, variables=variables)
    assert [ended.code for ended in both] == [0, 0], both[0].stderr
    train(tmp_path / "one", TRAINED["torch"])
    check_same(tmp_path / "run", tmp_path / "one/run")
