"""What the launcher meant: number of processes, ranks and threads, from its variables.

The environment is a user's input: an empty variable counts as unset, and one that cannot be right
is an error that names it.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from sinlstm_dist import early
from sinlstm_dist.errors import ConfigError

RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
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
WORLD_SIZE_CHECK = "SINLSTM_DIST_WORLD_SIZE"  # the world size that the job script expects
TASKS = "SLURM_STEP_NUM_TASKS"
THREADS = "OMP_NUM_THREADS"
MOST_PROCESSES, MOST_THREADS, MOST_PORTS = 1_000_000, 4096, 65535
DEFAULT_PORT = 29500  # Accelerate's and torchrun's
# What accelerate launch sets when its configuration asks for another way to train
OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
DEVICE, DEVICES = "ACCELERATE_TORCH_DEVICE", ("cpu", "cuda", "mps")
# What makes libraries choose other code
ARITHMETIC_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE",
    "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "NVIDIA_TF32_OVERRIDE",
    "SINLSTM_DIST_INSTRUCTION_SET",
)  # fmt: skip
INTERFACE = "GLOO_SOCKET_IFNAME"
COMMAND = "sinlstm_dist.train"  # in advice on how to start it
# --local-addr: torchrun would have processes find each other by this machine's name, which may not
# resolve, and waits for minutes for that.
RUN = f"torchrun --nproc-per-node N --local-addr 127.0.0.1 -m {COMMAND}"


_have_met = False


@dataclass(frozen=True)
class Launch:
    """One process's place in the world that its launcher meant to start."""

    rank: int
    size: int
    local_rank: int
    local_size: int


@dataclass(frozen=True)
class Meeting:
    """Where processes find each other.

    Args:
        has_agent: whether a launcher keeps the store there, and not rank 0.
        restart: which start of the processes this is, where the store outlives them.
    """

    host: str
    port: int
    has_agent: bool
    restart: str


def rank() -> int:
    """This process's number among all, as far as its launcher's variables can be read."""
    return _first_number(RANK_VARIABLES)


def launching_parent() -> int | None:
    """The number of this process's parent, if it is a launcher that ends when its work does.

    A shell does not count: what it starts with nohup or in the background outlives it.
    """
    return early.parent() if any(map(_value, PARENT_VARIABLES)) else None


def is_speaker() -> bool:
    """Whether this process tells the user, when it cannot ask the others."""
    return rank() == 0


def is_node_speaker() -> bool:
    """Whether it tells the user what may be wrong on its node alone, such as a missing file."""
    return _first_number(LOCAL_RANK_VARIABLES) == 0


def have_met() -> bool:
    """Whether this process and the others have heard of each other."""
    return _have_met


def note_that_we_met() -> None:
    """Make `have_met` true from now on; the roll call does."""
    global _have_met
    _have_met = True


def num_threads() -> int:
    """Threads that this process may compute with: what it was told, or its part of the cores.

    Raises:
        ConfigError: OMP_NUM_THREADS is not a number of threads.
    """
    told = _value(THREADS).partition(",")[0]  # a list: one per nesting level
    if told:
        return _number(THREADS, told, least=1, most=MOST_THREADS)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // _read(LOCAL_SIZE_VARIABLES, least=1, default=1))


def check_launch() -> Launch:
    """This process's place in the world, as its launcher's variables say.

    Raises:
        ConfigError: a variable cannot be right; or several processes were asked for, but nothing
            joins them; or they are not as many as the job script expects.
    """
    launch = Launch(
        rank=_read(RANK_VARIABLES, least=0, default=0),
        size=_read(SIZE_VARIABLES, least=1, default=1),
        local_rank=_read(LOCAL_RANK_VARIABLES, least=0, default=0),
        local_size=_read(LOCAL_SIZE_VARIABLES, least=1, default=1),
    )
    num_threads()
    _check_accelerate()
    _check_joined(launch)
    expected = _read((WORLD_SIZE_CHECK,), least=1, default=launch.size)
    if expected != launch.size:
        raise ConfigError(
            f"the launcher started {launch.size} processes, but {WORLD_SIZE_CHECK}={expected}: "
            "check the launcher's number of nodes and of processes per node"
        )
    return launch


