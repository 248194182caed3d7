"""The forecast command: its table, its files and its errors."""

import csv
import re
import shutil
from pathlib import Path

import launching
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from sinlstm_dist import evaluate, forecast, gallery, rollout
from sinlstm_dist.data.sine import TEST_NOISE, SineDataset
from sinlstm_dist.model import Predictor
from sinlstm_dist.rollout import Forecast
from sinlstm_dist.screen import pictures
from sinlstm_dist.screen.pictures import forecast_picture


def test_the_forecast_starts_from_the_first_test_window(trained_run, tmp_path, capsys):
    file = tmp_path / "far.csv"
    assert forecast.main([str(trained_run), "--steps", "130", "--csv", str(file)]) == 0
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [int(row["step"]) for row in rows] == list(range(1, 131))
    data = SineDataset(size=130, window=12, noise=0.02, phase=0.5, stream=TEST_NOISE)
    window, _ = data[0]
    with torch.no_grad():
        first = Predictor.from_pretrained(trained_run)(window[None]).item()
    assert float(rows[0]["forecast"]) == pytest.approx(first, abs=1e-6)
    truth = np.float32([row["truth"] for row in rows])
    np.testing.assert_array_equal(truth, data[np.arange(130)][1][:, 0].numpy())

    printed = capsys.readouterr().out
    listed = re.findall(r"^ *(\d*) +(\d+(?: to \d+)?)  +(\d\.\d+)", printed, flags=re.MULTILINE)
    assert [row[:2] for row in listed] == [
        ("", "1"), ("1", "1 to 60"), ("2", "61 to 120"), ("3", "121 to 130"),
    ]  # fmt: skip
    errors = np.abs([float(row["forecast"]) - float(row["truth"]) for row in rows])
    assert float(listed[1][2]) == pytest.approx(errors[:60].mean(), abs=1e-4)
    assert "reads only the last 12 values" in printed
    assert printed.endswith(f"\nwritten: {file}\n")


@pytest.fixture(scope="module")
def monthly(nursery, tmp_path_factory) -> Path:
    """The folder of a short run on 100 months with a trend; to be read, not changed."""
    folder = tmp_path_factory.mktemp("monthly")
    steps = np.arange(100)
    values = 1e6 + 300 * steps + 9000 * np.sin(2 * np.pi * steps / 12)
    lines = [
        f"{1990 + i // 12}-{i % 12 + 1:02}-01 00:00:00,{v:.1f}\n" for i, v in enumerate(values)
    ]
    (folder / "a.csv").write_text("moment,load\n" + "".join(lines))
    settings = {
        "data.source": str(folder / "a.csv"), "data.column": "load", "data.time": "moment",
        "data.window": 12, "data.train_size": 40, "data.test_size": 34, "data.period": 12,
        "data.difference": 1, "train.epochs": 2, "output.dir": "run",
    }  # fmt: skip
    ended = nursery.run(launching.flags(settings), cwd=folder)
    assert ended.codes == [0], ended.stderr
    return folder / "run"


def test_a_series_is_forecast_from_the_end_of_its_file(monthly, tmp_path, capsys):
    file = tmp_path / "future.csv"
    assert forecast.main([str(monthly), "--steps", "27", "--csv", str(file)]) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert list(rows[0]) == [
        "step", "time", "forecast", "lower_80", "lower_50", "upper_50", "upper_80"
    ]  # fmt: skip
    assert len(rows) == 27
    assert rows[0]["time"] == "1998-05-01 00:00:00"
    assert rows[26]["time"] == "2000-07-01 00:00:00"
    assert [bool(row["lower_80"]) for row in rows] == [True] * 25 + [False] * 2
    values = np.loadtxt(monthly.parent / "a.csv", delimiter=",", skiprows=1, usecols=1)
    expected = Predictor.from_pretrained(monthly).forecast(values[-13:], 27)
    np.testing.assert_allclose([float(row["forecast"]) for row in rows], expected, rtol=1e-8)
    for row in rows[:25]:
        bounds = [float(row[name]) for name in list(row)[3:]]
        assert bounds == sorted(bounds)

    printed = capsys.readouterr().out
    assert "forecast  27 steps after the end of " in printed
    assert "errors of 34 forecasts in the test part; none after step 25, where fewer" in printed
    listed = re.findall(r"^ +(\d+)   (\d+-\d\d-01 00:00:00) ", printed, flags=re.MULTILINE)
    assert [int(step) for step, _ in listed] == [*range(1, 13), 20, 27]
    assert listed[-1][1] == rows[26]["time"]
    assert printed.endswith(f"\nwritten: {file}\n")


