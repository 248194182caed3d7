"""Many real training processes, quickly: forked from one parent that has already imported torch.

A start-up with torch takes seconds; a kill matrix needs hundreds of starts. The parent (this file
run as a program) imports the package, starts no thread and joins no process group, and forks one
child a process of each world. A child is as a launcher would have started it: RANK, WORLD_SIZE,
MASTER_ADDR and so on in its environment, its own output files, then `main(arguments)` of a command.

A child can carry a fault, counted from its start:

    {"rank": 0, "at": 7, "of": "file", "do": "kill"}

`of` is "file" (operations on files below the folder `below`; with `reads`, those that only look
too) or what `_count_calls` knows; the fault strikes before the one with number `at`. `do` is
"kill", "tear" (kill, with half of what was not synced yet on disk), "error NAME" (the operation
fails so once), "limit BYTES" (no file may be larger), "signal NUMBER ...", "hang", "raise",
"refuse" (a ConfigError), "stop_file", "count" (nothing), "sleep SECONDS", "block" (in C, see
`late_ends`), or, of "step", "flip" (a bit of the model's weights) or "spoil" (all gradients of
pieces that are computed from then on).
"""

import contextlib
import errno
import gc
import itertools
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import late_ends
from launching import HANGS_S, environment, free_port

CLOSED_PIPE = "a pipe whose reader has left"
COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all",
    "all_to_all_single", "barrier", "batch_isend_irecv", "broadcast", "broadcast_object_list",
    "gather", "monitored_barrier", "recv", "reduce", "reduce_scatter_tensor", "scatter", "send",
)  # fmt: skip
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
READ_EVENTS = ("os.listdir", "os.scandir")
WRITES, READS = ("write", "pwrite", "ftruncate"), ("read", "pread", "stat", "lstat")


@dataclass
class Child:
    """One forked training process."""

    pid: int
    rank: int
    code: int | None = None  # None while it runs; negative: the signal that killed it


@dataclass
class Launch:
    """One world of processes."""

    folder: Path
    port: int  # where rank 0 waits for the others
    children: list[Child] = field(default_factory=list)
    absent: list[dict[str, Any]] = field(default_factory=list)  # orders for those that may come

    @property
    def codes(self) -> list[int | None]:
        return [child.code for child in self.children]

    def output(self, stream: str) -> str:
        """What all processes wrote to "stdout" or "stderr"."""
        return "".join(
            (self.folder / f"{stream}-{child.rank}").read_text() for child in self.children
        )

    @property
    def stderr(self) -> str:
        return self.output("stderr")

    @property
    def stdout(self) -> str:
        return self.output("stdout")

    def events(self, rank: int = 0) -> list[str]:
        """The events that a rank with a fault has counted."""
        path = self.folder / f"events-{rank}"
        return path.read_text().splitlines() if path.exists() else []


class Nursery:
    """The parent process, and the worlds that it was told to start."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=Path(__file__).parent,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=HANGS_S)

    def start(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        processes: int = 1,
        faults: list[dict[str, Any]] | None = None,
        absent: tuple[int, ...] = (),
        module: str = "train",
        more: dict[int, list[str]] | None = None,
        variables: dict[str, str] | None = None,
        own: dict[int, dict[str, str]] | None = None,
        stdout: str = "",
        is_whole: bool = False,
        terminal: str = "",
        ends_late: bool = False,
        apart: bool = False,
    ) -> Launch:
        """Start a world of processes.

        Args:
            arguments: the command's.
            cwd: where they run.
            processes: how many the others expect.
            faults: see above.
            absent: ranks that never come, unless `come` is called.
            module: the command, such as "train".
            more: arguments that one rank has and the others do not, by rank.
            variables: of the environment.
            own: variables that one rank has and the others do not, by rank.
            stdout: the path of a file in place of the one that `output` reads, or CLOSED_PIPE.
            is_whole: run and end each process as `python -m` does, which is most of its cost, and
                where threads that are left abort it; without, it is gone when its work is done.
            terminal: its path; each process's session and streams are its.
            ends_late: whether collectives return before they have ended, as NCCL's do.
            apart: whether they cannot find each other on this machine, as if each had its own.
        """
        self._count += 1
        launch = Launch(self._folder / f"launch-{self._count}", free_port())
        launch.folder.mkdir()
        world = {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(launch.port),
        }
        for rank in range(processes):
            order = {
                "module": f"sinlstm_dist.{module}",
                "arguments": [*arguments, *(more or {}).get(rank, [])],
                "cwd": str(cwd),
                "folder": str(launch.folder),
                "rank": rank,
                "faults": [fault for fault in faults or [] if fault["rank"] == rank],
                "environment": {**(variables or {}), **(own or {}).get(rank, {})},
                "stdout": stdout,
                "is_whole": is_whole,
                "terminal": terminal,
                "ends_late": ends_late,
                "apart": apart,
            }
            if processes > 1:
                order["environment"] = {
                    **world, "RANK": str(rank), "LOCAL_RANK": str(rank), **order["environment"]
                }  # fmt: skip
            if rank in absent:
                launch.absent.append(order)
            else:
                self._fork(launch, order)
        return launch

    def come(self, launch: Launch) -> None:
        """Start those that were absent."""
        while launch.absent:
            self._fork(launch, launch.absent.pop(0))

    def _fork(self, launch: Launch, order: dict[str, Any]) -> None:
        launch.children.append(Child(self._ask({"fork": order})["pid"], order["rank"]))

    def wait(self, launch: Launch, *, timeout: float = HANGS_S) -> Launch:
        """Wait until all processes of a world have ended; those that do not are killed."""
        deadline = time.monotonic() + timeout
        while self.running(launch):
            if time.monotonic() > deadline:
                stuck = [child.rank for child in self.running(launch)]
                self.kill(launch)
                raise AssertionError(f"ranks {stuck} run after {timeout} s:\n{launch.stderr}")
            time.sleep(0.005)
        return launch

    def running(self, launch: Launch) -> list[Child]:
        """The processes that have not ended."""
        left = [child for child in launch.children if child.code is None]
        codes = self._ask({"poll": [child.pid for child in left]})["codes"] if left else []
        for child, code in zip(left, codes, strict=True):
            child.code = code
        return [child for child in left if child.code is None]

    def kill(self, launch: Launch, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process of a world that still runs, and wait if it kills."""
        for child in self.running(launch):
            os.kill(child.pid, number)
        while number == signal.SIGKILL and self.running(launch):
            time.sleep(0.005)

    def run(self, arguments: list[str], *, timeout: float = HANGS_S, **keywords: Any) -> Launch:
        """Start a world and wait until it has ended."""
        return self.wait(self.start(arguments, **keywords), timeout=timeout)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


