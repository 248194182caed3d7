"""The forecast command: its table, its files and its errors."""

import csv
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sinlstm_dist import evaluate, forecast, rollout
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


def test_tables_fit_80_columns(trained_run, capsys):
    assert forecast.main([str(trained_run), "--steps", "600"]) == 0
    assert evaluate.main([str(trained_run)]) == 0
    assert max(len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 80


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
    assert "forecast  1 step from the first test window, " in capsys.readouterr().out


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
        "'xyz' is not supported": [run, "--output", str(tmp_path / "far.xyz")],
        "--train.epochs": [run, "--train.epochs", "3"],
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
