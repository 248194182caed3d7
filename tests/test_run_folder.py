"""A run's folder: nobody else's files are written, renamed or removed, whatever lies there."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import (
    SETTINGS,
    check_same,
    content,
    flags,
    state_of,
    summary,
    wait_for,
    weights_digest,
)
from nursery import Launch, Nursery

from sinlstm_dist import train as training
from sinlstm_dist.config import Config, load_config, to_toml
from sinlstm_dist.errors import ConfigError, RunError
from sinlstm_dist.run import checkpoint, files
from sinlstm_dist.run.hold import Hold


@pytest.fixture
def in_mid_run(nursery: Nursery, tmp_path: Path):
    """Start a run, do something before its step `at`, and let it end."""

    def run(act: Callable[[], object], *, at: int = 5, processes: int = 1) -> Launch:
        faults = [{"rank": rank, "of": "step", "at": at, "do": "hang"} for rank in range(processes)]
        launch = nursery.start(flags(SETTINGS), cwd=tmp_path, processes=processes, faults=faults)
        while any(len(launch.events(rank)) < at for rank in range(processes)):
            assert nursery.running(launch)
        wait_for(lambda: all(state_of(child.pid) == "T" for child in launch.children))
        act()
        nursery.kill(launch, signal.SIGCONT)
        return nursery.wait(launch)

    return run


def check_refused(launch: Launch, what: str) -> None:
    assert set(launch.codes) == {2}, launch.stderr
    assert launch.stderr.count("error: ") == 1
    assert len(launch.stderr.splitlines()) == 1, launch.stderr
    assert what in launch.stderr


def test_a_lost_configuration_costs_nothing(train, in_mid_run, straight, tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.toml"
    ended = in_mid_run(config.unlink)
    assert ended.codes == [0]
    assert config.read_bytes() == (straight / "config.toml").read_bytes()
    check_same(tmp_path / "run", straight)
    assert train().codes == [0]
    check_same(tmp_path / "run", straight)
    assert "already complete: a larger train.epochs" in train().stdout


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("at", [5, 9])
def test_a_folder_moved_away_and_another_in_its_place(
    train, in_mid_run, straight, tmp_path: Path, processes: int, at: int
) -> None:
    def act() -> None:
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "thesis.txt").write_text("not the run's")

    ended = in_mid_run(act, at=at, processes=processes)
    assert ended.codes == [1] * processes
    assert ended.stderr.count("error: ") == 1
    assert "run: the run folder was moved away or replaced" in ended.stderr
    assert "nothing was written into the folder that is there now" in ended.stderr
    assert content(tmp_path / "run") == {"checkpoints": b"", "thesis.txt": b"not the run's"}
    check_refused(train(), "is not empty and holds no run")
    (tmp_path / "run").rename(tmp_path / "another")
    (tmp_path / "moved").rename(tmp_path / "run")
    assert train().codes == [0]
    check_same(tmp_path / "run", straight)


def test_another_run_in_place_of_the_folder(in_mid_run, straight, tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "run").rename(tmp_path / "moved")
        shutil.copytree(straight, tmp_path / "run")

    before = content(straight)
    assert in_mid_run(act).codes == [1]
    assert content(tmp_path / "run") == before
    assert not (tmp_path / "moved" / "summary.json").exists()


NAMES = (
    ".lock", "config.toml", "metrics.jsonl", "starts.jsonl", "summary.json", "model.safetensors",
    "STOP", "curves.png", ".unfinished-config.toml", ".unfinished-summary.json", "checkpoints",
    "tensorboard", "checkpoints/step-00000003", "checkpoints/.unfinished-step-00000003",
    "checkpoints/.removed-step-00000003",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_link_is_refused_by_name(train, straight, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    if "." in name.removeprefix("checkpoints/.") or name == "STOP":
        victim.write_text("precious")
    else:
        (victim / "step-00000001").mkdir(parents=True)
        (victim / "step-00000001" / "precious").touch()
    shutil.copytree(straight, tmp_path / "run")
    link = tmp_path / "run" / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    before = content(tmp_path)
    check_refused(train(), f"run/{name} is a link")
    assert content(tmp_path) == before


def test_a_lock_that_is_no_file_of_its_own(train, tmp_path: Path) -> None:
    lock, victim = tmp_path / "run" / ".lock", tmp_path / "victim"
    lock.parent.mkdir()
    os.mkfifo(lock)
    check_refused(train(timeout=20), "run/.lock is no regular file")
    lock.unlink()
    victim.touch()
    lock.hardlink_to(victim)
    check_refused(train(), "run/.lock is also another file's name (a hard link)")
    lock.unlink()
    lock.write_text("of another program")
    check_refused(train(), "run/.lock was not written by this program")
    assert lock.read_text() == "of another program"


def snapshot(run: Path, to: Path) -> dict[str, bytes]:
    """`cp -al`: the same files under other names. Returns their content, without the lock's."""
    shutil.copytree(run, to, copy_function=os.link)
    files = content(to)
    del files[".lock"]
    return files


