"""Pictures: what is on them, that their words are readable, and the command's errors."""

import io
import itertools
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import launching
import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from sinlstm_dist import forecast, plot, train
from sinlstm_dist.config import load_config, to_toml
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gallery import Pictures, windows_to_draw
from sinlstm_dist.horizons import Fan
from sinlstm_dist.rollout import Forecast
from sinlstm_dist.screen import pictures
from sinlstm_dist.screen.curves import Curve, curves_picture
from sinlstm_dist.screen.pictures import BLUE, COLORS, GREEN, RED, forecast_picture, tint


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


def colored(axes, color: str) -> list[np.ndarray]:
    """The solid lines of a colour."""
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    return [line.get_xydata() for line in lines if line.get_color() == color]


def curve(name: str, *, steps_per_epoch: int = 100, **other) -> Curve:
    """Two finished epochs of a run, resumed after the first."""
    values = {"train_loss": 0.2, "test_loss": 0.1, "train_accuracy": 0.5, "test_accuracy": 0.6}
    history = [{"epoch": i, "step": i * steps_per_epoch, **values} for i in (1, 2)]
    settings = {"baseline": (0.05, 0.8), "resumed_after": [steps_per_epoch], "tolerance": 0.1}
    return Curve(name, history=history, **{**settings, **other})


def legend(figure: Figure) -> list[str]:
    """The runs in the legend above all axes."""
    (of_runs,) = figure.legends
    return [text.get_text() for text in of_runs.get_texts()]


def styles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_curves_of_a_run(resumed_run, tmp_path, figures, capsys):
    assert plot.main([str(resumed_run), "--output", str(tmp_path / "one.png")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'one.png'}\n"
    (figure,) = figures
    check_readable(figure)
    loss, accuracy = figure.axes
    assert loss.get_yscale() == "log"
    assert loss.get_ylabel() == "mean squared error"
    assert accuracy.get_ylabel() == "accuracy\n(within ±0.1)"
    assert accuracy.get_xlabel() == "epoch"
    history = launching.metrics(resumed_run)
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        (test,) = colored(axes, BLUE)
        assert test.tolist() == [[r["epoch"], r[f"test_{quantity}"]] for r in history]
        (train_line,) = colored(axes, tint(BLUE))
        assert train_line.tolist() == [[r["epoch"], r[f"train_{quantity}"]] for r in history]
        (resumed,) = lines(axes, "--")
        assert resumed[:, 0].tolist() == [3, 3]  # the checkpoint before the kill
    (baseline,) = lines(loss, "-.")
    data = SineDataset(size=101, window=12, noise=0.2, phase=0.5, stream=1)
    windows, targets = data[np.arange(101)]
    assert baseline[0, 1] == pytest.approx(float((windows[:, -1] - targets).square().mean()))


ODD_NAMES = [r"a$ {x_ b$", "$x^2$", r"\$a$b\\$", r"\alpha_1^2", "_below", "5 $", "$$"]


def drawn(figure: Figure) -> list[str]:
    """The texts of a figure as they are drawn, which must be possible; on an SVG, as text."""
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(file := io.BytesIO(), format="svg")
    root = ElementTree.fromstring(file.getvalue())
    return [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_drawn_as_they_are(name, trained_run, tmp_path, monkeypatch, figures):
    """Those of columns and of runs: matplotlib reads mathematics between dollars."""
    values = 10 * np.sin(np.arange(200) * 2 * np.pi / 12)
    rows = "".join(f"{value:.3f},x\n" for value in values)
    (tmp_path / "a.csv").write_text(f'"{name}",other\n{rows}')
    monkeypatch.chdir(tmp_path)
    sizes = ["--data.window", "12", "--data.train_size", "100", "--data.test_size", "40"]
    source = ["--data.source", "a.csv", "--data.column", name, "--data.period", "12"]
    assert plot.main(["data", *source, *sizes, "--output", "data.png"]) == 0
    values = np.arange(24.0)
    known = Forecast(values, values + 1, values, period=12.0)
    forecast_picture(tmp_path / "far.png", known, quantity=name)
    shutil.copytree(trained_run, tmp_path / name)
    assert plot.main([name, str(trained_run)]) == 0
    monkeypatch.undo()
    for figure in figures:
        assert name in drawn(figure)


def test_a_log_axis_keeps_its_powers(trained_run, tmp_path, figures):
    assert plot.main([str(trained_run), "--output", str(tmp_path / "a.png")]) == 0
    assert any("mathdefault" in tick.get_text() for tick in figures[0].axes[0].get_yticklabels())


def test_several_runs_in_one_picture(trained_run, resumed_run, tmp_path, figures, monkeypatch):
    third = shutil.copytree(trained_run, tmp_path / "a run whose name is long enough to matter")
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(trained_run), str(resumed_run), str(third)]) == 0
    assert (tmp_path / "curves.png").exists()
    (figure,) = figures
    check_readable(figure)
    names = [" ".join(name.split()) for name in legend(figure)]  # long ones are wrapped
    assert names == ["run", "again", third.name]
    assert styles(figure) == ["test", "train", "resumed", "the last value again"]
    for axes in figure.axes:
        for color in (BLUE, RED, GREEN):
            assert [len(colored(axes, c)) for c in (color, tint(color))] == [1, 1]