def test_a_series_is_forecast_from_its_first_test_window(monthly, tmp_path, capsys):
    """With the truth and its times, also those after the end of the file; without a fan."""
    file = tmp_path / "far.csv"
    arguments = [str(monthly), "--from", "test", "--steps", "40", "--csv", str(file)]
    assert forecast.main(arguments) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert list(rows[0]) == ["step", "time", "forecast", "truth"]
    text = (monthly.parent / "a.csv").read_text().splitlines()[-34:]
    assert [f"{row['time']},{float(row['truth']):.1f}" for row in rows[:34]] == text
    assert {row["truth"] for row in rows[34:]} == {""}
    assert rows[39]["time"] == "1998-10-01 00:00:00"
    assert "fan" not in capsys.readouterr().out
    assert forecast.main([*arguments[:3], "--steps", "3", "--csv", str(file)]) == 0
    times = [line.split(",")[1] for line in file.read_text().splitlines()[1:]]
    assert times == [line.split(",")[0] for line in text[:3]]


def test_two_cycles_are_the_default_from_the_end(monthly, capsys):
    assert forecast.main([str(monthly), "--from", "end"]) == 0
    printed = capsys.readouterr().out
    assert "24 steps after the end of " in printed
    assert "2 cycles of 12 steps" in printed
    assert forecast.main([str(monthly), "--from", "test"]) == 0
    assert "120 steps from the first test window" in capsys.readouterr().out


def test_errors_of_trained_windows_are_noted(monthly, capsys):
    """They would make the fan too narrow."""
    arguments = [str(monthly), "--data.train_size", "20", "--data.test_size", "50"]
    assert forecast.main(arguments) == 0
    assert "hold values that the run was trained on" in capsys.readouterr().out
    few = [str(monthly), "--data.test_size", "9"]
    assert forecast.main(few) == 0
    assert "fan       none: the test part has only 9 forecasts" in capsys.readouterr().out


