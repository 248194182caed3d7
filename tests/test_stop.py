"""Asked to stop, a run saves, ends as "stopped", and continues to the undisturbed bits."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launching import (
    SETTINGS,
    check_same,
    children,
    command,
    finish,
    flags,
    has_begun,
    listens,
    metrics,
    run,
    spawn,
    start,
    state_of,
    summary,
    wait_for,
    weights_digest,
)
from nursery import Launch, Nursery

from sinlstm_dist.processes.stop import StopRequest

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
STOPPED = 75
LONG = {**SETTINGS, "train.epochs": 100_000, "checkpoint.every_epochs": 1000}


def check_continues(nursery: Nursery, root: Path, straight: Path, *, processes: int) -> None:
    launch = nursery.run(flags(SETTINGS), cwd=root, processes=processes)
    assert launch.codes == [0] * processes, launch.stderr
    check_same(root / "run", straight)


def check_stopped(launch: Launch, run: Path, *, step: int) -> None:
    assert launch.codes == [STOPPED] * len(launch.codes), launch.stderr
    assert launch.stderr == ""
    assert summary(run)["outcome"] == "stopped"
    assert summary(run)["step"] == step
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    assert newest == f"step-{step:08d}"
    assert not (run / "STOP").exists()


# A step under way when the signal comes is followed by one more: that one tells the others.
MOMENTS = [("build", 1, 1), ("step", 1, 2), ("step", 5, 6), ("evaluate", 1, 4), ("save", 1, 4)]
SENT = [(signal.SIGTERM, 1), (signal.SIGINT, 3)]  # Ctrl-C is heard in its own way
ALIKE = [(signal.SIGUSR1, 3), (signal.SIGUSR2, 1)]  # as SIGTERM: at one moment


@pytest.mark.parametrize(
    ("when", "at", "step", "number", "processes"),
    [(*moment, *sent) for moment in MOMENTS for sent in SENT]
    + [(*MOMENTS[2], *sent) for sent in ALIKE],
)
def test_a_signal_to_one_process(
    nursery: Nursery, tmp_path: Path, straight: Path, when, at, step, number, processes
) -> None:
    """Before the first step, while training, during an evaluation and during a save."""
    rank = 0 if when == "save" else processes - 1
    faults = [{"rank": rank, "of": when, "at": at, "do": f"signal {int(number)}"}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=processes, faults=faults)
    check_stopped(launch, tmp_path / "run", step=step)
    if rank == 0:
        assert number.name in str(summary(tmp_path / "run")["reason"])
    check_continues(nursery, tmp_path, straight, processes=4 - processes)


@pytest.mark.parametrize(
    ("when", "at", "step", "number"),
    [(*moment, number) for moment, number in zip(MOMENTS, [*SIGNALS, SIGNALS[1]], strict=True)],
)
def test_a_signal_to_all_processes(
    nursery: Nursery, tmp_path: Path, when, at, step, number
) -> None:
    """As launchers pass it on."""
    events = [when, when] if when != "save" else ["save", "evaluate"]  # rank 0 saves for both
    do = f"signal {int(number)}"
    faults = [{"rank": rank, "of": of, "at": at, "do": do} for rank, of in enumerate(events)]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=2, faults=faults)
    check_stopped(launch, tmp_path / "run", step=step)


NOT_BEGUN = "stopped: {} before all processes had joined; nothing was begun\n"


@pytest.mark.parametrize(
    ("present", "asked", "number"),
    [([0], 0, signal.SIGTERM), ([1], 1, signal.SIGTERM), ([0, 2], 2, signal.SIGINT)],
)
def test_while_others_have_not_started(
    nursery: Nursery, tmp_path: Path, straight: Path, present, asked, number
) -> None:
    """Long before train.timeout_s, all that are there leave; they have begun nothing."""
    processes = len(present) + 1
    launch = nursery.start(
        flags({**SETTINGS, "train.timeout_s": 600}),
        cwd=tmp_path,
        processes=processes,
        absent=tuple(set(range(processes)) - set(present)),
        faults=[{"rank": asked, "of": "join", "at": 1, "do": "count"}],
    )
    wait_for(lambda: launch.events(asked) and (0 not in present or listens(launch.port)))
    time.sleep(0.2)  # it waits now; a signal a little earlier would have the same effect
    assert len(nursery.running(launch)) == len(present)
    (pid,) = [child.pid for child in launch.children if child.rank == asked]
    os.kill(pid, number)
    nursery.wait(launch)
    assert launch.codes == [STOPPED] * len(present), launch.stderr
    # Without rank 0 they cannot agree on one that speaks: the first process of each node does.
    assert launch.stdout == (NOT_BEGUN.format(number.name) if 0 in present else "")
    assert launch.stderr == ""
    assert not (tmp_path / "run").exists()
    check_continues(nursery, tmp_path, straight, processes=processes)


def test_before_joining_those_that_wait(nursery: Nursery, tmp_path: Path) -> None:
    faults = [{"rank": 2, "of": "join", "at": 1, "do": "hang"}]
    launch = nursery.start(flags(SETTINGS), cwd=tmp_path, processes=3, faults=faults)
    wait_for(lambda: launch.events(2) and listens(launch.port))
    wait_for(lambda: state_of(launch.children[2].pid) == "T")
    for number in (signal.SIGUSR1, signal.SIGCONT):
        os.kill(launch.children[2].pid, number)
    nursery.wait(launch)
    assert launch.codes == [STOPPED] * 3, launch.stderr
    assert (launch.stdout, launch.stderr) == (NOT_BEGUN.format("SIGUSR1"), "")


def test_one_process_alone_has_nobody_to_wait_for(nursery: Nursery, tmp_path: Path) -> None:
    faults = [{"rank": 0, "of": "join", "at": 1, "do": "signal 15"}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, faults=faults)
    check_stopped(launch, tmp_path / "run", step=1)


@pytest.mark.parametrize(
    ("when", "at", "step"),
    [("build", 1, 1), ("step", 5, 6), ("evaluate", 1, 4), ("save", 1, 4)],
)
def test_a_stop_file(nursery: Nursery, tmp_path: Path, straight: Path, when, at, step) -> None:
    """Also one that was there before the run."""
    stop = tmp_path / "run" / "STOP"
    stop.parent.mkdir()
    faults = [{"rank": 0, "of": when, "at": at, "do": "stop_file", "path": str(stop)}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=2, faults=faults)
    check_stopped(launch, tmp_path / "run", step=step)
    check_continues(nursery, tmp_path, straight, processes=3)


def test_in_the_last_step_of_the_last_epoch(
    nursery: Nursery, tmp_path: Path, straight: Path
) -> None:
    """Only its test is left, so the run completes."""
    faults = [{"rank": 1, "of": "step", "at": 8, "do": "signal 15"}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=2, faults=faults)
    assert launch.codes == [0, 0]
    assert weights_digest(tmp_path / "run") == weights_digest(straight)


def test_in_the_last_step_of_an_epoch(nursery: Nursery, tmp_path: Path, straight: Path) -> None:
    """The epoch is tested and recorded before the run stops: no state lies between the two."""
    faults = [{"rank": 1, "of": "step", "at": 5, "do": "signal 15"}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=2, faults=faults)
    check_stopped(launch, tmp_path / "run", step=6)
    assert len(metrics(tmp_path / "run")) == 2
    check_continues(nursery, tmp_path, straight, processes=1)


def test_ddp_stops_too(nursery: Nursery, tmp_path: Path) -> None:
    faults = [{"rank": 1, "of": "build", "at": 1, "do": "signal 15"}]
    settings = {**SETTINGS, "train.reduction": "ddp"}
    launch = nursery.run(flags(settings), cwd=tmp_path, processes=2, faults=faults)
    check_stopped(launch, tmp_path / "run", step=1)


def test_during_the_last_evaluation_there_is_nothing_left_to_stop(
    nursery: Nursery, tmp_path: Path
) -> None:
    faults = [{"rank": 0, "of": "evaluate", "at": 3, "do": "signal 15"}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, faults=faults)
    assert launch.codes == [0]
    assert summary(tmp_path / "run")["outcome"] == "completed"


def test_several_times_in_a_row(nursery: Nursery, tmp_path: Path, straight: Path) -> None:
    for step, processes in ((2, 4), (4, 1), (6, 3), (8, 2)):
        faults = [{"rank": 0, "of": "step", "at": 1, "do": "signal 10"}]
        launch = nursery.run(flags(SETTINGS), cwd=tmp_path, processes=processes, faults=faults)
        check_stopped(launch, tmp_path / "run", step=step)
    check_continues(nursery, tmp_path, straight, processes=4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher(tmp_path: Path, number: signal.Signals) -> None:
    """torchrun passes on SIGTERM and SIGINT; SIGUSR1 and SIGUSR2 only if it is told to."""
    handled = "SIGTERM,SIGINT,SIGUSR1,SIGUSR2"
    words = command(*flags(LONG), processes=2)
    words.insert(words.index("--nproc-per-node"), f"--signals-to-handle={handled}")
    launcher = spawn(words, cwd=tmp_path)
    wait_for(lambda: has_begun(tmp_path / "run"))
    os.kill(launcher.pid, number)
    ended = finish(launcher)
    assert ended.code != 0
    assert summary(tmp_path / "run")["outcome"] == "stopped"
    assert "terminate called" not in ended.stderr
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_signal_to_a_worker_of_a_launcher(tmp_path: Path) -> None:
    launcher = start(flags(LONG), cwd=tmp_path, processes=2)
    wait_for(lambda: has_begun(tmp_path / "run"))
    os.kill(children(launcher.pid)[1], signal.SIGUSR2)
    ended = finish(launcher)
    assert ended.code == 1  # a launcher turns every code into its own
    assert summary(tmp_path / "run")["outcome"] == "stopped"


def test_a_second_interrupt_leaves_at_once(nursery: Nursery, tmp_path: Path) -> None:
    """Also while the process waits for another one that hangs; no checkpoint, code 130."""
    faults = [{"rank": 1, "of": "step", "at": 2, "do": "hang"}]
    settings = flags({**SETTINGS, "train.timeout_s": 600})
    launch = nursery.start(settings, cwd=tmp_path, processes=2, faults=faults)
    while len(launch.events(1)) < 2:
        assert nursery.running(launch)
    time.sleep(0.3)
    os.kill(launch.children[0].pid, signal.SIGINT)
    time.sleep(StopRequest.SECOND_INTERRUPT_S + 0.1)
    assert len(nursery.running(launch)) == 2  # negative control: the first alone does not
    os.kill(launch.children[0].pid, signal.SIGINT)
    wait_for(lambda: len(nursery.running(launch)) < 2)
    assert launch.children[0].code == 128 + signal.SIGINT
    nursery.kill(launch)


def test_a_terminal_sends_the_first_one_twice(nursery: Nursery, tmp_path: Path) -> None:
    """Directly and through the launcher: within a moment, two count as one."""
    faults = [{"rank": 0, "of": "step", "at": 2, "do": "signal 2 2"}]
    launch = nursery.run(flags(SETTINGS), cwd=tmp_path, faults=faults)
    check_stopped(launch, tmp_path / "run", step=3)


def test_only_nohup_is_respected() -> None:
    """A shell ignores SIGINT for what it starts in the background; it must be heard there."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.reason == ""
            os.kill(os.getpid(), signal.SIGINT)
            assert request.reason == "SIGINT"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as request:
        assert [signal.getsignal(number) for number in SIGNALS] != before
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.reason == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_was_done_is_undone_if_it_cannot_watch(monkeypatch) -> None:
    """As where a user may have no more processes."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = [signal.getsignal(number) for number in SIGNALS]
    descriptors = os.listdir("/proc/self/fd")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"), StopRequest():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


OF_C = """
#include <signal.h>
#include <unistd.h>
static void heard(int number) { write(2, "C", 1); }
__attribute__((constructor)) static void begin(void) {
    signal(SIGUSR2, heard);
    signal(SIGALRM, heard);
}
"""
A_RUN = """
from sinlstm_dist.processes.stop import StopRequest
with StopRequest() as request: os.kill(os.getpid(), signal.SIGUSR2)
assert request.reason == ""
os.kill(os.getpid(), signal.SIGUSR2)
with StopRequest() as request: os.kill(os.getpid(), signal.SIGUSR1)
assert request.reason == "SIGUSR1"
"""
A_CLAIM = """
from sinlstm_dist.verify.verification import _time_limit
with _time_limit("claim", ""): os.kill(os.getpid(), signal.SIGALRM)
os.kill(os.getpid(), signal.SIGALRM)
"""


@pytest.mark.parametrize("code", [A_RUN, A_CLAIM], ids=["a run", "a claim of verify"])
def test_a_handler_of_c_code_stays(tmp_path: Path, compilers: None, code: str) -> None:
    """Such as a profiler's, there before Python, which could not put it back."""
    (tmp_path / "of_c.c").write_text(OF_C)
    subprocess.run(["gcc", "-shared", "-fPIC", "of_c.c", "-o", "of_c.so"], cwd=tmp_path, check=True)
    words = [sys.executable, "-c", f"import os, signal{code}"]
    ended = run(words, cwd=tmp_path, LD_PRELOAD=str(tmp_path / "of_c.so"))
    assert (ended.code, ended.stderr) == (0, "CC")


def test_in_another_thread_signals_are_the_callers(tmp_path: Path) -> None:
    code = (
        "import threading\n"
        "from sinlstm_dist.processes.stop import StopRequest\n"
        "def run():\n"
        "    with StopRequest() as request: print(repr(request.reason))\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()\n"
    )
    ended = run([sys.executable, "-c", code], cwd=tmp_path)
    assert (ended.stdout, ended.stderr) == ("''\n", "")