def test_a_baseline_per_data_set(trained_run, resumed_run, tmp_path, figures):
    """Two of the three runs have the same test windows."""
    output = str(tmp_path / "three.png")
    third = shutil.copytree(trained_run, tmp_path / "a run whose name is long enough to matter")
    assert plot.main([str(trained_run), str(resumed_run), str(third), "--output", output]) == 0
    assert plot.main([str(trained_run), str(third), "--output", output]) == 0
    of_two_data_sets, of_one = figures
    for figure, number in ((of_two_data_sets, 2), (of_one, 1)):
        check_readable(figure)
        assert [len(lines(axes, "-.")) for axes in figure.axes] == [number, number]
        assert styles(figure)[-1] == "the last value again"
    drawn = [line for line in of_two_data_sets.axes[0].lines if line.get_linestyle() == "-."]
    assert [line.get_color() for line in drawn] == [BLUE, RED]  # of the first run of each


def test_steps_where_epochs_differ(tmp_path, figures):
    long, short = curve("long"), curve("short", steps_per_epoch=10)
    curves_picture(tmp_path / "steps.png", [long, short])
    curves_picture(tmp_path / "epochs.png", [long, curve("same")])
    in_steps, in_epochs = figures
    assert in_steps.axes[1].get_xlabel() == "optimizer step"
    assert in_epochs.axes[1].get_xlabel() == "epoch"
    for figure, places in ((in_steps, ([100, 200], [10, 20])), (in_epochs, ([1, 2], [1, 2]))):
        check_readable(figure)
        for axes in figure.axes:
            for color, expected in zip((BLUE, RED), places, strict=True):
                for line in (*colored(axes, color), *colored(axes, tint(color))):
                    assert line[:, 0].tolist() == expected
            resumed = [line[0, 0] for line in lines(axes, "--")]
            assert resumed == [expected[0] for expected in places]


def test_the_first_epoch_has_one_tick(tmp_path, figures):
    young = curve("young", resumed_after=[])
    curves_picture(tmp_path / "one.png", [replace(young, history=young.history[:1])])
    (figure,) = figures
    check_readable(figure)
    left, right = figure.axes[1].get_xlim()
    assert [tick for tick in figure.axes[1].get_xticks() if left <= tick <= right] == [1]


def test_errors_of_a_series_are_in_standard_deviations(tmp_path, figures):
    curves_picture(tmp_path / "series.png", [curve("sunspots", unit="std")])
    loss, accuracy = figures[0].axes
    assert loss.get_ylabel() == "mean squared error (std²)"
    assert accuracy.get_ylabel() == "accuracy\n(within ±0.1 std)"


def own_curve(name: str, **changed: float) -> Curve:
    """Of a task of the user's own, which counts no correct predictions."""
    losses = {"train_loss": 0.2, "test_loss": 0.1, **changed}
    return Curve(
        name, history=[{"epoch": i, "step": i, **losses} for i in (1, 2)], resumed_after=[]
    )


