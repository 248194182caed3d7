"""Ways to start: each trains as many processes as it says, or says which command does."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import launching
import pytest
from accelerate.utils import DistributedType

from sinlstm_dist import __main__, train
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes import accelerator, launcher

QUICK = {
    "data.train_size": 60,
    "data.test_size": 30,
    "data.window": 10,
    "data.noise": 0.02,
    "train.global_batch_size": 20,
    "train.epochs": 2,
}
WORKS = "torchrun --nproc-per-node"


def accelerate_launch(*options: str, cwd: Path, **settings: object) -> launching.Ended:
    """`accelerate launch OPTIONS -m sinlstm_dist.train`, without a user's configuration of it."""
    module = ["-m", "sinlstm_dist.train"]
    arguments = launching.flags({**QUICK, "output.dir": "run", **settings})
    words = ["accelerate", "launch", *options, *module, *arguments]
    return launching.run(words, cwd=cwd, HF_HOME=str(cwd / "hf"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """Digest of the weights of a run of one process, in this one."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert train.main(launching.flags({**QUICK, "output.dir": run})) == 0
    return launching.weights_digest(run)


def errors(ended: launching.Ended) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


def check_trained(folder: Path, ended: launching.Ended, *, world_size: int, weights: str) -> None:
    assert ended.code == 0, ended.stderr
    assert errors(ended) == []
    assert launching.summary(folder / "run")["world_size"] == world_size
    assert launching.weights_digest(folder / "run") == weights
    assert ended.stdout.count("results in run") == 1


def test_plain_python(tmp_path, alone):
    ended = launching.train(launching.flags({**QUICK, "output.dir": "run"}), cwd=tmp_path)
    check_trained(tmp_path, ended, world_size=1, weights=alone)


def test_console_script(tmp_path, alone, capsys):
    flags = launching.flags({**QUICK, "output.dir": tmp_path / "run"})
    assert __main__.main(["train", *flags]) == 0
    assert launching.weights_digest(tmp_path / "run") == alone
    assert __main__.main(["train", "--data.noize", "1"]) == 2
    capsys.readouterr()
    assert __main__.main(["trian"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error == "error: there is no command trian: did you mean train?"


def test_torchrun_with_two(tmp_path, alone):
    flags = launching.flags({**QUICK, "output.dir": "run"})
    ended = launching.train(flags, cwd=tmp_path, processes=2)
    check_trained(tmp_path, ended, world_size=2, weights=alone)


def test_accelerate_launch(tmp_path, alone):
    ended = accelerate_launch(cwd=tmp_path)
    check_trained(tmp_path, ended, world_size=1, weights=alone)


def test_accelerate_launch_with_two_on_cpu(tmp_path, alone):
    port = str(launching.free_port())
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    ended = accelerate_launch(*options, cwd=tmp_path)
    check_trained(tmp_path, ended, world_size=2, weights=alone)


def test_a_single_process_of_accelerate_that_should_be_two_is_refused(tmp_path):
    ended = accelerate_launch("--cpu", "--num_processes", "2", cwd=tmp_path)
    assert ended.code != 0
    [error] = errors(ended)
    assert WORKS in error
    assert "--cpu" in error
    assert not (tmp_path / "run").exists()


def test_more_processes_than_pieces_are_refused_once(nursery, tmp_path):
    flags = launching.flags({**QUICK, "output.dir": "run", "train.virtual_shards": 1})
    launch = nursery.run(flags, cwd=tmp_path, processes=2)
    assert launch.codes == [2, 2]
    [error] = launch.stderr.splitlines()
    assert "2 processes" in error
    assert "train.virtual_shards=1" in error
    assert "train.virtual_shards=2" in error  # what to do
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("differing", "which"),
    [
        ({1: ["--optim.lr", "0.5"]}, "optim.lr differs from rank 0's on rank 1 on {}"),
        (
            {0: ["--train.epochs", "3"]},
            "train.epochs differs from rank 1's on rank 0 on {}",
        ),  # two know better than one
        ({2: ["--output.dir", "other"]}, "output.dir differs from rank 0's on rank 2 on {}"),
    ],
)
def test_processes_with_differing_settings_are_refused_by_name(nursery, tmp_path, differing, which):
    """As on a cluster where one node reads another file."""
    flags = launching.flags({**QUICK, "output.dir": "run"})
    launch = nursery.run(flags, cwd=tmp_path, processes=3, more=differing)
    assert launch.codes == [2, 2, 2]
    assert launch.stderr == f"error: {which.format(socket.gethostname())}: make it the same\n"
    assert list(tmp_path.iterdir()) == []


# What the launcher's variables say; each process of such a start would be alone


@pytest.fixture
def bare(monkeypatch):
    """An environment without a launcher's variables."""
    for name in (*launcher.PLACE_VARIABLES, launcher.WORLD_SIZE_CHECK, launcher.THREADS,
                 launcher.TASKS, "MASTER_ADDR", "ACCELERATE_USE_CPU"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_tasks_of_srun_that_nothing_joins_are_refused(bare, tmp_path, capsys):
    bare.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert train.main(launching.flags({**QUICK, "output.dir": tmp_path / "run"})) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "srun started 2 tasks" in error
    assert WORKS in error
    assert not (tmp_path / "run").exists()


def test_srun_with_one_launcher_per_node_is_fine(bare):
    bare.setenv("SLURM_STEP_NUM_TASKS", "2")
    bare.setenv("WORLD_SIZE", "8")
    bare.setenv("RANK", "5")
    assert launcher.check_launch() == launcher.Launch(rank=5, size=8, local_rank=0, local_size=1)
    bare.setenv("SLURM_STEP_NUM_TASKS", "1")
    bare.delenv("WORLD_SIZE")
    bare.delenv("RANK")
    assert launcher.check_launch().size == 1


def test_a_world_that_the_job_script_did_not_reckon_with_is_refused(bare):
    bare.setenv("WORLD_SIZE", "2")
    bare.setenv("RANK", "0")
    bare.setenv(launcher.WORLD_SIZE_CHECK, "4")
    with pytest.raises(ConfigError, match="started 2 processes, but SINLSTM_DIST_WORLD_SIZE=4"):
        launcher.check_launch()
    bare.setenv("WORLD_SIZE", "4")
    assert launcher.check_launch().size == 4


@pytest.mark.parametrize(
    "variable",
    [
        "LOCAL_WORLD_SIZE",
        "MPI_LOCALNRANKS",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ],
)
def test_processes_of_a_node_share_its_cores(bare, variable):
    bare.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert launcher.num_threads() == 12
    bare.setenv(variable, "4")
    assert launcher.num_threads() == 3
    bare.setenv("OMP_NUM_THREADS", "5")
    assert launcher.num_threads() == 5


def test_no_launcher_means_one_process(bare):
    assert launcher.check_launch().size == 1
    assert launcher.is_speaker()


@pytest.mark.parametrize(
    ("kind", "joined", "advice"),
    [
        (DistributedType.NO, 1, "torchrun --nproc-per-node 3"),  # lone copies
        (DistributedType.MULTI_CPU, 2, "torchrun --nproc-per-node 3"),
        (DistributedType.FSDP, 3, "FSDP is not supported"),
        (DistributedType.DEEPSPEED, 3, "DEEPSPEED is not supported"),
    ],
)
def test_a_world_that_is_not_what_was_meant_is_refused(kind, joined, advice):
    made = SimpleNamespace(distributed_type=kind, num_processes=joined)
    with pytest.raises(ConfigError, match=advice):
        accelerator.check_world(made, meant=3)


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_one_after_the_other_in_the_same_processes(tmp_path, processes):
    """Each joins and leaves, and nothing of the group is left: threads that outlive it can abort
    the interpreter's end, and keep connections open.
    """
    script = str(Path(__file__).with_name("train_and_look.py"))
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", str(processes)]
    ended = launching.run([*torchrun, script, "threads", json.dumps(QUICK)], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    for reduction in ("ordered", "ddp"):
        runs = [tmp_path / f"{reduction}-{number}" for number in range(2)]
        assert launching.weights_digest(runs[0]) == launching.weights_digest(runs[1])
    for rank in range(processes):
        threads = (tmp_path / f"threads-{rank}").read_text().splitlines()
        assert threads
        assert not any("gloo" in name for name in threads)