# ---- below: the parent and its children ----


def _serve() -> None:

    # So that children need not import them. DDP imports the last, in nine tenths of a run's time.
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch.distributed.tensor  # noqa: F401

    from sinlstm_dist import command

    # Here is no launcher that ends the silent processes when one has spoken.
    command.let_another_speak = lambda at_most_s=0.0: None
    from sinlstm_dist import evaluate, train, verify  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    gc.freeze()  # what the parent has made is not looked through, and so not copied, in a child
    for line in sys.stdin:
        order = json.loads(line)
        if "fork" in order:
            pid = os.fork()
            if pid == 0:
                _be_child(order["fork"])
            answer = {"pid": pid}
        else:
            answer = {"codes": [_poll(pid) for pid in order["poll"]]}
        print(json.dumps(answer), flush=True)


def _poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _be_child(order: dict[str, Any]) -> None:
    """Run a command's `main`, and end with its exit code."""
    folder, rank = Path(order["folder"]), order["rank"]
    _open_streams(order, folder)
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    if order["is_whole"]:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            encoding = os.environ.get("PYTHONIOENCODING")
            stream = open(descriptor, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        sys.argv = [order["module"], *order["arguments"]]
        sys.modules.pop(order["module"], None)  # it is this process's program, and read again
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    code = 70
    try:
        if order["ends_late"]:
            late_ends.install()
        if order["apart"]:
            from sinlstm_dist.processes import alive

            alive.BOOT_ID = Path("/nowhere")
        _install(order["faults"], folder / f"events-{rank}")
        code = import_module(order["module"]).main(order["arguments"])
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _open_streams(order: dict[str, Any], folder: Path) -> None:
    own = [folder / f"{stream}-{order['rank']}" for stream in ("stdout", "stderr")]
    for descriptor, path in ((0, os.devnull), (1, order["stdout"] or own[0]), (2, own[1])):
        if path == CLOSED_PIPE:
            reader, opened = os.pipe()
            os.close(reader)
        else:
            opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
    if order["terminal"]:
        os.setsid()
        terminal = os.open(order["terminal"], os.O_RDWR)  # the session's, as its first one
        for descriptor in range(3):
            os.dup2(terminal, descriptor)
        os.close(terminal)  # or it would be open after a stream has been redirected


def _install(faults: list[dict[str, Any]], log: Path) -> None:
    """Count what the faults ask to count, and act when it is time."""
    file_faults = [fault for fault in faults if fault["of"] == "file"]
    if file_faults:
        _count_file_operations(file_faults[0], log)
    for fault in faults:
        if fault["of"] != "file":
            _count_calls(fault, log)


def _act(
    fault: dict[str, Any],
    *,
    descriptor: int | None = None,
    synced: int = 0,
    path: str | None = None,
) -> None:
    do = fault["do"]
    if do == "tear" and descriptor is not None:
        with contextlib.suppress(OSError):  # a folder
            os.ftruncate(descriptor, (synced + os.fstat(descriptor).st_size) // 2)
    if do in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    if do.startswith("error "):
        number = getattr(errno, do.split()[1])
        raise OSError(number, os.strerror(number), path)
    if do.startswith("limit "):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(do.split()[1]), resource.RLIM_INFINITY))
    if do.startswith("signal "):
        for number in do.split()[1:]:
            os.kill(os.getpid(), int(number))
    if do == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    if do.startswith("sleep "):
        time.sleep(float(do.split()[1]))
    if do == "block":
        late_ends.stream.block()
    if do == "raise":
        raise ValueError(fault.get("text", "a fault of the test"))
    if do == "refuse":
        from sinlstm_dist.config import ConfigError

        raise ConfigError(fault.get("text", "a fault of the test"))
    if do == "stop_file":
        Path(fault["path"]).touch()


