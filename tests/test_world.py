"""A world of processes: what they hand to each other, and what they leave."""

import socket
from pathlib import Path

import launching
import pytest

# Values that no other process has: shapes with 0 and without dimensions, bytes that do not align.
HANDED_OUT = """
import torch
from sinlstm_dist.errors import ConfigError, RunError
from sinlstm_dist.processes.gathering import LARGE
from sinlstm_dist.processes.joining import join_world

VALUES = {
    "weights": torch.arange(12.0).reshape(3, 4).T,
    "nan": torch.tensor([float("nan"), -0.0]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "moment": torch.tensor([1e-300], dtype=torch.float64),
    "step": torch.tensor(2**53 + 1),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 5),
    "longest in shared memory": torch.arange(LARGE // 8 - 1),
    "larger than its slot there": torch.arange(LARGE // 8 + 100),
}


def values():
    assert world.is_main
    return VALUES


def bytes_of(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def refuse():
    raise ConfigError("not this one")


def fail():
    open("/nowhere")


with join_world(timeout_s=60, one_thread=True) as world:
    received = world.tensors_from_main(values)
    assert list(received) == list(VALUES)
    for name, value in VALUES.items():
        assert received[name].dtype == value.dtype and received[name].shape == value.shape, name
        assert bytes_of(received[name]) == bytes_of(value), name
        assert received[name].data_ptr() != value.data_ptr() or not value.numel(), name
    own = torch.full((2, 3), float(world.rank)).T
    world.broadcast(own)
    assert own.tolist() == [[0.0, 0.0]] * 3
    for function, kind in ((refuse, ConfigError), (fail, RunError)):
        try:
            world.tensors_from_main(function)
        except kind as error:
            print(error)
"""
TWO_WORLDS = """
import time, torch
from sinlstm_dist.processes.joining import join_world

destroy = torch.distributed.destroy_process_group


def destroy_late():
    destroy()
    time.sleep(1 if world.is_main else 0)


torch.distributed.destroy_process_group = destroy_late
for _ in range(2):
    with join_world(timeout_s=10, one_thread=True) as world:
        assert world.sum(torch.ones(1)).item() == world.size
"""
SHARED_GPU = """
import sys
from sinlstm_dist import train
from sinlstm_dist.processes import joining

joining.gpu_of = lambda launch: ["GPU-a", "GPU-b", "GPU-a", ""][launch.rank]
sys.exit(train.as_program(train.main))
"""
ITS_OWN = """
from accelerate import Accelerator
from sinlstm_dist.processes.joining import join_world

with join_world(timeout_s=60, one_thread=True):
    pass
print(Accelerator(cpu=True, mixed_precision="bf16").num_processes)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_the_main_process_hands_out_tensors_and_errors(tmp_path: Path, processes: int) -> None:
    (tmp_path / "hand_out.py").write_text(HANDED_OUT)
    for ended in launching.each([], cwd=tmp_path, variables=[{}] * processes, module="hand_out"):
        assert ended.code == 0, ended.stderr
        refused, failed = ended.stdout.splitlines()
        assert refused == "not this one"
        assert failed.startswith("/nowhere: No such file")


def test_two_processes_with_one_gpu_are_refused_once(tmp_path: Path) -> None:
    (tmp_path / "shared_gpu.py").write_text(SHARED_GPU)
    arguments = ["--output.dir", "run"]
    all_ended = launching.each(arguments, cwd=tmp_path, variables=[{}] * 4, module="shared_gpu")
    assert [ended.code for ended in all_ended] == [2, 2, 2, 2]
    [error] = [ended.stderr for ended in all_ended if ended.stderr]
    assert error.startswith(f"error: rank 0 and rank 2 on {socket.gethostname()} have the same GPU")
    assert not (tmp_path / "run").exists()


def test_the_program_can_make_an_accelerator_of_its_own_afterwards(tmp_path: Path) -> None:
    (tmp_path / "its_own.py").write_text(ITS_OWN)
    [ended] = launching.each([], cwd=tmp_path, variables=[{}], module="its_own")
    assert (ended.code, ended.stdout) == (0, "1\n"), ended.stderr


def test_worlds_one_after_the_other(tmp_path: Path) -> None:
    """The others find rank 0's store while it still leaves the first world: it must not close."""
    (tmp_path / "two_worlds.py").write_text(TWO_WORLDS)
    for ended in launching.each([], cwd=tmp_path, variables=[{}, {}], module="two_worlds"):
        assert ended.code == 0, ended.stderr