def test_a_task_of_ones_own_has_no_baseline_and_may_have_no_accuracy(tmp_path, figures):
    curves_picture(tmp_path / "own.png", [own_curve("own")])
    curves_picture(tmp_path / "negative.png", [own_curve("own", test_loss=-3.0)])
    counted = own_curve("counted", train_accuracy=0.5, test_accuracy=0.6)
    curves_picture(tmp_path / "both.png", [own_curve("own"), counted])
    for figure in figures:
        check_readable(figure)
        assert figure.axes[0].get_ylabel() == "loss"
        assert figure.axes[-1].get_xlabel() == "epoch"
        assert styles(figure) == ["test", "train"]
        assert all(not lines(axes, "-.") for axes in figure.axes)
    both = figures[2]
    assert [len(figure.axes) for figure in figures] == [1, 1, 2]
    assert [f.axes[0].get_yscale() for f in figures] == ["log", "linear", "log"]
    assert both.axes[1].get_ylabel() == "accuracy"
    assert not colored(both.axes[1], BLUE)
    (accuracy,) = colored(both.axes[1], RED)
    assert accuracy[:, 1].tolist() == [0.6, 0.6]


def test_a_run_of_ones_own_task_is_drawn_without_its_code(tmp_path, figures):
    """Its curves only: there is no series to draw, and the file of its code is gone."""
    own = '[task]\nbuild = "gone.py:build"\nwidth = 3\n'
    config = to_toml(load_config()).replace('[task]\nbuild = ""\n', own)
    assert own in config
    (tmp_path / "config.toml").write_text(config)
    losses = {"train_loss": 0.2, "test_loss": 0.1, "train_samples": 9, "test_samples": 9}
    line = json.dumps({"epoch": 1, "step": 4, **losses, "epoch_s": 0.1, "samples_per_s": 1.0})
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    (tmp_path / "model.safetensors").touch()
    pictures = Pictures(enabled=True, folder=tmp_path)
    assert pictures.draw() == "pictures: curves.png"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["curves.png"]
    (figure,) = figures
    check_readable(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss"]
    assert not lines(figure.axes[0], "-.")


def test_train_and_test_differ_without_colours():
    def lightness(color: str) -> float:
        return float(np.dot([0.299, 0.587, 0.114], to_rgb(color)))

    assert all(lightness(tint(color)) - lightness(color) > 0.15 for color in COLORS)


def test_very_long_names_are_wrapped(tmp_path, figures):
    names = [f"{'a/path/' * 20}{number}" for number in range(2)]
    curves_picture(tmp_path / "two.png", [curve(name) for name in names])
    curves_picture(tmp_path / "one.png", [curve(names[0])])
    for figure in figures:
        check_readable(figure)


def test_six_runs_with_long_names(tmp_path, figures):
    """Their legend leaves half of the picture to the curves."""
    names = [f"a run with quite a long name {number}" for number in range(6)]
    curves = [curve(name, baseline=(i / 10, i / 10)) for i, name in enumerate(names, start=1)]
    curves_picture(tmp_path / "six.png", curves)
    (figure,) = figures
    check_readable(figure)
    assert sum(axes.get_position().height for axes in figure.axes) > 0.5


def test_runs_of_one_name_are_told_apart_by_their_paths(trained_run, tmp_path, figures):
    same = shutil.copytree(trained_run, tmp_path / "x" / "run")
    output = tmp_path / "two.svg"
    assert plot.main([str(trained_run), str(same), "--output", str(output)]) == 0
    named = ["".join(label.split()) for label in legend(figures[0])]  # long paths are wrapped
    assert named == [str(trained_run), str(same)]


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


def test_windows_of_a_series_name_their_quantity(tmp_path, figures, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    arguments = ["data", "--config", "configs/sunspots.toml"]
    assert plot.main([*arguments, "--output", str(tmp_path / "windows.png")]) == 0
    assert figures[0].axes[0].get_ylabel() == "sunspots"
    np.savetxt(tmp_path / "a.csv", np.sin(np.arange(99.0)), header="load", comments="")
    alone = ["data", "--data.source", str(tmp_path / "a.csv"), "--data.window", "5"]
    sizes = ["--data.train_size", "40", "--data.test_size", "20"]
    assert plot.main([*alone, *sizes, "--output", str(tmp_path / "alone.png")]) == 0
    assert figures[1].axes[0].get_ylabel() == "load"


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_other_formats_are_in_the_help(ending, start, tmp_path, capsys):
    picture = tmp_path / f"windows.{ending}"
    assert plot.main(["data", "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(start)
    for command in (plot, forecast):
        capsys.readouterr()
        assert command.main(["--help"]) == 0
        assert f".{ending}" in capsys.readouterr().out


def test_pictures_have_twice_the_pixels_of_a_web_page(tmp_path):
    assert plot.main(["data", "--output", str(tmp_path / "windows.png")]) == 0
    size = struct.unpack(">II", (tmp_path / "windows.png").read_bytes()[16:24])
    assert size == (1600, 1000)


def test_words_of_a_forecast_are_readable(trained_run, tmp_path, figures):
    run = shutil.copytree(trained_run, tmp_path / "run")
    Pictures(enabled=True, folder=run).draw()
    assert len(figures) == 3
    for figure in figures:
        check_readable(figure)


@pytest.mark.parametrize("stamp", ["", "{}", "{}-01", "{}-01-31", "{}-01-31 13:00:00+02:00"])
@pytest.mark.parametrize("steps", [1, 24, 300])
def test_the_future_has_a_fan_and_times_that_are_readable(stamp, steps, tmp_path, figures):
    random = np.random.default_rng(steps)
    known, values = 1e5 + random.normal(size=24), 1e5 + random.normal(size=steps)
    times = [stamp.format(1900 + i) for i in range(24 + steps)] if stamp else ()
    fan = Fan(values[:20] + np.array([[-3], [-1], [2], [4]]), 30)
    future = Forecast(known, values, np.empty(0), period=12.0, times=times, from_end=True, fan=fan)
    forecast_picture(tmp_path / "a.png", future, quantity="load")
    (figure,) = figures
    check_readable(figure)
    (axes,) = figure.axes
    before, predicted, _ = axes.lines
    assert before.get_xdata().tolist() == list(range(-23, 1))
    assert predicted.get_xdata().tolist() == list(range(1, steps + 1))
    labels = [text.get_text() for text in axes.legend_.get_texts()]
    assert labels == ["known values", "forecast", "80 %", "50 %"]
    shown = [axes.xaxis.get_major_formatter()(place) for place in axes.get_xticks()]
    if stamp:
        assert len([text for text in shown if text]) >= 2
        assert axes.xaxis.get_major_formatter()(0) == times[23]
    else:
        assert axes.get_xlabel() == "time steps after the end of the file"


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


def test_pictures_that_matplotlib_cannot_draw_are_one_sentence(trained_run, tmp_path):
    """The exit code is the run's, also of the same command again."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    settings = {**launching.SMALL, "output.dir": "run", "output.plots": "true"}
    no_latex = {"MATPLOTLIBRC": "matplotlibrc", "MPLCONFIGDIR": str(tmp_path), "PATH": "/nowhere"}
    words = [sys.executable, "-m", "sinlstm_dist.train", *launching.flags(settings)]
    for _ in range(2):
        ended = launching.run(words, cwd=tmp_path, **no_latex)
        assert (ended.code, ended.stderr) == (0, "")
        told = " ".join(ended.stdout.split())
        assert "pictures cannot be drawn: RuntimeError: Failed to process string with tex" in told
        assert told.count("cannot be drawn") == 1
    launching.check_same(tmp_path / "run", trained_run)


def test_a_picture_that_cannot_be_written_is_an_error(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    (folder / "curves.png").mkdir()
    with pytest.raises(ConfigError, match=r"curves\.png cannot be written: Is a directory"):
        Pictures(enabled=True, folder=folder).draw()


def test_pictures_that_are_off_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    off = Pictures(enabled=False, folder=tmp_path / "absent")
    off.check()
    assert off.draw() == ""
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
    (first, window, _), *_ = windows_to_draw(settings, None)
    expected, _ = SineDataset(size=100, noise=0.3)[first]
    np.testing.assert_array_equal(window, expected[:, 0].numpy())


def test_a_picture_has_the_name_that_was_given(tmp_path):
    """matplotlib adds .png to a name without an ending."""
    picture = tmp_path / "windows"
    assert plot.main(["data", "--output", str(picture)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["windows"]
    assert picture.read_bytes().startswith(b"\x89PNG")