def _count_file_operations(fault: dict[str, Any], log: Path) -> None:
    root, fsync, state = fault["below"], os.fsync, {"count": 0, "quiet": False}
    watched = (*FILE_EVENTS, *READ_EVENTS) if fault.get("reads") else FILE_EVENTS
    synced: dict[int, int] = {}  # bytes by inode: a file is synced under one name, then renamed
    events = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def happened(what: str, **where: Any) -> None:
        if state["quiet"]:
            return
        state["count"] += 1
        state["quiet"] = True  # what the fault itself does is not counted
        os.write(events, f"{what}\n".encode())
        try:
            if state["count"] == fault["at"]:
                _act(fault, **where)
        finally:
            state["quiet"] = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in watched or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        is_below = os.path.abspath(path).startswith(root)
        inside_removal = event != "open" and arguments[-1] not in (-1, None) and "/" not in path
        if is_below or inside_removal:
            happened(f"{event} {path}", path=path)

    def counted_fsync(descriptor: int) -> None:
        what = f"fsync {os.readlink(f'/proc/self/fd/{descriptor}')}"
        inode = os.fstat(descriptor).st_ino
        happened(what, descriptor=descriptor, synced=synced.get(inode, 0))
        fsync(descriptor)
        synced[inode] = os.fstat(descriptor).st_size

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(where: int | str | os.PathLike, *arguments: Any, **keywords: Any) -> Any:
            if not state["quiet"] and keywords.get("dir_fd") is None:
                is_open = isinstance(where, int)
                path = os.readlink(f"/proc/self/fd/{where}") if is_open else os.fspath(where)
                if os.path.abspath(path).startswith(root):
                    happened(f"{name} {path}", path=None if is_open else path)
            return function(where, *arguments, **keywords)

        return call

    for name in (*WRITES, *READS) if fault.get("reads") else WRITES:
        setattr(os, name, counted(name))
    os.fsync = counted_fsync
    sys.addaudithook(hook)


def _count_calls(fault: dict[str, Any], log: Path) -> None:
    """Wrap what `of` names; the fault acts before the call number `at`."""
    import torch.distributed as dist
    from accelerate import Accelerator

    from sinlstm_dist import gradient, train
    from sinlstm_dist.processes import gathering, roll_call
    from sinlstm_dist.run import checkpoint
    from sinlstm_dist.run import folder as run_folder
    from sinlstm_dist.stepping import KernelSteps, StepByStep

    if fault["of"] == "step":
        KernelSteps.most = 1
    if fault["of"] in ("memory", "collective") or fault["do"] == "spoil":  # not seen in C
        train.new_stepping = lambda job, world: StepByStep(job.gradient, job.update)
    memory = [(gathering.SharedMemory, "gather")]
    watched = {
        "step": [
            (owner, "__call__")
            for owner in (gradient.OrderedGradient, gradient.DdpGradient, KernelSteps)
        ],
        "evaluate": [(train, "totals_over")],
        "save": [(checkpoint, "_files")],
        "build": [(train, "build")],
        "begin": [(run_folder.RunFolder, "begin")],
        "record": [(run_folder.RunFolder, "append_metrics")],
        "end": [(run_folder.RunFolder, "end")],
        "join": [(train, "join_world")],
        **{name: [(Accelerator, name)] for name in ("prepare_model", "reduce", "backward")},
        "leave": [(roll_call.RollCall, "verdict")],
        "memory": memory,
        "collective": [*memory, *itertools.product((dist, dist.distributed_c10d), COLLECTIVES)],
    }[fault["of"]]
    count = [0]

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            count[0] += 1
            with log.open("a") as file:
                file.write(f"{fault['of']} {count[0]}\n")
            if count[0] == fault["at"]:
                _act(fault)
                if fault["do"] == "flip":
                    _flip_bit(arguments[0]._rows.model)
                if fault["do"] == "spoil":
                    _spoil_rows()
            return function(*arguments, **keywords)

        return counted

    wrapped = [counting(getattr(owner, name)) for owner, name in watched]
    for (owner, name), counted in zip(watched, wrapped, strict=True):
        setattr(owner, name, counted)


def _flip_bit(model: Any) -> None:
    import torch

    next(model.parameters()).data.view(torch.int32)[0] ^= 1


def _spoil_rows() -> None:
    """What a processor would do that computes wrongly from now on."""
    from sinlstm_dist.piece_rows import PieceRows

    right = PieceRows.gradients

    def spoiled(*arguments: Any, out: Any, **keywords: Any) -> None:
        right(*arguments, out=out, **keywords)
        out[:, 0] += 1e-3

    PieceRows.gradients = spoiled


if __name__ == "__main__":
    _serve()
