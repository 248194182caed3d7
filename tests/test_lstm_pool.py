"""The kernel's pool of threads."""

import pytest
from lstm_cases import run_python

pytestmark = pytest.mark.kernel

THREADED_CALL = """
import os, sys, time, torch
from sinlstm_dist import lstm
from sinlstm_dist import compiled
num_workers = compiled.kernel().num_workers
torch.manual_seed(0)
rnn, head = torch.nn.LSTM(1, 5, batch_first=True), torch.nn.Linear(5, 1)
arguments = dict(windows=torch.randn(1000, 50, 1), targets=torch.randn(1000, 1), tolerance=0.1,
                 piece_sizes=[125] * 8, parameters=[*rnn.parameters(), *head.parameters()])
alone = lstm.predictor_rows(**arguments)
assert num_workers() == 0  # one thread starts no pool
rows = lambda: lstm.predictor_rows(num_threads=3, **arguments)
assert torch.equal(rows(), alone)
assert num_workers() == 2
"""


def test_pool_survives_a_fork_and_ends_with_the_process() -> None:
    script = """
for i in range(6):
    child = os.fork()
    if child == 0:
        ok = num_workers() == 0 and torch.equal(rows(), alone) and num_workers() == 2
        sys.exit(0 if ok else 1) if i % 2 else os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(rows(), alone)
print("end")
"""
    result = run_python(THREADED_CALL + script)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


def test_idle_pool_uses_no_cpu() -> None:
    script = """
from pathlib import Path

def workers():  # state and number of context switches of each other thread
    for task in Path("/proc/self/task").iterdir():
        if task.name != str(os.getpid()):
            lines = (task / "status").read_text().splitlines()
            yield [line for line in lines if line.startswith("State") or "ctxt_switches" in line]

def are_asleep():  # and have slept for a tenth of a second
    before = list(workers())
    time.sleep(0.1)
    return before == list(workers()) and all("(sleeping)" in states[0] for states in before)

assert len(list(workers())) >= 2
print(any(are_asleep() for _ in range(100)))
"""
    result = run_python(THREADED_CALL + script)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_pool_serves_threads_of_the_interpreter() -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as executor:
    results = list(executor.map(lambda _: rows(), range(100)))
assert all(torch.equal(result, alone) for result in results)
"""
    result = run_python(THREADED_CALL + script)
    assert result.returncode == 0, result.stderr


def test_small_work_stays_on_one_thread() -> None:
    script = """
import torch
from sinlstm_dist import lstm
from sinlstm_dist import compiled
rnn, head = torch.nn.LSTM(1, 5, batch_first=True), torch.nn.Linear(5, 1)
lstm.predictor_rows(windows=torch.randn(4, 2, 1), targets=torch.randn(4, 1), tolerance=0.1,
                    piece_sizes=[1] * 4, parameters=[*rnn.parameters(), *head.parameters()],
                    num_threads=2)
assert compiled.kernel().num_workers() == 0
"""
    result = run_python(script)
    assert result.returncode == 0, result.stderr
