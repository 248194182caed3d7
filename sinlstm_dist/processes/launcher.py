"""Read the launcher's variables: how many processes there are, and which one this is.

The environment is user input: an empty variable counts as unset, and an impossible value is an
error that names the variable.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from sinlstm_dist import early
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes.quota import cpu_quota
from sinlstm_dist.status import RANK_VARIABLES
from sinlstm_dist.words import counted

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
PLACE_VARIABLES = {
    *RANK_VARIABLES, *SIZE_VARIABLES, *LOCAL_RANK_VARIABLES, *LOCAL_SIZE_VARIABLES,
}  # fmt: skip
# Set by launchers that start each process themselves: torchrun, accelerate launch, and MPI's.
PARENT_VARIABLES = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
WORLD_SIZE_CHECK = "SINLSTM_DIST_WORLD_SIZE"  # the world size that the job script expects
TASKS = "SLURM_STEP_NUM_TASKS"
THREADS = "OMP_NUM_THREADS"
MOST_PROCESSES, MOST_THREADS, MOST_PORTS = 1_000_000, 4096, 65535
DEFAULT_PORT = 29500  # as in torchrun and Accelerate
# Libraries read these, and then choose other code
ARITHMETIC_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE",
    "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "NVIDIA_TF32_OVERRIDE",
    "SINLSTM_DIST_INSTRUCTION_SET",
)  # fmt: skip
INTERFACE = "GLOO_SOCKET_IFNAME"
COMMAND = "sinlstm_dist.train"  # in advice on how to start it

_have_met = False


@dataclass(frozen=True)
class Launch:
    """The place of one process among all that the launcher started."""

    rank: int
    size: int
    local_rank: int
    local_size: int


@dataclass(frozen=True)
class Meeting:
    """The address at which the processes find each other.

    Args:
        has_agent: whether the launcher keeps the store there; otherwise rank 0 does.
        restart: how often the launcher has restarted the processes, if its store outlives them.
    """

    host: str
    port: int
    has_agent: bool
    restart: str


def rank() -> int:
    """This process's rank, or 0 if the launcher's variables cannot be read."""
    return _first_number(RANK_VARIABLES)


def launching_parent() -> int | None:
    """The id of this process's parent if that is a launcher, which ends when its work does.

    A shell does not count: a process that it starts in the background may outlive it.
    """
    return early.parent() if any(map(value, PARENT_VARIABLES)) else None


def is_speaker() -> bool:
    """Whether this process prints what concerns all of them."""
    return rank() == 0


def is_node_speaker() -> bool:
    """Whether this process prints what may concern its node alone, such as a missing file."""
    return _first_number(LOCAL_RANK_VARIABLES) == 0


def speaks_for_rank_0() -> bool:
    """Whether this process prints what rank 0 cannot."""
    return is_node_speaker() or rank() == 1


def have_met() -> bool:
    """Whether this process and the others have heard of each other."""
    return _have_met


def note_that_we_met() -> None:
    """Make `have_met` true from now on; the roll call does."""
    global _have_met
    _have_met = True


def num_threads() -> int:
    """How many threads this process may use: OMP_NUM_THREADS, or its share of the cores.

    Raises:
        ConfigError: OMP_NUM_THREADS is not a number of threads.
    """
    told = value(THREADS).partition(",")[0]  # may be a list, one entry per nesting level
    if told:
        return _number(THREADS, told, least=1, most=MOST_THREADS)
    return max(1, num_cores() // _read(LOCAL_SIZE_VARIABLES, least=1, default=1))


def num_cores() -> int:
    """How many cores this process may use; in a container with a quota, only whole ones of it."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    there = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, int(min(there, cpu_quota())))


def check_launch() -> Launch:
    """Read this process's place in the world, and check that the processes can find each other.

    Raises:
        ConfigError: a variable has an impossible value; or several processes were started, but
            nothing joins them; or their number is not the one that the job script expects.
    """
    launch = Launch(
        rank=_read(RANK_VARIABLES, least=0, default=0),
        size=_read(SIZE_VARIABLES, least=1, default=1),
        local_rank=_read(LOCAL_RANK_VARIABLES, least=0, default=0),
        local_size=_read(LOCAL_SIZE_VARIABLES, least=1, default=1),
    )
    num_threads()
    _check_joined(launch)
    expected = _read((WORLD_SIZE_CHECK,), least=1, default=launch.size)
    if expected != launch.size:
        raise ConfigError(
            f"the launcher started {counted(launch.size, 'process')}, but "
            f"{WORLD_SIZE_CHECK}={expected}: check the launcher's number of nodes and of "
            "processes per node"
        )
    return launch


