"""What a run leaves with its trackers: every step once, in one run, whatever happens to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from launching import SMALL, flags, metrics
from nursery import Nursery
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sinlstm_dist.config import load_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import trackers
from sinlstm_dist.run.record import Summary
from sinlstm_dist.run.trackers import Trackers
from sinlstm_dist.train import train

SETTINGS = {
    **SMALL,
    "train.epochs": 6,
    "checkpoint.every_epochs": 2,
    "output.trackers": "tensorboard",
    "output.dir": "run",
}  # three steps per epoch


def events(folder: Path) -> list[Event]:
    files = sorted(folder.rglob("events.out.tfevents.*"))
    return [Event.FromString(raw) for file in files for raw in RawEventFileLoader(str(file)).Load()]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag, as they lie in the files."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_killed_twice_every_step_is_there_once_in_one_run(nursery: Nursery, tmp_path: Path):
    def train(processes: int, **fault: Any) -> list[int]:
        faults = [{"rank": 0, "of": "step", "do": "kill", **fault}] if fault else []
        arguments = flags({**SETTINGS, "train.timeout_s": 20})
        return nursery.run(arguments, cwd=tmp_path, processes=processes, faults=faults).codes

    assert train(1, at=5) == [-9]  # in epoch 2, before the first checkpoint of an epoch
    identities = {identity(tmp_path / "run")}
    assert train(1, at=17) == [-9]  # in epoch 6, after epoch 5 was tracked and not saved
    assert [step for step, _ in curves(tmp_path / "run")["test_loss"]] == [3, 6, 9, 12, 15]
    assert train(2) == [0, 0]
    identities.add(identity(tmp_path / "run"))
    assert len(identities) == 1
    assert "" not in identities
    records = metrics(tmp_path / "run")
    found = curves(tmp_path / "run")
    for figure in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        steps, values = zip(*found[figure], strict=True)
        assert list(steps) == [3, 6, 9, 12, 15, 18]
        assert list(values) == pytest.approx([record[figure] for record in records], rel=1e-6)
    assert len(found["summary/best_test_loss"]) == 1
    folders = {file.parent for file in (tmp_path / "run").rglob("events.out.tfevents.*")}
    assert folders == {tmp_path / "run" / "tensorboard"}  # TensorBoard calls each folder a run


def identity(run: Path) -> str:
    newest = max((run / "checkpoints").glob("step-*"))
    return str(json.loads((newest / "state.json").read_text())["tracker_id"])


def test_a_run_from_another_runs_checkpoint_has_curves_of_its_own(nursery: Nursery, tmp_path: Path):
    """From its first instant; one that goes back to a checkpoint of its own keeps its curves."""

    def train(changes: dict[str, object], **fault: Any) -> list[int]:
        faults = [{"rank": 0, "of": "step", "do": "kill", **fault}] if fault else []
        return nursery.run(flags({**SETTINGS, **changes}), cwd=tmp_path, faults=faults).codes

    step_12 = {"checkpoint.resume": "run/checkpoints/step-00000012"}
    assert train({}) == [0]
    before = identity(tmp_path / "run")
    assert train({**step_12, "output.dir": "branch"}) == [0]
    assert identity(tmp_path / "branch") not in ("", before)
    assert train({**step_12, "output.dir": "killed"}, at=2) == [-9]  # before a checkpoint is due
    own = identity(tmp_path / "killed")
    assert own not in ("", before)
    assert train({**step_12, "output.dir": "killed"}) == [0]
    assert identity(tmp_path / "killed") == own
    for folder in ("branch", "killed"):
        tracked = curves(tmp_path / folder)["test_loss"]
        assert [step for step, _ in tracked] == [3, 6, 9, 12, 15, 18]
    assert train({**step_12, "train.epochs": 7}) == [0]
    assert identity(tmp_path / "run") == before


def test_hyperparameters_are_in_the_run(nursery: Nursery, tmp_path: Path):
    changes = {"train.epochs": 1, "optim.lr": 0.25}
    assert nursery.run(flags({**SETTINGS, **changes}), cwd=tmp_path).codes == [0]
    values = [value for event in events(tmp_path / "run") for value in event.summary.value]
    plugins = {value.tag: value.metadata.plugin_data for value in values}
    start = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"].content)
    assert start.session_start_info.hparams["optim.lr"].number_value == 0.25


def test_without_trackers_nothing_is_left(nursery: Nursery, tmp_path: Path):
    settings = {**SETTINGS, "train.epochs": 1}
    del settings["output.trackers"]
    assert nursery.run(flags(settings), cwd=tmp_path).codes == [0]
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wondb", "is unknown: Accelerate knows aim,"),
        ("wandb", "needs the package wandb: pip install 'wandb'"),
    ],
)
def test_unknown_and_missing_trackers_are_named_once(nursery, tmp_path, name, message):
    arguments = flags({**SETTINGS, "output.trackers": name})
    ended = nursery.run(arguments, cwd=tmp_path, processes=2)
    assert ended.codes == [2, 2]
    assert len(ended.stderr.splitlines()) == 1
    assert f"output.trackers={name} {message}" in ended.stderr


class Fragile(GeneralTracker):
    """A tracker of somebody's, as Accelerate lets people register them."""

    name, requires_logging_directory = "fragile", False
    tracker, logged = None, []

    def __init__(self, run_name: str, *, breaks_at: str = "") -> None:
        super().__init__()
        self.breaks_at = breaks_at

    def start(self) -> None:
        if self.breaks_at == "start":
            raise ConnectionError("no network")

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        if step == 2:
            raise ConnectionError("no network")
        self.logged.append(step)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState(cpu=True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fragile", Fragile)


def start(tmp_path: Path, notes: list[str], **keywords: Any) -> Trackers:
    tracked = Trackers(["fragile"], folder=tmp_path, note=notes.append, **keywords)
    assert tracked.start(identity="a", hyperparameters={"data.column": ""}, history=[]) == "a"
    return tracked


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(tmp_path, fragile):
    notes: list[str] = []
    tracked = start(tmp_path, notes)
    for step in (1, 2, 3):
        tracked.epoch({**dict.fromkeys(trackers.TRACKED, 0.5), "step": step})
    last = {"test_loss": 0.5, "test_accuracy": 0.5}
    tracked.end(
        Summary(
            outcome="completed",
            reason="",
            epochs=3,
            step=3,
            metrics=last,
            best=last,
            world_size=1,
            device="cpu",
            reduction="ordered",
            wall_s=0.0,
            versions={},
        )
    )
    tracked.close()
    assert Fragile.logged == [1]
    assert notes == ["fragile is disabled from here on: no network"]


def test_accuracies_that_were_not_counted_are_not_sent(tmp_path, fragile, monkeypatch):
    sent: list[dict[str, float]] = []
    monkeypatch.setattr(Fragile, "log", lambda self, values, step: sent.append(values))
    tracked = start(tmp_path, [])
    losses = {"train_loss": 0.5, "test_loss": 0.25, "samples_per_s": 10.0}
    tracked.epoch({**losses, "step": 1})
    tracked.end(
        Summary(
            outcome="completed", reason="", epochs=1, step=1, metrics=losses, best=losses,
            world_size=1, device="cpu", reduction="ordered", wall_s=0.0, versions={},
        )
    )  # fmt: skip
    assert sent[0] == losses
    assert sorted(sent[1]) == ["summary/best_test_loss", "summary/test_loss", "summary/wall_s"]


def test_a_tracker_that_does_not_start_is_named(tmp_path, fragile, monkeypatch):
    monkeypatch.setitem(trackers._RESUMES, "fragile", lambda _: {"breaks_at": "start"})
    with pytest.raises(ConfigError, match="fragile does not start: no network"):
        start(tmp_path, [])


@pytest.mark.parametrize("was_there", [False, True])
def test_a_tracker_that_does_not_start_leaves_the_folder_as_it_was(
    tmp_path, fragile, monkeypatch, was_there: bool
):
    """A run folder that was not there is not there afterwards; what was tracked stays."""
    folder = tmp_path / "runs" / "run"
    settings = {**SETTINGS, "train.epochs": 1, "output.dir": str(folder)}
    settings["output.trackers"] = ["tensorboard"]
    if was_there:
        assert train(load_config(overrides=settings)).outcome == "completed"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setitem(trackers._RESUMES, "fragile", lambda _: {"breaks_at": "start"})
    names = ["tensorboard", "fragile"]
    with pytest.raises(ConfigError, match="fragile does not start: no network"):
        train(load_config(overrides={**settings, "train.epochs": 2, "output.trackers": names}))
    if was_there:
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    else:
        assert list(tmp_path.iterdir()) == []