@pytest.mark.parametrize("level", [0, 5])
def test_a_series_that_stands_still_is_forecast(level, monthly, tmp_path, capsys):
    """With a table and a picture, though its truth has no wave, and no naive forecast an error."""
    lines = (monthly.parent / "a.csv").read_text().splitlines()
    rows = [f"{line.partition(',')[0]},{level}\n" for line in lines[1:]]
    (tmp_path / "still.csv").write_text("moment,load\n" + "".join(rows))
    arguments = [str(monthly), "--data.source", str(tmp_path / "still.csv"), "--steps", "30"]
    picture = tmp_path / "still.png"
    for start in ("end", "test"):
        assert forecast.main([*arguments, "--from", start, "--output", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
    printed = capsys.readouterr().out
    first_cycle = re.search(r"^ +1 +1 to 12 (.*)$", printed, flags=re.MULTILINE)
    assert first_cycle is not None
    assert len(first_cycle[1].split()) == 3  # errors, and neither amplitude nor phase


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(columns, trained_run, monthly, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert forecast.main([str(trained_run), "--steps", "600"]) == 0
    assert evaluate.main([str(trained_run)]) == 0
    for command in (forecast, evaluate):
        assert command.main([str(monthly)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    facts = re.compile(r"(run|data|units|MASE|forecast|fan)  |note: ")  # one line in a file
    assert max(len(line) for line in lines if not facts.match(line)) <= 80


def test_scores_by_horizon_are_shown_for_a_series(monthly, nursery, trained_run, capsys):
    """The same on any number of processes, and by one of them."""
    said = set()
    for processes in (1, 2):
        ended = nursery.run([str(monthly)], cwd=monthly, processes=processes, module="evaluate")
        assert set(ended.codes) == {0}, ended.stderr
        said.add(ended.stdout)
    (printed,) = said
    assert re.findall(r"^ +(\d+)   the model +(\d+) ", printed, flags=re.MULTILINE) == [
        ("1", "34"), ("2", "33"), ("5", "30"), ("10", "25"), ("20", "15")
    ]  # fmt: skip
    assert printed.count("the last 12 steps again") == 1 + 5
    assert evaluate.main([str(trained_run)]) == 0
    assert "MASE" not in capsys.readouterr().out


def test_a_forecast_in_python_has_the_form_of_what_is_given():
    model = Predictor(scaled=True, difference=2)
    window = np.arange(8.0)
    alone = model.forecast(window, 5)
    assert (alone.shape, alone.dtype) == ((5,), np.float64)
    batch = torch.from_numpy(np.stack((window, window + 1))[..., None]).requires_grad_()
    found = model.forecast(batch, 5)
    assert (found.shape, found.dtype, found.requires_grad) == ((2, 5), torch.float64, False)
    np.testing.assert_allclose(found, [alone, alone + 1], atol=1e-5)
    assert Predictor().forecast(torch.zeros(4), 3).dtype == torch.float32
    assert model.forecast(window.astype(np.int64), 5).tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("model", "window", "steps", "message"),
    [
        ({}, np.zeros((3, 4)), 2, r"has shape \(3, 4\): \(window,\) or \(batch, window, 1\)"),
        ({}, np.zeros((3, 4, 2)), 2, r"has shape \(3, 4, 2\)"),
        ({}, np.zeros(0), 2, r"has shape \(0,\)"),
        ({"scaled": True, "difference": 4}, np.zeros(4), 2, r"\(window \+ 4,\) or"),
        ({}, np.zeros(4), 0, "steps=0: 1 or more are needed"),
        ({}, np.array(["a"]), 1, "real numbers are needed"),
        ({"input_size": 2}, np.zeros((1, 4, 2)), 1, "several features"),
        ({"output_size": 2}, np.zeros(4), 1, "several features"),
    ],
)
def test_a_wrong_window_in_python_is_named(model, window, steps, message):
    with pytest.raises(ValueError, match=message):
        Predictor(**model).forecast(window, steps)


def test_a_checkpoint_and_other_data_will_do(trained_run, capsys):
    newest = max((trained_run / "checkpoints").iterdir())
    assert forecast.main([str(trained_run)]) == 0
    of_run = capsys.readouterr().out
    assert "600 steps from the first test window, 10 cycles of 60 steps" in of_run
    assert forecast.main([str(newest)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == of_run.splitlines()[1:]
    assert forecast.main([str(trained_run), "--data.noise", "0.3"]) == 0
    assert capsys.readouterr().out != of_run


def test_ten_thousand_steps_read_each_value_once(trained_run, monkeypatch):
    """What makes it fast: all states read a value together, and none reads a window again."""
    reads, read = [], rollout._Layer.read
    monkeypatch.setattr(rollout._Layer, "read", lambda *a: (reads.append(1), read(*a))[1])
    assert forecast.main([str(trained_run), "--steps", "10000"]) == 0
    assert len(reads) == 12 - 1 + 10_000  # the seed window's values, then the predictions


def test_one_of_two_processes_does_it(trained_run, nursery, tmp_path):
    alone = nursery.run([str(trained_run)], cwd=tmp_path, module="forecast")
    both = nursery.run([str(trained_run)], cwd=tmp_path, processes=2, module="forecast")
    assert both.codes == [0, 0], both.stderr
    assert both.stdout == alone.stdout


def test_one_step_is_one_step(trained_run, capsys):
    assert forecast.main([str(trained_run), "--steps", "1"]) == 0
    assert "forecast  1 step from the first test window\n" in capsys.readouterr().out


def test_a_picture_is_drawn(trained_run, tmp_path):
    for steps in ("1", "30", "2000"):
        file = tmp_path / f"{steps}.png"
        assert forecast.main([str(trained_run), "--steps", steps, "--output", str(file)]) == 0
        assert file.read_bytes().startswith(b"\x89PNG")


def test_cycles_are_drawn_over_their_steps(tmp_path, monkeypatch):
    """On the time axis of the waves; the last cycle is a part of one."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    rng = np.random.default_rng(0)
    values, truth = rng.normal(size=(2, 130))
    forecast_picture(
        tmp_path / "far.png",
        Forecast(rng.normal(size=12), values, truth, period=60.0),
        quantity="sunspots",
    )
    waves, errors = saved[0].axes
    assert waves.get_xlim() == errors.get_xlim()
    seed, true, predicted = (line.get_xydata() for line in waves.lines[:3])
    np.testing.assert_array_equal(seed[:, 0], np.arange(-11, 1))
    np.testing.assert_array_equal(true, np.stack((np.arange(1, 131), truth), axis=1))
    np.testing.assert_array_equal(predicted, np.stack((np.arange(1, 131), values), axis=1))
    off = [np.abs(values - truth)[span] for span in (slice(60), slice(60, 120), slice(120, 130))]
    drawn = {patch.get_label(): patch.get_data() for patch in errors.patches}
    for label, how in {"largest in each cycle": np.max, "mean of each cycle": np.mean}.items():
        np.testing.assert_allclose(drawn[label].values, [how(part) for part in off])
        np.testing.assert_array_equal(drawn[label].edges, [0.5, 60.5, 120.5, 130.5])
    assert waves.get_ylabel() == "sunspots"
    assert errors.get_ylabel() == "absolute error"


def test_bad_input_is_one_line_and_code_2(trained_run, tmp_path, capsys, monkeypatch):
    run, absent = str(trained_run), str(tmp_path / "absent")
    wrong = {
        "absent": [absent],
        "--steps": [run, "--steps", "many"],
        "--steps 0": [run, "--steps", "0"],
        "cannot be written": [run, "--csv", f"{absent}/far.csv"],
        "far.png": [run, "--output", f"{absent}/far.png"],
        "name a .png, .svg or .pdf": [run, "--output", str(tmp_path / "far.xyz")],
        "--train.epochs": [run, "--train.epochs", "3"],
        "the sine has no end": [run, "--from", "end"],
        "invalid choice: 'middle'": [run, "--from", "middle"],
    }

    def check(expected: str, arguments: list[str]) -> None:
        assert forecast.main(arguments) == 2, expected
        errors = capsys.readouterr().err
        assert errors.startswith("error: "), expected
        assert errors.count("\n") == 1, expected
        assert expected in errors

    for expected, arguments in wrong.items():
        check(expected, arguments)
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    check("pip install 'sinlstm-dist[plot]'", [run, "--output", str(tmp_path / "far.png")])


def by_column(text: str) -> dict[str, list[str]]:
    names, *rows = csv.reader(text.splitlines())
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


@settings(deadline=None)
@given(
    st.sampled_from([0.0, 2e10, -2e10, 101_325.0, 3e14, 2e-7]),
    st.lists(st.floats(-1000, 1000), min_size=1),
)
def test_a_csv_file_loses_nothing_that_tells_numbers_apart(base, steps):
    values = base + np.array(steps)
    texts = by_column(forecast.to_csv(Forecast(values, values, values, period=12.0)))
    lost = np.abs(np.array(texts["forecast"], float) - values).max()
    largest = np.abs(values).max()
    assert lost <= 1e-8 * (np.ptp(values) or largest) + 1e-14 * largest
    assert max(len(_digits(text)) for text in texts["forecast"]) <= 15


def _digits(number: str) -> str:
    """Without point, exponent and zeros that say only where the point is."""
    return re.sub("[-.]", "", number.partition("e")[0]).strip("0")


def test_a_csv_file_of_large_numbers_tells_them_apart(monthly, tmp_path):
    """2e10 and some: nine digits would be the same in every cell."""
    lines = (monthly.parent / "a.csv").read_text().splitlines()
    times = [line.partition(",")[0] for line in lines[1:]]
    rows = [f"{time},{20_000_000_000 + 5 * step}\n" for step, time in enumerate(times)]
    (tmp_path / "large.csv").write_text("moment,load\n" + "".join(rows))
    file, arguments = tmp_path / "far.csv", [str(monthly), "--steps", "20", "--from", "test"]
    source = ["--data.source", str(tmp_path / "large.csv"), "--csv", str(file)]
    assert forecast.main([*arguments, *source]) == 0
    found = by_column(file.read_text())
    assert len(set(found["forecast"])) == 20
    truth = [int(float(text)) for text in found["truth"]]
    assert truth == [20_000_000_000 + 5 * step for step in range(66, 86)]


@settings(deadline=None)
@given(
    base=st.sampled_from([0.0, 2e10, -2e10, 101_325.0, 3e14, 2e-7, 5e17]),
    relative=st.floats(1e-10, 1),
    places=st.lists(st.integers(0, 50), max_size=10),
)
def test_a_table_tells_numbers_apart_whose_differences_count(base, relative, places):
    """Those that are apart by a fiftieth of all, as far as 15 digits can."""
    values = base + max(abs(base), 1.0) * relative * np.array([0, 50, *places])
    rows = forecast.future(Forecast(values, values, values[:0], period=12.0))
    texts = dict(zip([row["forecast"] for row in rows], values, strict=False))
    assert len(texts) == len(np.unique(values))
    assert max(len(_digits(text)) for text in texts) <= 15


@pytest.mark.parametrize("size", [1e-3, 1.0, 8e7, 9e14])
def test_a_table_has_one_number_of_decimals_and_no_exponent(size):
    values = size * np.linspace(0.1, 1, 20)
    rows = forecast.future(Forecast(values, values, values[:0], period=12.0))
    texts = [row["forecast"] for row in rows]
    assert not [text for text in texts if "e" in text]
    assert len({len(text.partition(".")[2]) for text in texts}) == 1


def test_a_series_is_drawn_as_far_as_its_test_part(monthly, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery, "draw_forecast", lambda forecast, *_: drawn.append(forecast))
    folder = shutil.copytree(monthly, tmp_path / "run")
    gallery.Pictures(enabled=True, folder=folder).draw()
    assert len(drawn[0].values) == len(drawn[0].truth) == 34