def test_a_snapshot_by_hard_links(train, in_mid_run, straight, tmp_path: Path) -> None:
    """It disturbs neither the run nor a later start, and stays what it was."""
    run, taken = tmp_path / "run", {}
    assert in_mid_run(lambda: taken.update(first=snapshot(run, tmp_path / "first"))).codes == [0]
    check_same(run, straight)
    taken["second"] = snapshot(run, tmp_path / "second")
    assert train({"train.epochs": 4}).codes == [0]
    longer = {"train.epochs": 4, "output.dir": "straight"}
    assert train(longer).codes == [0]
    check_same(run, tmp_path / "straight")
    for name, before in taken.items():
        after = content(tmp_path / name)
        del after[".lock"]
        assert after == before
    assert train({"output.dir": "first"}).codes == [0]
    check_same(tmp_path / "first", straight)


def test_the_folder_itself_may_be_a_link(train, straight, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert train().codes == [0]
    check_same(tmp_path / "disk", straight)


def test_only_a_file_asks_to_stop(train, in_mid_run, straight, tmp_path: Path) -> None:
    stop = tmp_path / "run" / "STOP"
    assert in_mid_run(stop.mkdir).codes == [0]
    check_same(tmp_path / "run", straight)
    assert stop.is_dir()
    check_refused(train(), "run/STOP is a folder")
    stop.rmdir()
    assert "already complete: a larger train.epochs" in train().stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x" * 300, "File name too long"),
        ("file/run", "Not a directory"),
        ("file", "is a file"),
        ("nowhere", "is a link that leads nowhere"),
        ("loop", "Too many levels of symbolic links"),
        ("/proc/run", "No such file or directory"),
    ],
)
def test_odd_folders_are_one_error(train, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    before = content(tmp_path)
    check_refused(train({"output.dir": name}), told)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["config.toml", "thesis.txt"])
def test_a_folder_without_a_run_is_left_alone(train, tmp_path: Path, name: str) -> None:
    """Also one with a configuration of the user's and weights that no run wrote there."""
    (tmp_path / "run").mkdir()
    for mine in (name, "model.safetensors"):
        (tmp_path / "run" / mine).write_text("mine")
    before = content(tmp_path)
    check_refused(train(), "is not empty and holds no run")
    assert content(tmp_path) == before


STRANGERS = {
    "a configuration next to checkpoints": {
        "config.toml": 'my = "own"', "summary.json": '{"mine": 1}', "checkpoints/mine": "mine",
    },
    "a user's own settings": {"config.toml": "[train]\nepochs = 3", "model.safetensors": "mine"},
    "a whole configuration": {"config.toml": to_toml(Config()), "model.safetensors": "mine"},
    "an empty lock": {".lock": "", "model.safetensors": "mine"},
    "an empty lock and a configuration": {".lock": "", "config.toml": "x = 1"},
    "another program's metrics": {".lock": "", "metrics.jsonl": '{"epoch": 1, "loss": 0.5}\n'},
    "another program's checkpoint": {".lock": "", "checkpoints/step-00000003/state.json": "{}"},
    "curves": {".lock": "", "tensorboard/events.out.tfevents.1.mine": "mine"},
}  # fmt: skip


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("strangers", STRANGERS)
def test_what_only_looks_like_a_run_is_left_alone(train, tmp_path, strangers, resume) -> None:
    for name, text in STRANGERS[strangers].items():
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    before = content(tmp_path)
    changes = {"checkpoint.resume": resume, "output.trackers": "tensorboard"}
    check_refused(train(changes), "run is not empty and holds no run: choose another folder")
    assert content(tmp_path) == before


