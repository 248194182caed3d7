"""Accelerate's own view of the processes: made for exact work, and checked."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    parse_flag_from_env,
)
from torch.distributed import Store  # type: ignore[attr-defined]

from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.launcher import Launch
from sinlstm_dist.processes.roll_call import is_lost


@contextlib.contextmanager
def joined_accelerator(
    launch: Launch, *, timeout_s: float, store: Store | None
) -> Iterator[Accelerator]:
    """The Accelerator of this process, in one group with all others; both are undone at the end.

    Args:
        launch: this process's place in the world.
        timeout_s: seconds that a process waits for the others.
        store: in which processes of this world alone find each other; None for one process.

    Raises:
        ConfigError: Accelerate cannot do what its variables ask for, or made another world than
            the launcher meant.

    Collective: yes.
    """
    with as_checked(launch):
        try:
            accelerator = _new_accelerator(launch, timeout_s=timeout_s, store=store)
            check_world(accelerator, meant=launch.size)
            yield accelerator
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


def _new_accelerator(launch: Launch, *, timeout_s: float, store: Store | None) -> Accelerator:
    try:
        cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        if not cpu:
            _make_cuda_deterministic()
        if store is not None:  # Accelerate takes the group that is there
            torch.distributed.init_process_group(
                "gloo" if cpu else "nccl",
                timeout=timedelta(seconds=timeout_s),
                store=store,
                rank=launch.rank,
                world_size=launch.size,
            )
        accelerator = Accelerator(
            cpu=cpu,  # without it, torchrun on a machine without GPUs trains N lone copies
            mixed_precision="no",  # and not what an environment variable says: float32 throughout,
            dynamo_backend="no",  # and the model itself, not a compiled one with other bits
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dataloader_config=DataLoaderConfiguration(even_batches=False),  # no sample twice
            rng_types=[],  # sample order needs no shared generator: it is a function of the epoch
        )
        torch.empty(0, device=accelerator.device)  # one that a variable names may not be there
        return accelerator
    except Exception as error:
        told = _told_to_accelerate()
        what = str(error).partition("\n")[0]
        if is_lost(error) or not (told or "environment variable" in what):  # as torch says it
            raise
        by = f", told {told}" if told else ""
        raise ConfigError(f"Accelerate cannot start{by}: {type(error).__name__}: {what}") from error


@contextlib.contextmanager
def as_checked(launch: Launch) -> Iterator[None]:
    """Set the variables that torch and Accelerate read themselves to what was checked."""
    known = {
        *launcher.RANK_VARIABLES, *launcher.SIZE_VARIABLES,
        *launcher.LOCAL_RANK_VARIABLES, *launcher.LOCAL_SIZE_VARIABLES,
    }  # fmt: skip
    checked: dict[str, str | None] = {
        name: None
        for name, value in os.environ.items()
        if name in known or (_is_for_accelerate(name) and not value.strip())
    }
    if launch.size > 1:
        where = launcher.meeting()
        checked |= {
            "RANK": str(launch.rank),
            "WORLD_SIZE": str(launch.size),
            "LOCAL_RANK": str(launch.local_rank),
            "LOCAL_WORLD_SIZE": str(launch.local_size),
            "MASTER_ADDR": where.host,
            "MASTER_PORT": str(where.port),
        }
    if launcher.THREADS in os.environ:  # may be empty, or a list
        checked[launcher.THREADS] = str(launcher.num_threads())
    before = {name: os.environ.get(name) for name in checked}
    _set(checked)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _told_to_accelerate() -> str:
    """The variables by which a user or `accelerate launch` directs Accelerate, as text."""
    names = filter(_is_for_accelerate, sorted(os.environ))
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def _is_for_accelerate(name: str) -> bool:
    return name.startswith("ACCELERATE_") or name == "FORK_LAUNCHED"


def check_world(accelerator: Accelerator, *, meant: int) -> None:
    """Refuse a world that Accelerate made otherwise than the launcher meant.

    Raises:
        ConfigError: says which command does.
    """
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ConfigError(
            f"{accelerator.distributed_type.value} is not supported: use MULTI_GPU or MULTI_CPU in "
            f"accelerate's configuration, or {launcher.RUN}"
        )
    if accelerator.num_processes != meant:
        raise ConfigError(
            f"the launcher meant {meant} processes, but {accelerator.num_processes} joined; start "
            f"it as: {launcher.RUN.replace('N', str(meant), 1)}"
        )


def _make_cuda_deterministic() -> None:
    """Same bits from the same work on one kind of GPU: no TF32, no atomics, no autotuning."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
