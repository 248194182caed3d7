"""What the launcher meant: number of processes, ranks and threads, from its variables."""

import os
from collections.abc import Sequence

from sinlstm_dist.config import ConfigError

RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK_VARIABLES = (
    "LOCAL_RANK",
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
)
LOCAL_SIZE_VARIABLES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
# Of launchers that start each process themselves: torchrun (also by accelerate launch), MPI's.
PARENT_VARIABLES = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
WORLD_SIZE_CHECK = "SINLSTM_DIST_WORLD_SIZE"  # a job script's own reckoning of the world
COMMAND = "sinlstm_dist.train"  # in advice on how to start it


def rank() -> int:
    """This process's number among all, as far as its launcher's variables say."""
    return _environment_int((*RANK_VARIABLES, "SLURM_PROCID"), default=0)


def launching_parent() -> int | None:
    """The number of this process's parent, if it is a launcher that ends when its work does.

    A shell, for one, may be left by what it started: with nohup, or in the background.
    """
    return os.getppid() if any(name in os.environ for name in PARENT_VARIABLES) else None


def is_speaker() -> bool:
    """Whether this process tells the user, when it cannot ask the others."""
    return rank() == 0


def is_node_speaker() -> bool:
    """Whether it tells the user what may be wrong on its node alone, such as a missing file."""
    return _environment_int(LOCAL_RANK_VARIABLES, default=0) == 0


def _environment_int(names: Sequence[str], *, default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def num_threads() -> int:
    """Threads that this process may compute with: what it was told, or its part of the cores."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    local_world_size = _environment_int(LOCAL_SIZE_VARIABLES, default=1)
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list: one a nesting level
    return int(told) if told.isdigit() and int(told) else max(1, cores // local_world_size)


def check_launch() -> int:
    """The number of processes that the launcher means to have started.

    Raises:
        ConfigError: several processes were asked for, but nothing joins them; or they are not as
            many as the job script reckoned.
    """
    meant = _environment_int(SIZE_VARIABLES, default=1)
    advice = f"start it as: torchrun --nproc-per-node N -m {COMMAND}"
    has_size = any(name in os.environ for name in SIZE_VARIABLES)
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and not has_size:
        # accelerate's simple launcher sets the address for num_processes > 1 and starts one
        # process all the same: https://github.com/huggingface/accelerate/issues/2741
        raise ConfigError(
            "accelerate launch was asked for several processes and started a single one "
            f"(it does so with --cpu, and without GPUs); {advice}, or with accelerate launch "
            "--multi_gpu --num_processes N, which starts CPU processes too"
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > meant:
        raise ConfigError(
            f"srun started {tasks} tasks, but nothing joins them: each would train alone; start "
            f"one launcher a node (srun --ntasks-per-node=1), and with it {advice[13:]}"
        )
    reckoned = _environment_int((WORLD_SIZE_CHECK,), default=meant)
    if reckoned != meant:
        raise ConfigError(
            f"the launcher started {meant} processes, but {WORLD_SIZE_CHECK}={reckoned}: check the "
            "launcher's number of nodes and of processes a node"
        )
    return meant