def _check_joined(launch: Launch) -> None:
    """Refuse processes that were started together, but would each train alone."""
    advice = f"start it as: {torchrun()}"
    has_size = any(map(value, SIZE_VARIABLES))
    if value("ACCELERATE_USE_CPU") and value("MASTER_ADDR") and not has_size:
        # For num_processes > 1, accelerate's simple launcher sets the address, but still starts one
        # process: https://github.com/huggingface/accelerate/issues/2741
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
    named = next(filter(value, RANK_VARIABLES), "")
    counts_launchers = named == "SLURM_PROCID" and launch.size == 1
    if launch.rank >= launch.size and not counts_launchers:
        raise ConfigError(
            f"{named}={launch.rank} in a world of {_told_size(launch)}: unset {named}, or {advice}"
        )
    if launch.size > 1 and not named:
        raise ConfigError(f"{_told_size(launch)}, but {RANK_VARIABLES[0]} is not set: {advice}")


def _told_size(launch: Launch) -> str:
    name = next(filter(value, SIZE_VARIABLES), "")
    return f"{name}={launch.size}" if name else f"1 process ({SIZE_VARIABLES[0]} is not set)"


def meeting() -> Meeting:
    """Read the address at which the processes of this launch find each other.

    Raises:
        ConfigError: it is not set, or is not an address and a port.
    """
    host = value("MASTER_ADDR")
    if not host:
        raise ConfigError("MASTER_ADDR is not set: several processes need rank 0's address there")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(f"MASTER_ADDR={host} is not a host name or an address") from error
    interfaces = {name for _, name in socket.if_nameindex()}
    if missing := set(filter(None, value(INTERFACE).split(","))) - interfaces:
        raise ConfigError(
            f"{INTERFACE}={value(INTERFACE)}: there is no network interface {min(missing)} on "
            f"this machine, only {', '.join(sorted(interfaces))}"
        )
    port = value("MASTER_PORT")
    has_agent = value("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Meeting(
        host,
        _number("MASTER_PORT", port, least=1, most=MOST_PORTS) if port else DEFAULT_PORT,
        has_agent,
        # torchrun's restart counter is per agent; it is only needed when the agent's store
        # survives a restart, to separate old keys from new.
        (value("TORCHELASTIC_RESTART_COUNT") or "0") if has_agent else "0",
    )


def torchrun(number: object = "N", module: str = COMMAND) -> str:
    """The command that starts this many processes on one machine, for advice."""
    # Without --local-addr, torchrun's processes meet at this machine's name. Where that name does
    # not resolve, they wait for minutes.
    return f"torchrun --nproc-per-node {number} --local-addr 127.0.0.1 -m {module}"


def arithmetic_variables() -> dict[str, str]:
    """The variables that are set and may change the last bits of a result."""
    return {name: value(name) for name in ARITHMETIC_VARIABLES if value(name)}


def value(name: str) -> str:
    """A variable of the environment, or "" if it is unset or blank."""
    return os.environ.get(name, "").strip()


def _read(names: Sequence[str], *, least: int, default: int) -> int:
    """The first of these variables that is set, as a number.

    Raises:
        ConfigError: it is not a number from `least` on.
    """
    told = next(filter(value, names), "")
    return _number(told, value(told), least=least, most=MOST_PROCESSES) if told else default


def _number(name: str, text: str, *, least: int, most: int) -> int:
    if _is_number(text) and least <= int(text) <= most:
        return int(text)
    raise ConfigError(
        f"{name}={text} must be a number from {least} to {most}: set it right or unset it"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _first_number(names: Sequence[str]) -> int:
    """The first of these variables that is a number, or 0: this must work with wrong ones too."""
    return next((int(text) for text in map(value, names) if _is_number(text)), 0)
