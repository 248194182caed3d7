"""Make Accelerate's `Accelerator`: set up for exact work, checked, and undone at the end."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    parse_flag_from_env,
)
from torch.distributed import Store  # type: ignore[attr-defined]  # mypy does not see it

from sinlstm_dist import randomness
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.allocation import HAS_LARGE_PAGES, LARGE_PAGES, keep_freed_memory
from sinlstm_dist.processes.answers import is_lost
from sinlstm_dist.processes.launcher import Launch
from sinlstm_dist.words import counted

# accelerate launch sets these if its configuration asks for another way to train.
OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# With these, cuBLAS gives the same bits each time. The pages have different ones:
# https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
# https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
EXACT_CUBLAS = (":4096:8", ":16:8", ":4096:2")
# Otherwise a thread of torch's ends this process when NCCL fails, before `waiting` can say who is
# lost. https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html
NCCL_ERRORS, NOT_HANDLED = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"
NCCL_LATER_S = 15.0  # torch's own timeout comes so much later than that of `waiting`
LEAVE_S = 10.0  # for which leaving NCCL may take after a failure
# Otherwise Accelerate gives DDP the GPU of number LOCAL_RANK, which may be hidden from this one.
# https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/accelerator.py#L1891
HIDDEN_GPUS = "ACCELERATE_BYPASS_DEVICE_MAP"
DEVICE, DEVICES = "ACCELERATE_TORCH_DEVICE", ("cpu", "cuda", "mps")


def check_variables() -> None:
    """Refuse what Accelerate's variables ask for, if this program cannot do it.

    Raises:
        ConfigError: names the variable.
    """
    for name, way in OTHER_WAYS.items():
        if launcher.value(name).lower() in ("true", "1", "yes", "on", "y", "t"):
            raise ConfigError(
                f"{name}={launcher.value(name)} asks for {way}, which this program does not do: "
                "unset it, or set distributed_type to MULTI_GPU or NO in the configuration file of "
                "accelerate launch (--config_file, or the one that accelerate config wrote)"
            )
    device = launcher.value(DEVICE)
    if device and device.partition(":")[0] not in DEVICES:
        raise ConfigError(f"{DEVICE}={device} is not a device for training: use cpu or cuda:N")
    if not _is_on_cpu():
        check_cublas(launcher.value(CUBLAS))


def check_cublas(told: str) -> None:
    """Refuse a setting of cuBLAS with which it may give other bits each time.

    Args:
        told: the variable's value; "" if it is unset.

    Raises:
        ConfigError: names the values that may be used.
    """
    if told and told not in EXACT_CUBLAS:
        raise ConfigError(
            f"{CUBLAS}={told} lets cuBLAS give other bits each time: unset it, or use "
            f"{', '.join(EXACT_CUBLAS[:-1])} or {EXACT_CUBLAS[-1]}"
        )


def gpu_of(launch: Launch) -> str:
    """The UUID of the GPU that Accelerate will give this process; "" if it computes on the CPU."""
    if _is_on_cpu():
        return ""
    # As Accelerate's PartialState.set_device chooses it
    try:
        told = torch.device(launcher.value(DEVICE) or f"cuda:{launch.local_rank % _num_gpus()}")
    except RuntimeError:  # Accelerate will refuse it
        return ""
    number = told.index or 0
    if told.type != "cuda" or number >= _num_gpus():
        return ""
    return str(torch.cuda.get_device_properties(number).uuid)


def _is_on_cpu() -> bool:
    return not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def _num_gpus() -> int:
    return torch.cuda.device_count()


@contextlib.contextmanager
def joined_accelerator(
    launch: Launch, *, timeout_s: float, one_thread: bool, store: Store | None
) -> Iterator[Accelerator]:
    """Join the process group and make this process's Accelerator; undo both at the end.

    Args:
        launch: this process's place in the world.
        timeout_s: seconds that a process waits for the others.
        one_thread: whether torch computes with a single thread.
        store: where the processes of this world find each other; None for a world of one.

    Raises:
        ConfigError: Accelerate cannot do what its variables ask for, or made another world than
            the launcher meant.

    Collective: yes.
    """
    keep_freed_memory()  # for this process, also afterwards
    threads, has_failed = torch.get_num_threads(), True
    # numpy would warn of overflow and NaN; the run reports them itself. Once, as it takes 4 us.
    with checked_environment(launch), np.errstate(over="ignore", invalid="ignore"):
        try:
            accelerator = _new_accelerator(launch, timeout_s=timeout_s, store=store)
            check_world(accelerator, meant=launch.size)
            if one_thread:
                torch.set_num_threads(1)  # after Accelerate has set it from the number of cores
            with randomness.kept(accelerator.device):
                yield accelerator
            has_failed = False
        finally:
            _leave_group(has_failed=has_failed)
            # Without this, the program's next Accelerator has our state. There is no public call;
            # Accelerate's own tests do the same: https://github.com/huggingface/accelerate/pull/1055
            # Test: test_the_program_can_make_an_accelerator_of_its_own_afterwards
            AcceleratorState._reset_state(reset_partial_state=True)
            torch.set_num_threads(threads)


def _leave_group(*, has_failed: bool) -> None:
    if not torch.distributed.is_initialized():
        return
    if has_failed and torch.distributed.get_backend() == "nccl":
        # destroy_process_group waits for collectives, and those of a lost process never end.
        # In a thread: the run's end must be told even if NCCL does not come back.
        abort = torch.distributed.distributed_c10d._abort_process_group
        thread = threading.Thread(target=abort, daemon=True)
        thread.start()
        thread.join(LEAVE_S)
    else:
        torch.distributed.destroy_process_group()


def _new_accelerator(launch: Launch, *, timeout_s: float, store: Store | None) -> Accelerator:
    try:
        cpu = _is_on_cpu()
        if not cpu:
            _make_cuda_deterministic()
        if store is not None:
            torch.distributed.init_process_group(
                "gloo" if cpu else "nccl",
                timeout=timedelta(seconds=timeout_s if cpu else timeout_s + NCCL_LATER_S),
                store=store,
                rank=launch.rank,
                world_size=launch.size,
            )
        accelerator = Accelerator(  # uses the process group that is there
            cpu=cpu,  # without it, torchrun on a machine without GPUs trains N lone copies
            mixed_precision="no",  # float32 throughout, whatever an environment variable says
            dynamo_backend="no",  # a compiled model has other bits
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dataloader_config=DataLoaderConfiguration(even_batches=False),  # no sample twice
            rng_types=[],  # the sample order is a function of the epoch: no generator to share
        )
        torch.empty(0, device=accelerator.device)  # a variable may name a device that is not there
        return accelerator
    except Exception as error:
        told = _told_to_accelerate()
        what = str(error).partition("\n")[0]
        if is_lost(error) or not (told or "environment variable" in what):  # torch's own words
            raise
        by = f", told {told}" if told else ""
        raise ConfigError(f"Accelerate cannot start{by}: {type(error).__name__}: {what}") from error


@contextlib.contextmanager
def checked_environment(launch: Launch) -> Iterator[None]:
    """Give the variables that torch and Accelerate read themselves the values that were checked."""
    checked: dict[str, str | None] = {
        name: None
        for name, value in os.environ.items()
        if name in launcher.PLACE_VARIABLES or (_is_for_accelerate(name) and not value.strip())
    }
    if HAS_LARGE_PAGES:
        checked[LARGE_PAGES] = launcher.value(LARGE_PAGES) or "1"
    if launch.size > 1:
        where = launcher.meeting()
        checked |= {
            "RANK": str(launch.rank),
            "WORLD_SIZE": str(launch.size),
            "LOCAL_RANK": str(launch.local_rank),
            "LOCAL_WORLD_SIZE": str(launch.local_size),
            "MASTER_ADDR": where.host,
            "MASTER_PORT": str(where.port),
            NCCL_ERRORS: NOT_HANDLED,
            HIDDEN_GPUS: "true",
        }
    if launcher.THREADS in os.environ:  # it may be empty, or a list
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
    names = filter(_is_for_accelerate, sorted(os.environ.keys() - {HIDDEN_GPUS}))
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def _is_for_accelerate(name: str) -> bool:
    return name.startswith("ACCELERATE_") or name == "FORK_LAUNCHED"


def check_world(accelerator: Accelerator, *, meant: int) -> None:
    """Refuse a world that is not the one that the launcher meant.

    Args:
        meant: the launcher's number of processes.

    Raises:
        ConfigError: names a command that works.
    """
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ConfigError(
            f"{accelerator.distributed_type.value} is not supported: use MULTI_GPU or MULTI_CPU in "
            f"accelerate's configuration, or {launcher.torchrun()}"
        )
    if accelerator.num_processes != meant:
        raise ConfigError(
            f"the launcher meant {counted(meant, 'process')}, but {accelerator.num_processes} "
            f"joined; start it as: {launcher.torchrun(meant)}"
        )


def _make_cuda_deterministic() -> None:
    """Make CUDA compute the same bits each time: no TF32, no atomic sums, no autotuning."""
    if not launcher.value(CUBLAS):
        os.environ[CUBLAS] = EXACT_CUBLAS[0]  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
