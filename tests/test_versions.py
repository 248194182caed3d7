"""Runs of other versions: older ones go on, newer ones are refused, and both stay as they are."""

import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from launching import SETTINGS, check_same, flags
from nursery import Nursery

from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.checkpoint import DamagedCheckpoint

LATER_KEYS = ("model.lstm", "train.timeout_s", "data.test_phase")  # as if they were new, defaults


@pytest.fixture(scope="module")
def runs(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is complete, and one that was killed in its last epoch."""
    root = tmp_path_factory.mktemp("runs")
    complete = {**SETTINGS, "output.dir": "complete"}
    del complete["train.timeout_s"]
    assert nursery.run(flags(complete), cwd=root).codes == [0]
    faults = [{"rank": 0, "of": "step", "at": 8, "do": "kill"}]
    killed = {**SETTINGS, "output.dir": "killed"}
    assert nursery.run(flags(killed), cwd=root, faults=faults).codes == [-signal.SIGKILL]
    return root


def rewrite(folder: Path, change) -> None:
    """Change a checkpoint's state.json, and its manifest with it."""
    state = json.loads((folder / "state.json").read_bytes())
    change(state)
    (folder / "state.json").write_text(as_json(state))
    manifest = {}
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        content = (folder / name).read_bytes()
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(as_json(manifest))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_second_format(state: dict[str, Any]) -> None:
    """As the version wrote it whose only task was the built-in one; its data had other bits."""
    state["format"] = 2
    state["data"] = "0" * 64
    del state["arithmetic"]["bits"], state["arithmetic"]["sample order"]
    state.pop("optimizer", None)
    del state["totals"]["divisor"]
    state["totals"]["squared_error"] = state["totals"].pop("loss_sum")


def to_first_format(state: dict[str, Any], *, without: tuple[str, ...] = ()) -> None:
    """As the version wrote it that had no number of a format yet."""
    to_second_format(state)
    del state["format"], state["arithmetic"]
    for name in without:
        section, key = name.split(".")
        del state["config"][section][key]


def content(folder: Path) -> dict[str, bytes]:
    """All files but the lock, whose token a killed run leaves and the next one removes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("without", [(), LATER_KEYS])
def test_an_older_run_goes_on(train, runs: Path, tmp_path: Path, without) -> None:
    shutil.copytree(runs / "killed", tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        rewrite(folder, lambda state: to_first_format(state, without=without))
        fields = json.loads((folder / "state.json").read_bytes())
        assert list(fields) == [
            "config", "data", "epoch", "step", "step_in_epoch", "totals", "tracker_id"
        ]  # fmt: skip
    again = train({"train.timeout_s": 60.0})
    assert again.codes == [0], again.stderr
    assert "continues in epoch 3, after step 6" in again.stdout
    assert "continues with another sample order: sample order was not set and is " in again.stdout
    assert "set aside" not in again.stdout
    check_same(tmp_path / "run", runs / "complete")


def test_a_run_goes_on_that_a_kill_ended_in_an_epoch(train, runs: Path, tmp_path: Path) -> None:
    """The totals of its first steps have another name in format 2."""
    faults = [{"rank": 0, "of": "step", "at": 9, "do": "kill"}]
    assert train({"checkpoint.every_steps": 1}, faults=faults).codes == [-signal.SIGKILL]
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        rewrite(folder, to_second_format)
    totals = json.loads((folder.parent / "step-00000008" / "state.json").read_bytes())["totals"]
    assert sorted(totals) == ["correct", "samples", "squared_error"]
    assert totals["squared_error"] > 0
    again = train({"checkpoint.every_steps": 1}, processes=2)
    assert again.codes == [0, 0], again.stderr
    assert "continues in epoch 3, after step 8" in again.stdout
    check_same(tmp_path / "run", runs / "complete")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"optimizer": []}, "optimizer: format 2 does not have it"),
        ({"totals": {"loss_sum": 0.0, "correct": 0, "samples": 0}}, "totals: needs correct, "),
    ],
)
def test_an_older_format_has_no_newer_fields(runs: Path, tmp_path: Path, wrong, told: str) -> None:
    folder = shutil.copytree(runs / "killed" / "checkpoints" / "step-00000006", tmp_path / "one")
    rewrite(folder, to_second_format)
    checkpoint.read(folder)  # negative control
    rewrite(folder, lambda state: state.update(wrong))
    with pytest.raises(DamagedCheckpoint, match=told):
        checkpoint.read(folder)


def test_an_older_checkpoint_of_another_run_is_another_run(train, runs, tmp_path: Path) -> None:
    """Negative control: a key that it does not know means the default, not whatever is set."""
    shutil.copytree(runs / "killed", tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        rewrite(folder, lambda state: to_first_format(state, without=("data.noise",)))
    refused = train()
    assert refused.codes == [2]
    assert "data.noise was 0.0 and is 0.02" in refused.stderr


def newer_format(state: dict[str, Any]) -> None:
    state["format"] = 5


def newer_key(state: dict[str, Any]) -> None:
    state["config"]["data"]["novelty"] = 0


def newer_section(state: dict[str, Any]) -> None:
    state["config"]["schedule"] = {"warm_up": 0}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (newer_format, "is of format 5, written by a newer version"),
        (newer_key, "has settings of a newer version: data.novelty"),
        (newer_section, "has settings of a newer version: schedule"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_newer_checkpoint_is_refused(
    nursery, train, runs, tmp_path: Path, change, told: str, command: str
) -> None:
    shutil.copytree(runs / "killed", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    rewrite(folder, change)
    before = content(tmp_path)
    if command == "train":
        refused = train()
    else:
        refused = nursery.run([str(folder)], cwd=tmp_path, module="evaluate")
    assert refused.codes == [2]
    assert refused.stderr.count("error: ") == 1
    assert f"step-00000006/state.json {told}" in refused.stderr
    assert content(tmp_path) == before


@pytest.mark.parametrize("vouched", [True, False])
def test_a_newer_format_may_have_other_files(train, runs, tmp_path: Path, vouched: bool) -> None:
    """It is refused and not taken for damage; negative control: a number that nothing vouches for
    is damage."""
    shutil.copytree(runs / "killed", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    rewrite(folder, newer_format)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["model-1.safetensors"] = manifest.pop("model.safetensors")
    if not vouched:
        manifest["state.json"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(as_json(manifest))
    before = content(tmp_path)
    started = train()
    if vouched:
        assert started.codes == [2]
        assert "step-00000006/state.json is of format 5" in started.stderr
        assert content(tmp_path) == before
    else:
        assert started.codes == [0]
        assert "set aside as damaged-step-00000006" in started.stdout


@pytest.mark.parametrize("source", ["sine", "series.csv"])
def test_the_data_of_an_older_version_are_not_compared(runs, tmp_path: Path, source) -> None:
    """The mean of a series that is nearly 0 had other bits too; negative control: format 4."""
    folder = shutil.copytree(runs / "killed" / "checkpoints" / "step-00000006", tmp_path / "one")

    def of_format(number: int):
        def change(state: dict[str, Any]) -> None:
            state["format"], state["config"]["data"]["source"] = number, source

        return change

    rewrite(folder, of_format(3))
    assert checkpoint.read(folder).state["data"] == ""
    rewrite(folder, of_format(4))
    assert checkpoint.read(folder).state["data"] != ""


def test_an_older_complete_run_is_left_byte_for_byte(train, runs, tmp_path: Path) -> None:
    shutil.copytree(runs / "complete", tmp_path / "run")
    file = tmp_path / "run" / "config.toml"
    config = tomli.loads(file.read_text())
    config["output"]["dir"] = "run"
    for name in LATER_KEYS:
        section, key = name.split(".")
        del config[section][key]
    file.write_text(tomli_w.dumps(config))
    before = content(tmp_path)
    again = train({"train.timeout_s": 60.0})
    assert again.codes == [0], again.stderr
    assert "already complete: a larger train.epochs" in again.stdout
    assert content(tmp_path) == before


def test_a_newer_complete_run_is_refused(train, runs, tmp_path: Path) -> None:
    shutil.copytree(runs / "complete", tmp_path / "run")
    with (tmp_path / "run" / "config.toml").open("a") as file:
        file.write("\n[schedule]\nwarm_up = 0\n")
    before = content(tmp_path)
    refused = train()
    assert refused.codes == [2]
    assert "run/config.toml was written by a newer version" in refused.stderr
    assert content(tmp_path) == before
