"""verify on a GPU: it passes on one process and on two, warns of nothing, and finds each fault."""

import json
import sys
from pathlib import Path

import pytest
from gpu_runs import BACKENDS, OWN_MODEL, on_two
from launching import Ended, run

from sinlstm_dist.verify.faults import FAULTS

OWN = ["--task.build", str(OWN_MODEL["task.build"])]
TORCH = ["--model.lstm", "torch"]
TASKS = pytest.mark.parametrize("task", [[], TORCH, OWN], ids=["sine", "torch", "own model"])


def results(cwd: Path) -> dict[str, str]:
    """The verdicts by claim."""
    return {c["claim"]: c["result"] for c in json.loads((cwd / "v.json").read_text())["claims"]}


def said(ended: Ended) -> str:
    return ended.stdout + ended.stderr


@TASKS
def test_one_process_passes(task, tmp_path):
    """Copies of a model keep its weights as cuDNN wants them: torch would warn."""
    words = ["-W", "error::UserWarning", "-m", "sinlstm_dist.verify", "--json", "v.json"]
    ended = run([sys.executable, *words, "--processes", "1", *task], cwd=tmp_path)
    found = results(tmp_path)
    assert ended.code == 0, said(ended)
    for claim in ("World", "Data", "Gradients and weights", "Metrics", "Checkpoint", "Learning"):
        assert found[claim] == "PASS", said(ended)
    assert found["Golden"] == ("SKIP" if task == TORCH else "PASS"), said(ended)
    assert "Warning" not in ended.stderr


@BACKENDS
@TASKS
def test_two_processes_pass(task, backend, tmp_path):
    """Speed is not looked at: other tests run at the same time."""
    ended = run(on_two(backend, "verify", "--json", "v.json", *task), cwd=tmp_path)
    found = results(tmp_path)
    del found["Speed"]
    golden = found.pop("Golden")
    assert set(found.values()) == {"PASS"}, said(ended)
    assert golden == ("SKIP" if task == TORCH else "PASS"), said(ended)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name, tmp_path):
    ended = run(on_two("gloo", "verify", "--json", "v.json", "--inject", name), cwd=tmp_path)
    found = results(tmp_path)
    claim = FAULTS[name].claim
    if claim != "Speed":
        del found["Speed"]  # other tests run at the same time
    assert [each for each in found if found[each] == "FAIL"] == [claim], said(ended)
    assert ended.code != 0
