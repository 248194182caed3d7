"""Pictures: what is on them, that their words are readable, and the command's errors."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import launching
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sinlstm_dist import plot, train
from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.gallery import Pictures, windows_to_draw
from sinlstm_dist.screen import pictures


@pytest.fixture
def figures(monkeypatch) -> Iterator[list[Figure]]:
    """Every figure that is saved."""
    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (saved.append(self), savefig(self, *a, **k))[1]
    )
    return saved


@pytest.fixture(scope="module")
def resumed_run(nursery, tmp_path_factory) -> Path:
    """A run with other data, of five epochs, stopped by a kill in the fourth."""
    folder = tmp_path_factory.mktemp("resumed")
    settings = {**launching.SMALL, "data.noise": 0.2, "train.epochs": 5, "output.dir": "again"}
    fault = {"rank": 0, "of": "step", "at": 11, "do": "kill"}
    assert nursery.run(launching.flags(settings), cwd=folder, faults=[fault]).codes == [-9]
    assert nursery.run(launching.flags(settings), cwd=folder).codes == [0]
    return folder / "again"


def check_readable(figure: Figure) -> None:
    """No words on others, none outside the picture."""
    figure.draw_without_rendering()
    unseen = {
        label
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)
    }  # labels beyond the ends of an axis
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in unseen
    ]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    width, height = figure.get_size_inches() * figure.dpi
    for (one, box), (other, another) in itertools.combinations(boxes, 2):
        assert not box.overlaps(another), (one, other)
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text


def lines(axes, style: str) -> list[np.ndarray]:
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() == style]


def test_curves_of_a_run(resumed_run, tmp_path, figures, capsys):
    assert plot.main([str(resumed_run), "--output", str(tmp_path / "one.png")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'one.png'}\n"
    (figure,) = figures
    check_readable(figure)
    loss, accuracy = figure.axes
    assert loss.get_yscale() == "log"
    assert loss.get_ylabel() == "mean squared error"
    assert accuracy.get_ylabel() == "accuracy (within ±0.1)"
    assert accuracy.get_xlabel() == "epoch"
    history = launching.metrics(resumed_run)
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        (test,) = lines(axes, "-")
        assert test.tolist() == [[r["epoch"], r[f"test_{quantity}"]] for r in history]
        train_line, resumed = sorted(lines(axes, "--"), key=len, reverse=True)
        assert train_line.tolist() == [[r["epoch"], r[f"train_{quantity}"]] for r in history]
        assert resumed[:, 0].tolist() == [3, 3]  # the checkpoint before the kill
    (baseline,) = lines(loss, "-.")
    data = SineDataset(size=101, window=12, noise=0.2, phase=0.5, stream=1)
    windows, targets = data[np.arange(101)]
    assert baseline[0, 1] == pytest.approx(float((windows[:, -1] - targets).square().mean()))


def test_several_runs_in_one_picture(trained_run, resumed_run, tmp_path, figures, monkeypatch):
    third = shutil.copytree(trained_run, tmp_path / "a run whose name is long enough to matter")
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(trained_run), str(resumed_run), str(third)]) == 0
    assert (tmp_path / "curves.png").exists()
    (figure,) = figures
    check_readable(figure)
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named[:3] == ["run", "again", third.name]
    assert len(lines(figure.axes[0], "-")) == 3
    assert len({line.get_color() for line in figure.axes[0].lines}) == 3


def test_runs_of_one_name_are_told_apart_by_their_paths(trained_run, tmp_path, figures):
    same = shutil.copytree(trained_run, tmp_path / "x" / "run")
    output = tmp_path / "two.svg"
    assert plot.main([str(trained_run), str(same), "--output", str(output)]) == 0
    named = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert named[:2] == [str(trained_run), str(same)]


@pytest.mark.parametrize(("noise", "titles"), [
    ("0.3", ["windows without noise", "with noise 0.3"]),
    ("0.0", ["windows without noise", "with noise 0.05 (an example: these data have none)"]),
])  # fmt: skip
def test_windows_of_a_data_set(noise, titles, tmp_path, figures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main(["data", "--data.noise", noise, "--data.train_size", "30"]) == 0
    assert (tmp_path / "windows.png").exists()
    (figure,) = figures
    check_readable(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    window, target = SineDataset(size=30)[20]
    drawn = [line.get_xydata() for line in figure.axes[0].lines]
    assert [len(line) for line in drawn[:4]] == [50, 1, 50, 1]  # window 40 is not there
    np.testing.assert_allclose(drawn[2][:, 1], window[:, 0])
    np.testing.assert_allclose(drawn[3], [[50, target.item()]])


def test_words_of_a_forecast_are_readable(trained_run, tmp_path, figures):
    run = shutil.copytree(trained_run, tmp_path / "run")
    Pictures(enabled=True, folder=run).draw()
    assert len(figures) == 3
    for figure in figures:
        check_readable(figure)


def test_pictures_at_the_end_of_a_run_change_nothing_else(trained_run, tmp_path, nursery):
    settings = {**launching.SMALL, "output.dir": "run", "output.plots": "true"}
    ended = nursery.run(launching.flags(settings), cwd=tmp_path, processes=2)
    assert ended.codes == [0, 0], ended.stderr
    assert ended.stderr == ""
    names = ["windows.png", "curves.png", "forecast.png"]
    assert ended.stdout.endswith(f"\npictures: {', '.join(names)}\n")
    assert all((tmp_path / "run" / name).read_bytes()[1:4] == b"PNG" for name in names)
    launching.check_same(tmp_path / "run", trained_run)


def test_pictures_that_a_kill_prevented_are_drawn_by_the_same_command(tmp_path, nursery):
    """Also of a period that ten cycles of are less than a step."""
    settings = {**launching.SMALL, "train.epochs": 1, "output.dir": "run", "output.plots": "true"}
    arguments = launching.flags({**settings, "data.period": 0.03})
    picture = tmp_path / "run" / "forecast.png"

    def says_drawn() -> bool:
        ended = nursery.run(arguments, cwd=tmp_path)
        assert ended.codes == [0], ended.stderr
        assert picture.exists()
        return "pictures: " in ended.stdout

    assert says_drawn()
    assert not says_drawn()
    picture.unlink()
    assert says_drawn()
    os.utime(picture, ns=(0, 0))  # of a run that was continued since
    assert says_drawn()


def test_pictures_that_are_off_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    off = Pictures(enabled=False, folder=tmp_path / "absent")
    off.check()
    assert off.draw() == []
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_cannot_be_drawn_are_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    assert train.main(["--output.plots", "true"]) == 2
    assert capsys.readouterr() == (
        "", "error: a picture needs the package matplotlib: pip install 'sinlstm-dist[plot]'\n"
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line_and_code_2(trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    young = shutil.copytree(trained_run, tmp_path / "young")
    (young / "metrics.jsonl").write_text('{"epoch": 1, "st')
    wrong = {
        "absent is not a run folder": ["absent"],
        "has not finished an epoch": [str(young)],
        "RUN_DIR": [],
        "curves.png": [str(trained_run), "--output", "absent/curves.png"],
        "a run has its own settings": [str(trained_run), "--data.noise", "1"],
        "absent.toml": ["data", "--config", "absent.toml"],
        "data.window": ["data", "--data.window", "0"],
    }
    for expected, arguments in wrong.items():
        assert plot.main(arguments) == 2, expected
        printed, errors = capsys.readouterr()
        assert printed == ""
        assert errors.startswith("error: "), expected
        assert errors.count("\n") == 1, expected
        assert expected in errors


def test_the_noise_of_the_picture_is_that_of_the_configuration():
    settings = load_config(overrides={"data.noise": 0.3, "data.train_size": 100}).data
    (first, window, _), *_ = windows_to_draw(settings)
    expected, _ = SineDataset(size=100, noise=0.3)[first]
    np.testing.assert_array_equal(window, expected[:, 0].numpy())


def test_a_picture_has_the_name_that_was_given(tmp_path):
    """matplotlib adds .png to a name without an ending."""
    picture = tmp_path / "windows"
    assert plot.main(["data", "--output", str(picture)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["windows"]
    assert picture.read_bytes().startswith(b"\x89PNG")
