"""The same command starts a run, continues it, and says that it is complete."""

import hashlib
import json
import math
import shutil
import signal
import sys
from pathlib import Path

import launching
import pytest
import torch
from launching import (
    SETTINGS,
    check_same,
    command,
    content,
    flags,
    metrics,
    state_of,
    summary,
    wait_for,
    weights_digest,
)
from nursery import Nursery

from sinlstm_dist.config import load_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.identity import changed_keys
from sinlstm_dist.run.layout import Layout, shapes
from sinlstm_dist.run.resume import Search, Start


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_starts_then_says_complete(train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = train()
    assert first.codes == [0]
    before = content(run)
    again = train(processes=2)
    assert again.codes == [0, 0]
    assert "completed: 3 epochs" in again.stdout
    assert "already complete: a larger train.epochs" in again.stdout
    assert content(run) == before


def test_what_is_missing_of_a_complete_run_is_made_again(train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train().codes == [0]
    before = weights_digest(run)
    (run / "model.safetensors").unlink()
    (run / "metrics.jsonl").unlink()  # the accuracy is then measured, not taken for zero
    assert train({"train.target_accuracy": 1e-9}).codes == [0]
    assert weights_digest(run) == before


def test_damaged_final_weights_are_refused_and_made_again(nursery, train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train().codes == [0]
    before = (run / "model.safetensors").read_bytes()
    assert summary(run)["weights_sha256"] == hashlib.sha256(before).hexdigest()
    altered = bytearray(before)
    altered[-3] ^= 1  # the value stays finite
    (run / "model.safetensors").write_bytes(altered)
    refused = nursery.run(["run"], cwd=tmp_path, module="evaluate")
    assert refused.codes == [2]
    told = "model.safetensors: is damaged (it does not match summary.json); run train again"
    assert told in refused.stderr
    assert train().codes == [0]
    assert (run / "model.safetensors").read_bytes() == before
    assert nursery.run(["run"], cwd=tmp_path, module="evaluate").codes == [0]


def test_an_older_summary_without_the_weights_sha256_is_read(nursery, train, tmp_path) -> None:
    assert train().codes == [0]
    file = tmp_path / "run" / "summary.json"
    older = summary(tmp_path / "run")
    del older["weights_sha256"]
    file.write_text(json.dumps(older))
    assert nursery.run(["run"], cwd=tmp_path, module="evaluate").codes == [0]
    assert "already complete: a larger train.epochs" in train().stdout
    assert "weights_sha256" not in summary(tmp_path / "run")


@pytest.mark.parametrize(("stop_at", "epochs"), [(6, 1), (7, 2)])
def test_fewer_epochs_than_were_begun_are_refused(train, tmp_path, stop_at, epochs) -> None:
    """Not called complete, with weights that no line of metrics.jsonl is about."""
    fault = {"rank": 0, "of": "step", "at": stop_at, "do": f"signal {signal.SIGTERM.value}"}
    assert train(faults=[fault]).codes == [75]
    before = content(tmp_path / "run")
    refused = train({"train.epochs": epochs})
    assert refused.codes == [2]
    assert f"train.epochs={epochs} is fewer than the" in refused.stderr
    assert content(tmp_path / "run") == before
    assert train().codes == [0]


@pytest.mark.parametrize("layers", [1, 2])
def test_more_epochs_continue_as_a_longer_run(train, tmp_path: Path, layers: int) -> None:
    model = {"model.num_layers": layers}
    assert train({**model, "train.epochs": 5, "output.dir": "straight"}).codes == [0]
    assert train({**model, "train.epochs": 2}).codes == [0]
    assert train({**model, "train.epochs": 4}, processes=3).codes == [0, 0, 0]
    longer = train({
        **model, "train.epochs": 5, "checkpoint.every_epochs": 7, "checkpoint.keep": 3
    })  # fmt: skip
    assert longer.codes == [0]
    assert "continues in epoch 5, after step 12" in longer.stdout
    check_same(tmp_path / "run", tmp_path / "straight")


def test_momentum_is_part_of_the_state(train, straight: Path, tmp_path: Path) -> None:
    """Negative control: with another momentum a run ends elsewhere; without, it is damaged."""
    assert train({"train.epochs": 2}).codes == [0]
    folder = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    found = checkpoint.read(folder)
    zeros = {name: 0 * value for name, value in found.optimizer.items()}
    assert any("momentum" in name for name in zeros)
    for optimizer in (zeros, {}):
        shutil.copytree(tmp_path / "run", tmp_path / "copy", dirs_exist_ok=True)
        checkpoint.set_aside(tmp_path / "copy" / "checkpoints" / folder.name, "true")
        altered = checkpoint.Checkpoint(found.state, found.weights, optimizer)
        checkpoint.write(tmp_path / "copy" / "checkpoints", altered, keep=2)
        again = train({"output.dir": "copy"})
        assert again.codes == [0]
        is_same = weights_digest(tmp_path / "copy") == weights_digest(straight)
        is_damaged = "output_layer.bias.momentum_buffer' is missing, needed float32 [1]"
        assert is_same == (not optimizer)
        assert (is_damaged in again.stdout) == (not optimizer)
        shutil.rmtree(tmp_path / "copy")


def test_a_contradicting_configuration_is_refused(train, tmp_path: Path) -> None:
    assert train({"train.epochs": 2}).codes == [0]
    before = content(tmp_path / "run")
    for changes, told in (
        (
            {"optim.lr": 0.02, "train.seed": 5},
            "optim.lr was 0.01 and is 0.02, train.seed was 0 and is 5",
        ),
        ({"data.noise": 0.1}, "data.noise was 0.02 and is 0.1"),
        ({"model.hidden_size": 6}, "model.hidden_size was 5 and is 6"),
        ({"train.virtual_shards": 4}, "train.virtual_shards was 8 and is 4"),
    ):
        for processes in (1, 2):
            refused = train(changes, processes=processes)
            assert refused.codes == [2] * processes
            assert told in refused.stderr
            assert refused.stderr.count("error:") == 1
            assert content(tmp_path / "run") == before
    named = train({"optim.lr": 0.02, "checkpoint.resume": "run/checkpoints/step-00000003"})
    assert named.codes == [2]
    assert content(tmp_path / "run") == before
    assert train({"train.epochs": 2}).codes == [0]  # the true one is still welcome


def test_an_own_older_checkpoint_by_name(train, straight: Path, tmp_path: Path) -> None:
    assert train().codes == [0]
    older = train({"checkpoint.resume": "run/checkpoints/step-00000006"})
    assert older.codes == [0], older.stderr
    assert "continues in epoch 3, after step 6" in older.stdout
    check_same(tmp_path / "run", straight)
    assert steps(tmp_path / "run") == ["abandoned-step-00000009", "step-00000006", "step-00000009"]


def test_another_runs_checkpoint_in_a_new_folder(train, tmp_path: Path) -> None:
    assert train({"output.dir": "straight"}).codes == [0]
    before = content(tmp_path / "straight")
    named = train({"checkpoint.resume": "straight/checkpoints/step-00000006"}, processes=2)
    assert named.codes == [0, 0], named.stderr
    check_same(tmp_path / "run", tmp_path / "straight")  # metrics complete, from epoch 1
    assert content(tmp_path / "straight") == before
    other = train({"checkpoint.resume": "straight/checkpoints/step-00000009"})
    assert other.codes == [2]
    assert "already holds a run" in other.stderr


@pytest.mark.parametrize("own", [True, False])
def test_the_same_command_with_a_named_checkpoint_gets_ahead(
    train, straight: Path, tmp_path, own
) -> None:
    """Killed again and again, it goes on from where it was, not from the named one."""
    assert train({"checkpoint.keep": 9}).codes == [0]
    where = {
        "checkpoint.resume": "run/checkpoints/step-00000003",
        "output.dir": "run" if own else "other",
        "checkpoint.every_steps": 1,
        "checkpoint.keep": 9,
    }
    fault = {"rank": 0, "of": "step", "at": 3, "do": "kill"}
    assert train(where, faults=[fault]).codes == [-signal.SIGKILL]
    assert train(where, faults=[fault]).codes == [-signal.SIGKILL]
    last = train(where)
    assert last.codes == [0]
    assert "after step 7 of the run" in last.stdout
    check_same(tmp_path / where["output.dir"], straight)


def test_a_named_checkpoint_that_is_damaged_or_missing(train, tmp_path: Path) -> None:
    assert train({"output.dir": "straight"}).codes == [0]
    folder = tmp_path / "straight" / "checkpoints" / "step-00000006"
    (folder / "state.json").write_bytes(b"{}")
    for name in ("step-00000006", "step-00000007"):
        refused = train({"checkpoint.resume": f"straight/checkpoints/{name}"})
        assert refused.codes == [2]
        assert f"checkpoint.resume=straight/checkpoints/{name}" in refused.stderr


def test_never_refuses_a_folder_with_a_run(train) -> None:
    assert train({"checkpoint.resume": "never"}).codes == [0]
    refused = train({"checkpoint.resume": "never"})
    assert refused.codes == [2]
    assert "choose another folder" in refused.stderr


@pytest.mark.parametrize("left", ["model.safetensors", "summary.json", "metrics.jsonl"])
def test_never_refuses_whatever_is_left_of_a_run(train, tmp_path: Path, left: str) -> None:
    assert train().codes == [0]
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints")
    for name in {"model.safetensors", "summary.json", "metrics.jsonl"} - {left}:
        (run / name).unlink()
    before = content(run)
    refused = train({"checkpoint.resume": "never", "optim.lr": 0.5})
    assert refused.codes == [2]
    assert "run already holds a run and checkpoint.resume=never" in refused.stderr
    assert content(run) == before


def test_weights_without_a_checkpoint_are_kept(train, straight: Path, tmp_path: Path) -> None:
    """More epochs must start over then, and a kill loses nothing."""
    assert train({"train.epochs": 2}).codes == [0]
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints")
    names = ("model.safetensors", "summary.json", "metrics.jsonl")
    before = {f"abandoned-{name}": (run / name).read_bytes() for name in names}
    fault = {"rank": 0, "of": "step", "at": 2, "do": "kill"}
    assert train(faults=[fault]).codes == [-signal.SIGKILL]
    assert train().codes == [0]
    check_same(run, straight)
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_damaged_newest_checkpoint_costs_an_epoch_not_the_run(
    train, straight: Path, tmp_path: Path
) -> None:
    assert train().codes == [0]
    path = tmp_path / "run" / "checkpoints" / "step-00000009" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed at the very end
    again = train(processes=2)
    assert again.codes == [0, 0]
    assert "step-00000009/model.safetensors: is damaged" in again.stdout
    assert "continues in epoch 3, after step 6" in again.stdout
    check_same(tmp_path / "run", straight)


@pytest.mark.parametrize(
    "tail", [b'{"epoch": 3, "tra', b'{"epoch": 3, "step": 9}\n', b"\0\0\0\0", b"\0\0\n"]
)
def test_a_torn_last_line(train, straight: Path, tmp_path: Path, tail: bytes) -> None:
    """Lines of epochs after the checkpoint, torn or whole, are written again."""
    assert train({"train.epochs": 2}).codes == [0]
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    again = train()
    assert again.codes == [0], again.stderr
    check_same(tmp_path / "run", straight)


def test_lost_metrics_are_said(train, tmp_path: Path) -> None:
    assert train({"train.epochs": 2}).codes == [0]
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = train()
    assert again.codes == [0]
    assert "lacks epochs of its run" in again.stdout
    assert [record["epoch"] for record in metrics(tmp_path / "run")] == [3]


def test_a_checkpoint_each_step_changes_nothing(train, tmp_path: Path) -> None:
    assert train({"output.dir": "straight", "checkpoint.every_epochs": 0}).codes == [0]
    assert steps(tmp_path / "straight") == ["step-00000009"]
    assert train({"checkpoint.every_steps": 1, "checkpoint.keep": 4}).codes == [0]
    assert steps(tmp_path / "run") == [f"step-{step:08d}" for step in (6, 7, 8, 9)]
    check_same(tmp_path / "run", tmp_path / "straight")
    for step in (6, 7, 8):
        name = f"run/checkpoints/step-{step:08d}"
        assert train({"checkpoint.resume": name, "output.dir": f"from-{step}"}).codes == [0]
        check_same(tmp_path / f"from-{step}", tmp_path / "straight")


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_not_finite_is_not_published(train, tmp_path: Path, processes: int) -> None:
    """A checkpoint of such weights would be called damaged by the next start."""
    ended = train({"optim.lr": 1e39, "checkpoint.every_steps": 1}, processes=processes)
    assert ended.codes == [1] * processes, ended.stderr
    run = tmp_path / "run"
    assert summary(run)["outcome"] == "failed"
    reason = summary(run)["reason"]
    assert "became infinite or nan at step 1 with a learning rate of 1e+39: try a " in reason
    assert reason.endswith("such as 0.01")
    assert not (run / "checkpoints").exists()
    assert not (run / "model.safetensors").exists()


def test_a_folder_in_use_is_refused(nursery: Nursery, train, tmp_path: Path) -> None:
    faults = [{"rank": 0, "of": "step", "at": 2, "do": "hang"}]
    settings = {**SETTINGS, "output.dir": "run"}
    hanging = nursery.start(flags(settings), cwd=tmp_path, faults=faults)
    while not hanging.events() or len(hanging.events()) < 2:
        assert nursery.running(hanging)
    refused = train()
    nursery.kill(hanging)
    assert refused.codes == [2]
    assert "is in use by a run that has not ended" in refused.stderr
    assert train().codes == [0]


LIMIT_BYTES = 2500  # between a checkpoint's largest file and metrics.jsonl after ten epochs


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_cannot_grow(train, tmp_path: Path, processes: int) -> None:
    """The kernel's own refusal, by the limit on the size of a file."""
    more = {"train.epochs": 12}
    faults = [{"rank": 0, "of": "build", "at": 1, "do": f"limit {LIMIT_BYTES}"}]
    ended = train(more, processes=processes, faults=faults)
    assert ended.codes == [1] * processes
    assert ended.stderr.startswith("error: run/metrics.jsonl: File too large")
    assert len(ended.stderr.splitlines()) == 1
    run = tmp_path / "run"
    assert summary(run)["outcome"] == "failed"
    assert "File too large" in summary(run)["reason"]
    assert train({**more, "output.dir": "straight"}).codes == [0]
    assert train(more).codes == [0]
    check_same(run, tmp_path / "straight")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_removed_run_folder(nursery: Nursery, tmp_path: Path, processes: int) -> None:
    faults = [{"rank": rank, "of": "step", "at": 5, "do": "hang"} for rank in range(processes)]
    settings = {**SETTINGS, "output.dir": "run"}
    launch = nursery.start(flags(settings), cwd=tmp_path, processes=processes, faults=faults)
    while len(launch.events()) < 5:
        assert nursery.running(launch)
    wait_for(lambda: all(state_of(child.pid) == "T" for child in launch.children))
    shutil.rmtree(tmp_path / "run")
    nursery.kill(launch, signal.SIGCONT)
    ended = nursery.wait(launch)
    assert ended.codes == [1] * processes
    assert ended.stderr.count("error:") == 1
    assert "run: the run folder was removed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


DROP_OVERRIDE = """
import ctypes, os, sys
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)  # root obeys permissions too
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_folder_that_may_not_be_written(train, straight: Path, tmp_path: Path) -> None:
    assert train({"train.epochs": 2}).codes == [0]
    run = tmp_path / "run"
    before = content(run)
    (run / "checkpoints").chmod(0o555)
    try:
        arguments = command(*flags({**SETTINGS, "output.dir": "run"}))
        ended = launching.run([sys.executable, "-c", DROP_OVERRIDE, *arguments[1:]], cwd=tmp_path)
    finally:
        (run / "checkpoints").chmod(0o755)
    assert ended.code == 1
    assert ended.stderr.count("error:") == 1, ended.stderr
    assert "Permission denied" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert steps(run) == ["step-00000003", "step-00000006"]
    after = content(run)
    assert all(after[name] == before[name] for name in before if name.startswith("checkpoints/"))
    assert json.loads((run / "summary.json").read_text())["outcome"] == "failed"
    assert train().codes == [0]
    check_same(run, straight)


# A task of the user's own: its schedule, its settings and its data

OWN = load_config(overrides={"train.epochs": 3}).model_dump(mode="json")
WEIGHTS = {"w": torch.ones(2)}
DATA = "ab" * 32


def saved(path: Path, *, step: int) -> Path:
    """A run folder with a checkpoint after `step` of three epochs of four steps."""
    samples = 10 * (step % 4)
    totals = {"loss_sum": 0.5, "correct": 1, "samples": samples} if samples else {
        "loss_sum": 0.0, "correct": 0, "samples": 0
    }  # fmt: skip
    state = {
        "step": step, "epoch": step // 4, "step_in_epoch": step % 4, "config": OWN, "data": DATA,
        "totals": {**totals, "divisor": None}, "tracker_id": "",
    }  # fmt: skip
    folder = path / "checkpoints"
    folder.mkdir(parents=True)
    checkpoint.write(folder, checkpoint.Checkpoint(state, WEIGHTS, {}), keep=2)
    return path


def search(path: Path, *, epochs: int = 3, data: str = DATA, lr_factor=None) -> Start:
    """What a start with these settings continues from."""
    config = {**OWN, "train": {**OWN["train"], "epochs": epochs}}
    layout = Layout(
        shapes(WEIGHTS), {}, num_steps=4, samples_per_step=10, lr_factor=lr_factor
    )  # fmt: skip
    found, _ = Search(path, config=config, layout=layout, fingerprint=data).start()
    return found


def cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def constant_until_ten(step: int, num_steps: int) -> float:
    return 1.0 if step < 10 else 1 - step / num_steps


def test_a_schedule_of_all_steps_keeps_the_number_of_epochs(tmp_path: Path) -> None:
    run = saved(tmp_path, step=6)
    assert search(run, lr_factor=cosine).step == 6
    told = (
        r"train\.epochs was 3 and is 5 \(in .*step-00000006\), and lr_factor depends on it: step "
        r"1 had the factor 0\.98296\d+ and would now have 0\.99384\d+; keep train\.epochs=3, or"
    )
    with pytest.raises(ConfigError, match=told):
        search(run, epochs=5, lr_factor=cosine)
    with pytest.raises(ConfigError, match=r"train\.epochs was 3 and is 2"):
        search(run, epochs=2, lr_factor=cosine)
    assert search(run, epochs=5, lr_factor=lambda step, _: 0.9**step).step == 6
    assert search(run, epochs=5).step == 6


@pytest.mark.parametrize("step", [10, 11])
def test_a_schedule_that_does_not_differ_so_far_goes_on(tmp_path: Path, step: int) -> None:
    """Step 10, the eleventh, is the first with another factor."""
    run = saved(tmp_path, step=step)
    if step == 10:
        assert search(run, epochs=5, lr_factor=constant_until_ten).step == 10
    else:
        with pytest.raises(ConfigError, match=r"step 10 had the factor 0\.1666\d+ and would"):
            search(run, epochs=5, lr_factor=constant_until_ten)


def test_an_error_in_a_schedule_is_the_users(tmp_path: Path) -> None:
    def broken(step: int, num_steps: int) -> float:
        return 1 / (num_steps - 20)

    with pytest.raises(ZeroDivisionError):
        search(saved(tmp_path, step=6), epochs=5, lr_factor=broken)


def test_other_samples_of_a_task_are_refused(tmp_path: Path) -> None:
    config = {**OWN, "task": {"build": "mine.py:build"}}
    told = "was trained on other samples than task.build=mine.py:build gives now"
    layout = Layout({}, {}, num_steps=4, samples_per_step=10)
    found = Search(tmp_path, config=config, layout=layout, fingerprint=DATA)
    with pytest.raises(ConfigError, match=told):
        found._check_continues(tmp_path, {"config": config, "data": "cd" * 32, **FIRST})
    found._check_continues(tmp_path, {"config": config, "data": DATA, **FIRST})


FIRST = {"step": 4, "epoch": 1, "step_in_epoch": 0}


def test_other_settings_of_a_task_are_another_run() -> None:
    before = {**OWN, "task": {"build": "mine.py:build", "width": 16, "rates": [0.1, 0.2]}}
    for changed, told in (
        ({"width": 32}, ["task.width was 16 and is 32"]),
        ({"rates": [0.1]}, ["task.rates was [0.1, 0.2] and is [0.1]"]),
        ({"depth": 2}, ["task.depth was not set and is 2"]),
        ({"build": "moved/mine.py:build"}, []),
        ({}, []),
    ):
        assert changed_keys(before, {**before, "task": {**before["task"], **changed}}) == told
    assert changed_keys(before, OWN | {"task": {"build": "mine.py:build"}}) == [
        "task.width was 16 and is not set", "task.rates was [0.1, 0.2] and is not set"
    ]  # fmt: skip
    workers = {**OWN, "train": {**OWN["train"], "num_workers": 2}}
    assert changed_keys(OWN, workers) == []