@pytest.mark.parametrize("lost", [("config.toml",), ("config.toml", "metrics.jsonl"),
                                  ("config.toml", "checkpoints/step-00000006")])  # fmt: skip
def test_a_run_that_lost_files_is_still_a_run(train, straight, tmp_path: Path, lost) -> None:
    shutil.copytree(straight, tmp_path / "run")
    for name in lost:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train().codes == [0]
    assert weights_digest(tmp_path / "run") == weights_digest(straight)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_refused_start_leaves_no_folder(train, tmp_path: Path, processes: int) -> None:
    refused = train({"output.dir": "a/b/c", "output.trackers": "wondb"}, processes=processes)
    check_refused(refused, "output.trackers=wondb is unknown")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a" / "b").mkdir(parents=True)
    named = {"output.dir": "a/b/c", "checkpoint.resume": "nowhere"}
    check_refused(train(named, processes=processes), "checkpoint.resume=nowhere")
    assert content(tmp_path) == {"a": b"", "a/b": b""}


def test_starts_at_the_same_time(tmp_path: Path) -> None:
    """They hold the folder for a moment: at any time at most one process has it."""
    folder, busy = tmp_path / "a" / "run", tmp_path / "busy"

    def hold_often() -> int:
        taken = 0
        for _ in range(300):
            hold = Hold(folder)
            refusal = ""
            try:
                hold.take()
            except ConfigError as error:
                refusal = str(error)
            else:
                os.close(os.open(busy, os.O_CREAT | os.O_EXCL))
                hold.check()
                busy.unlink()
                taken += 1
            finally:
                hold.release(keep=False)
            assert not refusal or "is in use by a run" in refusal, refusal
        return taken

    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                code = 0 if hold_often() else 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert 0 in codes
    assert set(codes) <= {0, 2}  # 2: in use whenever it came
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, capsys, number: int) -> None:
    """Says what to do, and leaves nothing there."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = tmp_path / "runs" / "run"
    assert training.main(flags({**SETTINGS, "output.dir": str(run)})) == 2
    assert capsys.readouterr().err == (
        f"error: output.dir={run} is on a file system that has no file locks (Lustre: mount it "
        "with -o flock): choose another output.dir\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_into_a_checkpoint_is_kept(train, in_mid_run, tmp_path: Path) -> None:
    """Pruned checkpoints go, and what is in them of somebody else's does not."""
    checkpoints = tmp_path / "run" / "checkpoints"
    assert in_mid_run((checkpoints / "step-00000003" / "notes.txt").touch).codes == [0]
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["kept-.removed-step-00000003", "step-00000006", "step-00000009"]
    kept = checkpoints / "kept-.removed-step-00000003"
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


def refuse_removal(patch: pytest.MonkeyPatch, call: str, number: int, *, of: str) -> None:
    """Let a call fail on paths in which `of` is, as for a protected or foreign folder."""
    original = getattr(Path, call)

    def refuse(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if of in "/".join(map(str, (path, *arguments))):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *arguments, **keywords)

    patch.setattr(Path, call, refuse)


WHOLE = ["step-00000003", "step-00000006", "step-00000009"]