def _check_joined(launch: Launch) -> None:
    """Refuse processes that were started together, and of which each would train alone."""
    advice = f"start it as: {RUN}"
    has_size = any(map(_value, SIZE_VARIABLES))
    if _value("ACCELERATE_USE_CPU") and _value("MASTER_ADDR") and not has_size:
        # accelerate's simple launcher sets the address for num_processes > 1 and starts one
        # process all the same: https://github.com/huggingface/accelerate/issues/2741
        raise ConfigError(
            "accelerate launch was asked for several processes (it has set MASTER_ADDR) and "
            f"started a single one (it does so with --cpu, and without GPUs); {advice}, or with "
            "accelerate launch --multi_gpu --num_processes N, which starts CPU processes too"
        )
    tasks = _read((TASKS,), least=1, default=1)
    if tasks > launch.size:
        raise ConfigError(
            f"srun started {tasks} tasks ({TASKS}), but nothing joins them: each would train "
            f"alone; start one launcher per node (srun --ntasks-per-node=1), and with it torchrun "
            f"--nproc-per-node N -m {COMMAND}"
        )
    named = next((name for name in RANK_VARIABLES if _value(name)), "")
    counts_launchers = named == "SLURM_PROCID" and launch.size == 1
    if launch.rank >= launch.size and not counts_launchers:
        raise ConfigError(
            f"{named}={launch.rank} in a world of {_told_size(launch)}: unset {named}, or {advice}"
        )
    if launch.size > 1 and not named:
        raise ConfigError(f"{_told_size(launch)}, but {RANK_VARIABLES[0]} is not set: {advice}")


def _told_size(launch: Launch) -> str:
    name = next((name for name in SIZE_VARIABLES if _value(name)), "")
    return f"{name}={launch.size}" if name else f"1 process ({SIZE_VARIABLES[0]} is not set)"


def _check_accelerate() -> None:
    """Refuse what Accelerate is told to do and this program does not."""
    for name, way in OTHER_WAYS.items():
        if _value(name).lower() in ("true", "1", "yes", "on", "y", "t"):
            raise ConfigError(
                f"{name}={_value(name)} asks for {way}, which this program does not do: unset it, "
                "or set distributed_type to MULTI_GPU or NO in the configuration file of "
                "accelerate launch (--config_file, or the one that accelerate config wrote)"
            )
    device = _value(DEVICE)
    if device and device.partition(":")[0] not in DEVICES:
        raise ConfigError(f"{DEVICE}={device} is not a device for training: use cpu or cuda:N")


def meeting() -> Meeting:
    """Where the processes of this launch find each other.

    Raises:
        ConfigError: the launcher did not say, or said what is no address or port.
    """
    host = _value("MASTER_ADDR")
    if not host:
        raise ConfigError("MASTER_ADDR is not set: several processes need rank 0's address there")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(f"MASTER_ADDR={host} is not a host name or an address") from error
    interfaces = {name for _, name in socket.if_nameindex()}
    if missing := set(filter(None, _value(INTERFACE).split(","))) - interfaces:
        raise ConfigError(
            f"{INTERFACE}={_value(INTERFACE)}: there is no network interface {min(missing)} on "
            f"this machine, only {', '.join(sorted(interfaces))}"
        )
    port = _value("MASTER_PORT")
    has_agent = _value("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Meeting(
        host,
        _number("MASTER_PORT", port, least=1, most=MOST_PORTS) if port else DEFAULT_PORT,
        has_agent,
        # torchrun's restart counter is per agent; it is only needed when the agent's store
        # survives a restart, to separate old keys from new.
        (_value("TORCHELASTIC_RESTART_COUNT") or "0") if has_agent else "0",
    )


def arithmetic_variables() -> dict[str, str]:
    """Those variables that are set and may change the last bits of a result."""
    return {name: _value(name) for name in ARITHMETIC_VARIABLES if _value(name)}


def _value(name: str) -> str:
    return os.environ.get(name, "").strip()


def _read(names: Sequence[str], *, least: int, default: int) -> int:
    """The first of the variables that is set, as a number.

    Raises:
        ConfigError: it is not such a number.
    """
    told = next((name for name in names if _value(name)), "")
    return _number(told, _value(told), least=least, most=MOST_PROCESSES) if told else default


def _number(name: str, value: str, *, least: int, most: int) -> int:
    if value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most:
        return int(value)
    raise ConfigError(
        f"{name}={value} must be a number from {least} to {most}: set it right or unset it"
    )


def _first_number(names: Sequence[str]) -> int:
    """The first variable that can be read, or 0: errors are printed even if they are wrong."""
    values = (_value(name) for name in names)
    return next((int(v) for v in values if v.isascii() and v.isdigit() and len(v) < 10), 0)
