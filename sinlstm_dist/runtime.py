"""The processes of a run: joined, checked against what the launcher meant, and left cleanly.

Everything that processes say to each other goes through a `World`, which is Accelerate's
`Accelerator` and the few collectives that the run needs.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast,
)

from sinlstm_dist.config import ConfigError

RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ROLL_CALL_S = 2.0  # how long survivors wait for each other before they name who is missing
COMMAND = "sinlstm_dist.train"  # in advice on how to start it
NAME_BYTES = 64  # of a host name, as exchanged at the start


class RunError(Exception):
    """The run cannot go on, for a reason that all processes know; exit code 1, no traceback."""


class LostProcess(Exception):
    """A collective failed because another process died, hangs or cannot be reached.

    Args:
        message: names the missing ranks and hosts.
        is_speaker: whether this is the survivor that tells the user.
    """

    def __init__(self, message: str, *, is_speaker: bool) -> None:
        super().__init__(message)
        self.is_speaker = is_speaker


def is_speaker() -> bool:
    """Whether this process tells the user, as far as its launcher's variables say."""
    return _environment_int(RANK_VARIABLES, default=0) == 0


def _environment_int(names: Sequence[str], *, default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def _num_threads() -> int:
    """Threads that this process may compute with: what it was told, or its part of the cores."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    local_world_size = _environment_int(("LOCAL_WORLD_SIZE",), default=1)
    return _environment_int(("OMP_NUM_THREADS",), default=max(1, cores // local_world_size))


def check_launch() -> int:
    """The number of processes that the launcher means to have started.

    Raises:
        ConfigError: several processes were asked for, but nothing joins them.
    """
    meant = _environment_int(SIZE_VARIABLES, default=1)
    advice = f"start it as: torchrun --nproc-per-node N -m {COMMAND}"
    has_size = any(name in os.environ for name in SIZE_VARIABLES)
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and not has_size:
        # accelerate's simple launcher sets the address for num_processes > 1 and starts one
        # process all the same: https://github.com/huggingface/accelerate/issues/2741
        raise ConfigError(
            "accelerate launch was asked for several processes and started a single one "
            f"(it does so with --cpu, and without GPUs); {advice}"
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > meant:
        raise ConfigError(
            f"srun started {tasks} tasks, but nothing joins them: each would train alone; start "
            f"one launcher a node (srun --ntasks-per-node=1), and with it {advice[13:]}"
        )
    return meant


class World:
    """All processes of a run, seen from one of them.

    Methods marked `Collective:` must be called by every process.
    """

    def __init__(self, accelerator: Accelerator, *, timeout_s: float) -> None:
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device
        self.num_threads = _num_threads()
        self._timeout_s = timeout_s
        self._store = _connect_store(timeout_s) if self.size > 1 else None
        self.hosts = self._exchange_hosts()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """All processes' rows, in order of rank.

        Args:
            rows: (N, ...), of the same shape on every process.

        Returns:
            (world_size * N, ...).

        Collective: yes; none is needed, and none done, in a world of one.
        """
        return self.accelerator.gather(rows)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum of all processes' values, in an order of the backend's choice.

        Collective: yes.
        """
        return self.accelerator.reduce(values, reduction="sum")

    def on_main(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call `function` on the main process only; every process gets what it returns.

        An error there becomes the same error everywhere, so that none waits for the others.

        Returns:
            the function's result, which must be what JSON can say.

        Raises:
            ConfigError: the function's.
            RunError: in place of the function's OSError.

        Collective: yes.
        """
        answer: dict[str, Any] = {}
        if self.is_main:
            try:
                answer["result"] = function(*arguments, **keywords)
            except ConfigError as error:
                answer["config_error"] = str(error)
            except OSError as error:
                answer["run_error"] = f"{error.filename}: {error.strerror}"
        answer = self._broadcast_json(answer)
        if "config_error" in answer:
            raise ConfigError(answer["config_error"])
        if "run_error" in answer:
            raise RunError(answer["run_error"])
        return answer["result"]

    def broadcast_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's float32 tensors, on every process's CPU.

        Collective: yes.
        """
        if self.size == 1:
            return tensors
        shapes = self._broadcast_json({name: list(value.shape) for name, value in tensors.items()})
        received = {}
        for name, shape in shapes.items():
            value = tensors[name] if self.is_main else torch.empty(shape)
            received[name] = broadcast(value.to(self.device, copy=True).contiguous()).cpu()
        return received

    def check_same(self, **facts: str) -> None:
        """Refuse a world whose processes do not agree on `facts`.

        Raises:
            ConfigError: names the first fact that differs, and the ranks that differ from rank 0.

        Collective: yes.
        """
        for name, fact in facts.items():
            digest = hashlib.sha256(fact.encode()).digest()
            mine = torch.tensor(list(digest), dtype=torch.uint8, device=self.device)[None]
            everyones = self.gather(mine)
            differing = [r for r, row in enumerate(everyones) if not torch.equal(row, everyones[0])]
            if differing:
                where = ", ".join(f"{rank} on {self.hosts[rank]}" for rank in differing)
                raise ConfigError(f"{name} differs from rank 0's on rank {where}: make it the same")

    def _broadcast_json(self, value: Any) -> Any:
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = broadcast(torch.tensor([len(text)], device=self.device))
        payload = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            payload.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return json.loads(bytes(broadcast(payload).cpu().numpy()))

    def _exchange_hosts(self) -> list[str]:
        """The host name of every rank; the first collective of a run.

        Collective: yes.
        """
        name = socket.gethostname().encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
        mine = torch.tensor(list(name), dtype=torch.uint8, device=self.device)[None]
        return [bytes(row).rstrip(b"\0").decode() for row in self.gather(mine).cpu().numpy()]

    def roll_call(self, error: BaseException) -> LostProcess:
        """Find out, after `error`, who is missing. Uses the key-value store, not a collective.

        Every survivor signs in, waits a moment for the others, and names those that did not.
        """
        assert self._store is not None
        own = "" if _is_collective_failure(error) else f"{type(error).__name__}: {error}"
        try:
            self._store.set(f"roll_call/{self.rank}", own or "waited")
            deadline = time.monotonic() + ROLL_CALL_S
            present: set[int] = set()
            while len(present) < self.size and time.monotonic() < deadline:
                time.sleep(0.05)
                present = {r for r in range(self.size) if self._store.check([f"roll_call/{r}"])}
            answers = {r: self._store.get(f"roll_call/{r}").decode() for r in present}
        except RuntimeError:  # the store is gone, and with it the process that kept it
            return LostProcess(
                f"the connection to rank 0 on {self.hosts[0]} was lost", is_speaker=self.rank == 1
            )
        return _describe_roll_call(answers, hosts=self.hosts, rank=self.rank, error=error)


def _is_collective_failure(error: BaseException) -> bool:
    """Whether torch's process group gave up, as far as its exceptions can tell."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )


def _describe_roll_call(
    answers: dict[int, str], *, hosts: list[str], rank: int, error: BaseException
) -> LostProcess:
    waited = sorted(r for r, answer in answers.items() if answer == "waited")
    failed = {r: answer for r, answer in answers.items() if answer != "waited"}
    missing = [r for r in range(len(hosts)) if r not in answers]
    parts = [f"rank {r} on {hosts[r]} failed: {answer}" for r, answer in failed.items()]
    parts += [f"rank {r} on {hosts[r]} died, hangs or cannot be reached" for r in missing]
    message = "; ".join(parts) or f"the processes lost each other: {error}"
    return LostProcess(message, is_speaker=not failed and rank == waited[0])


def _connect_store(timeout_s: float) -> torch.distributed.TCPStore:
    """A connection of our own to the store through which the processes found each other."""
    return torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


@contextlib.contextmanager
def join_world(*, timeout_s: float, one_thread: bool) -> Iterator[World]:
    """Join the processes that the launcher started, and leave them cleanly at the end.

    Args:
        timeout_s: seconds that a collective waits for the other processes.
        one_thread: whether torch computes with a single thread, as bit-identical results need.

    Raises:
        ConfigError: the world is not what the launcher meant.
        LostProcess: another process died or hangs.
    """
    meant = check_launch()
    threads = torch.get_num_threads()
    if one_thread:
        torch.set_num_threads(1)  # before any tensor work: the number of threads changes bits
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        _make_cuda_deterministic()
    accelerator = Accelerator(
        cpu=not has_gpu,  # without it, torchrun on a machine without GPUs trains N lone copies
        mixed_precision="no",  # and not what an environment variable says: float32 throughout
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dataloader_config=DataLoaderConfiguration(even_batches=False),  # no sample twice
        rng_types=[],  # sample order needs no shared generator: it is a function of the epoch
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s))],
    )
    if one_thread:
        torch.set_num_threads(1)  # Accelerate sets it from the number of cores
    world = None
    try:
        _check_world(accelerator, meant=meant)
        world = World(accelerator, timeout_s=timeout_s)
        yield world
        accelerator.wait_for_everyone()  # leaving a group that others still use aborts them
    except Exception as error:
        if world is None or world.size == 1 or isinstance(error, (ConfigError, RunError)):
            raise
        raise world.roll_call(error) from error
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)


def _check_world(accelerator: Accelerator, *, meant: int) -> None:
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ConfigError(
            f"{accelerator.distributed_type.value} is not supported: use MULTI_GPU or MULTI_CPU in "
            f"accelerate's configuration, or torchrun --nproc-per-node N -m {COMMAND}"
        )
    if accelerator.num_processes != meant:
        raise ConfigError(
            f"the launcher meant {meant} processes, but {accelerator.num_processes} joined; start "
            f"it as: torchrun --nproc-per-node {meant} -m {COMMAND}"
        )


def _make_cuda_deterministic() -> None:
    """Same bits from the same work on one kind of GPU: no TF32, no atomics, no autotuning."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class StopRequest:
    """Whether a signal asked this process to save and stop.

    A second interrupt leaves at once. A terminal's Ctrl-C reaches a worker twice, directly and
    from its launcher, within milliseconds; so only one a moment later counts as the second.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    SECOND_INTERRUPT_S = 0.5

    def __init__(self) -> None:
        self.reason = ""
        self._interrupted_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
            self._previous = {
                number: signal.signal(number, self._handle) for number in self.SIGNALS
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at and now - self._interrupted_at > self.SECOND_INTERRUPT_S:
                os._exit(128 + signal.SIGINT)
            self._interrupted_at = self._interrupted_at or now
        self.reason = self.reason or signal.Signals(number).name