@pytest.mark.parametrize(
    ("call", "number", "of", "names"),
    [
        ("rename", errno.EXDEV, "/.removed-", WHOLE),
        ("unlink", errno.EPERM, "/.removed-step-00000003/model.safetensors", WHOLE),
        ("unlink", errno.EACCES, "/.removed-step-00000003/manifest.json",
         [".removed-step-00000003", *WHOLE[1:]]),
        ("rmdir", errno.EBUSY, "/.removed-step-00000003", [".removed-step-00000003", *WHOLE[1:]]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_removed_is_kept(
    straight, tmp_path: Path, call: str, number: int, of: str, names: list[str]
) -> None:
    """Whole if nothing of it was removed; the run, and later starts, go on until it can be."""
    checkpoints = tmp_path / "run" / "checkpoints"

    def train(epochs: int) -> None:
        settings = {**SETTINGS, "train.epochs": epochs, "output.dir": str(tmp_path / "run")}
        assert training.train(load_config(overrides=settings)).outcome == "completed"

    with pytest.MonkeyPatch.context() as patch:
        refuse_removal(patch, call, number, of=of)
        train(3)
        check_same(tmp_path / "run", straight)
        assert sorted(os.listdir(checkpoints)) == names
        for folder in checkpoint.find(checkpoints):
            checkpoint.read(folder)
        train(4)
    train(5)
    assert sorted(os.listdir(checkpoints)) == ["step-00000012", "step-00000015"]


def test_leftovers_that_cannot_be_removed_are_in_nobodys_way(
    train, straight, tmp_path: Path, monkeypatch
) -> None:
    """Half a checkpoint under the name that the next one is written under."""
    checkpoints = tmp_path / "run" / "checkpoints"
    assert train({"train.epochs": 1}).codes == [0]
    left = checkpoints / ".unfinished-step-00000006"
    left.mkdir()
    (left / "model.safetensors").touch()
    refuse_removal(monkeypatch, "unlink", errno.EPERM, of=str(left / "model"))
    settings = {**SETTINGS, "output.dir": str(tmp_path / "run")}
    assert training.train(load_config(overrides=settings)).outcome == "completed"
    check_same(tmp_path / "run", straight)
    assert sorted(os.listdir(checkpoints)) == [left.name, *WHOLE[1:]]


def test_a_damaged_checkpoint_that_cannot_be_renamed_is_an_error(
    train, tmp_path: Path, monkeypatch
) -> None:
    """In its place the run could not write a whole one."""
    assert train().codes == [0]
    damaged = tmp_path / "run" / "checkpoints" / "step-00000009"
    (damaged / "state.json").write_text("")
    (tmp_path / "run" / "summary.json").unlink()
    before = content(tmp_path)
    refuse_removal(monkeypatch, "rename", errno.EXDEV, of=damaged.name)
    settings = {**SETTINGS, "output.dir": str(tmp_path / "run")}
    told = f"{damaged}: cannot be renamed to damaged-step-00000009: Invalid cross-device link; fix"
    with pytest.raises(RunError, match=told):
        training.train(load_config(overrides=settings))
    assert content(tmp_path) == before


def test_what_is_set_aside_again_is_kept_too(train, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    assert train().codes == [0]
    for number in range(3):
        (checkpoints / "step-00000009" / "state.json").write_text(str(number))
        (tmp_path / "run" / "summary.json").unlink()
        assert train().codes == [0]
    for number, name in enumerate(("", "-2", "-3")):
        aside = checkpoints / f"damaged-step-00000009{name}"
        assert (aside / "state.json").read_text() == str(number)
    assert summary(tmp_path / "run")["outcome"] == "completed"


def test_a_start_that_could_write_nothing_is_no_stranger(train, straight, tmp_path: Path) -> None:
    """The disk is full from the first file on: the lock alone says whose folder it is."""
    faults = [{"rank": 0, "of": "build", "at": 1, "do": "limit 100"}]
    assert train(faults=faults).codes == [1]
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [".lock", ".unfinished-config.toml", ".unfinished-summary.json"]
    assert train().codes == [0]
    check_same(tmp_path / "run", straight)


def refuse_syncs(monkeypatch, number: int, *, of: Callable[[int], bool]) -> None:
    """Let fsync fail for the kind of descriptor that a mode is of."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if of(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders(
    straight, tmp_path: Path, monkeypatch, number: int
) -> None:
    """A run starts, is continued and ends there as elsewhere."""
    refuse_syncs(monkeypatch, number, of=stat.S_ISDIR)
    for epochs in (1, 3):
        settings = {**SETTINGS, "train.epochs": epochs, "output.dir": str(tmp_path / "run")}
        assert training.train(load_config(overrides=settings)).epochs == epochs
    check_same(tmp_path / "run", straight)


@pytest.mark.parametrize(
    ("number", "of"), [(errno.EIO, stat.S_ISDIR), (errno.EINVAL, stat.S_ISREG)]
)
def test_a_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch, number: int, of) -> None:
    """Of a folder, if its file system could do it; of a file always."""
    refuse_syncs(monkeypatch, number, of=of)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.replace_synced(tmp_path / "file", b"")
