"""Several runs in one table, and a bad folder as one error."""

import json
import shutil
import sys
from dataclasses import asdict

import launching
import pytest

from sinlstm_dist import __main__, compare, train
from sinlstm_dist.run.record import Summary

NO_TIME = json.dumps(
    {**asdict(Summary("completed", "", 0, 0, {}, {}, 1, "cpu", "ordered", 0.0, {})), "wall_s": None}
)
LONG_NAME = "a-run-with-a-name-of-many-words-seed-7"
QUICK = {**launching.SMALL, "train.epochs": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A complete run, one with another seed, and copies of that one: killed, and as if by ddp."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changed in {"a": {}, "b": {"train.seed": 7, "optim.lr": 0.05}}.items():
        assert train.main(launching.flags({**QUICK, **changed, "output.dir": folder / name})) == 0
    shutil.copytree(folder / "b", folder / "killed")
    (folder / "killed" / "summary.json").unlink()
    for name in ("ddp", LONG_NAME):
        shutil.copytree(folder / "b", folder / name)
        config = (folder / "b" / "config.toml").read_text()
        changed = config.replace('reduction = "ordered"', 'reduction = "ddp"')
        (folder / name / "config.toml").write_text(changed)
    return folder


@pytest.fixture(autouse=True)
def inside(runs, monkeypatch):
    monkeypatch.chdir(runs)


def shown_for(capsys, *paths) -> list[str]:
    assert compare.main([str(path) for path in paths]) == 0
    return capsys.readouterr().out.splitlines()


def table(capsys, *paths) -> list[list[str]]:
    """The words of each line below the headings, on a terminal that has room for all figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        lines = shown_for(capsys, *paths)
    [rule] = (i for i, line in enumerate(lines) if line.startswith("──"))
    return [line.split() for line in lines[rule + 1 :]]


def test_shows_each_run_as_its_files_have_it(runs, capsys):
    lines = table(capsys, "a", "b", "killed")
    starts = [line for line in lines if len(line) > 1]
    for line, name, setting in zip(starts, "ab", ("optim.lr=0.01", "optim.lr=0.05"), strict=False):
        last = launching.metrics(runs / name)[-1]
        ended = launching.summary(runs / name)
        assert line == [
            name, "completed", "2", f"{last['train_loss']:.2e}", f"{last['test_loss']:.2e}",
            f"{last['test_accuracy']:.4f}", str(ended["best"]["epoch"]), "1",
            f"{ended['wall_s']:.1f}", setting,
        ]  # fmt: skip
    assert starts[2][:3] == ["killed", "unfinished", "2"]
    assert [line for line in lines if len(line) == 1] == [
        ["train.seed=0"], ["train.seed=7"], ["train.seed=7"]
    ]  # fmt: skip


def test_the_folder_is_no_difference(capsys):
    """So two equal runs have no settings to show."""
    lines = shown_for(capsys, "b", "killed")
    assert lines[0].split()[-1] == "settings"
    assert [line[lines[0].index("settings") :].strip() for line in lines[2:]] == ["", ""]


def test_a_row_has_only_what_differs_from_the_first_run(runs, capsys):
    """The first row has its own values of all that differs somewhere."""
    lines = shown_for(capsys, "b", "killed", "ddp", "a")
    settings = [line[lines[0].index("settings") :].strip() for line in lines[2:]]
    assert settings == [
        "optim.lr=0.05", "train.seed=7", 'train.reduction="ordered"',
        "",
        'train.reduction="ddp"',
        "optim.lr=0.01", "train.seed=0",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [80, 129, 130, 200])
def test_fits_the_terminal(runs, capsys, monkeypatch, columns):
    """Also with names that do not fit into their column; numbers stay whole."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown_for(capsys, "a", "b", "ddp", LONG_NAME)
    assert max(map(len, lines)) <= columns
    assert ("seconds" in "".join(lines)) == (columns >= 130)
    [row] = (line for line in lines if line.startswith("ddp "))
    assert f"{launching.metrics(runs / 'ddp')[-1]['test_loss']:.2e}" in row.split()
    assert 'train.reduction="ddp' in "".join(lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"config.toml": "[train]\nepoch = 3\n"}, "did you mean train.epochs?"),
        ({"config.toml": "", "summary.json": "{}"}, "summary.json is damaged"),
        ({"config.toml": "", "summary.json": "{"}, "summary.json is damaged"),
        ({"config.toml": "", "summary.json": "[]"}, "summary.json is damaged"),
        ({"config.toml": "", "summary.json": NO_TIME}, "wall_s: Input should be a valid number"),
        (
            {"config.toml": "", "metrics.jsonl": '{"epoch": 1}\n'},
            "metrics.jsonl is damaged",
        ),
        (
            {"config.toml": "", "metrics.jsonl": '{"epoch": Infinity}\n'},
            "Infinity is not",
        ),
        ({"config.toml": "", "starts.jsonl": '{"step": Infinity}\n'}, "starts.jsonl is damaged"),
        ({"config.toml": "", "starts.jsonl": None}, "starts.jsonl cannot be read: is a folder"),
    ],
)
def test_a_bad_folder_is_one_error(runs, tmp_path, capsys, content, expected):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name, text in content.items():
        (bad / name).mkdir() if text is None else (bad / name).write_text(text)
    assert __main__.main(["compare", str(runs / "a"), str(bad)]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    [error] = streams.err.splitlines()
    assert error.startswith("error: ")
    assert str(bad) in error
    assert expected in error


def test_a_folder_without_a_run_is_a_row(runs, tmp_path, capsys):
    """As `sweep/*/` may name one; nothing but such folders is an error."""
    assert table(capsys, tmp_path, runs / "a")[0] == [str(tmp_path), "no", "run"]
    assert compare.main([str(tmp_path), str(tmp_path)]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert len(streams.err.splitlines()) == 1
    assert f"{tmp_path} is not a run folder: it has no config.toml" in streams.err


def test_a_file_gets_plain_lines(runs):
    words = [sys.executable, "-m", "sinlstm_dist.compare", "a"]
    ended = launching.run(words, cwd=runs)
    assert ended.code == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 3
    assert "\x1b" not in ended.stdout


def test_one_process_of_several_speaks(runs, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert compare.main([str(runs / "a")]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_task_without_correct_predictions_has_no_accuracy(runs, capsys, tmp_path):
    """Its column is there if another run has one."""
    shutil.copytree(runs / "a", tmp_path / "own")
    file = tmp_path / "own" / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        del record["train_accuracy"], record["test_accuracy"]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    head, _, alone = shown_for(capsys, tmp_path / "own")[:3]
    assert "test loss" in head
    assert "acc" not in head
    assert f"{records[-1]['test_loss']:.2e}" in alone
    head, _, _, last = shown_for(capsys, "a", tmp_path / "own")[:4]
    assert "test acc" in head
    assert last[: head.index("test acc") + len("test acc")].split()[-1] == (
        f"{records[-1]['test_loss']:.2e}"
    )
