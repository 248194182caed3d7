"""Runs that learn the differences of a series: everything that a user gives and gets is values."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from launching import command, flags, metrics, run, weights_digest
from nursery import Launch, Nursery
from safetensors.torch import load_file

from sinlstm_dist import evaluate, plot
from sinlstm_dist.config import Data
from sinlstm_dist.data.series import open_series
from sinlstm_dist.differences import Scale
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gallery import windows_to_draw
from sinlstm_dist.model import Predictor
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.trained import read_trained

WINDOW, TRAIN, TEST, PERIOD = 6, 90, 31, 12
SETTINGS = {
    "data.source": "series.csv",
    "data.column": "load",
    "data.window": WINDOW,
    "data.train_size": TRAIN,
    "data.test_size": TEST,
    "data.period": PERIOD,
    "train.global_batch_size": 20,
    "train.epochs": 3,
    "checkpoint.every_epochs": 1,
    "output.dir": "run",
}
DIFFERENCES = [0, 1, 12]


@pytest.fixture
def series(tmp_path: Path) -> np.ndarray:
    """160 values that grow from 1000 on, with a season of 12 steps, in tmp_path/series.csv."""
    steps = np.arange(160)
    noise = np.random.default_rng(3).normal(size=160)
    values = np.round(1000 + 5 * steps + 40 * np.sin(2 * np.pi * steps / PERIOD) + 3 * noise, 2)
    write(tmp_path, values)
    return values


def write(folder: Path, values: np.ndarray) -> None:
    text = "day,load\n" + "".join(f"{day},{v}\n" for day, v in enumerate(values))
    (folder / "series.csv").write_text(text)


@pytest.fixture
def train(nursery: Nursery, tmp_path: Path):
    def started(changes: dict[str, object] | None = None, **keywords) -> Launch:
        return nursery.run(flags({**SETTINGS, **(changes or {})}), cwd=tmp_path, **keywords)

    return started


def settings(path: Path, **keys: object) -> Data:
    sizes = {"window": 2, "train_size": 3, "test_size": 2}
    return Data(source=str(path), **{**sizes, **keys})


# The parts of a file


def test_windows_targets_and_baselines_are_those_of_the_hand(tmp_path):
    """Squares from 0 to 15: one older value, 2 + 2 + 3 train values, 2 + 2 + 2 test values."""
    np.save(tmp_path / "a.npy", np.arange(14.0) ** 2)
    part = open_series(settings(tmp_path / "a.npy", difference=2))
    scale = Scale(0.0, 1.0)
    samples = [
        [window[:, 0].tolist() + target.tolist() for window, target in data]
        for data in (part.train(scale), part.test(scale))
    ]
    # Differences at lag 2: t**2 - (t - 2)**2 = 4 t - 4
    assert samples == [
        [[8, 12, 16], [12, 16, 20], [16, 20, 24]],  # t from 3 on, values from 1 on
        [[36, 40, 44], [40, 44, 48]],  # t from 10 on, values from 8 on
    ]
    assert part.train(scale).values(1).tolist() == [4, 9, 16, 25, 36]
    # The last value again differs by (t-1)**2 - (t-2)**2 = 2 t - 3, and t is 12 and 13
    last = part.test(scale).last_values()
    assert [(w.item(), t.item()) for w, t in last] == [(21, 44), (23, 48)]
    # Five steps ago: (t-5)**2 - (t-2)**2 = 21 - 6 t
    ago = part.before_targets(scale, steps=5)
    assert [(w.item(), t.item()) for w, t in ago] == [(-51, 44), (-57, 48)]
    assert part.before_targets(scale, steps=12)[0][0].item() == 0 - 10**2
    with pytest.raises(ConfigError, match=r"data\.period"):
        part.before_targets(scale, steps=13)


def test_the_scale_is_that_of_the_train_parts_differences_alone(tmp_path):
    values = np.cumsum(np.random.default_rng(0).normal(size=13))
    np.save(tmp_path / "a.npy", values)
    scale = open_series(settings(tmp_path / "a.npy", difference=2)).fit()
    part = values[2:7] - values[:5]
    assert scale == Scale(float(np.float32(part.mean())), float(np.float32(part.std())))
    values[7:] = 1e6
    np.save(tmp_path / "a.npy", values)
    assert open_series(settings(tmp_path / "a.npy", difference=2)).fit() == scale


def test_sizes_need_n_more_values_for_each_part(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=13))
    assert open_series(settings(tmp_path / "a.npy", difference=2)).train_start == 0
    with pytest.raises(
        ConfigError,
        match=r"holds 13 values: .* need 15 with data.difference=3; set them to 2 and 1",
    ):
        open_series(settings(tmp_path / "a.npy", difference=3))
    with pytest.raises(ConfigError, match="a shorter window, or a longer series"):
        open_series(settings(tmp_path / "a.npy", difference=5))


@pytest.mark.filterwarnings("error")
def test_differences_that_teach_nothing_are_refused(tmp_path):
    cases = {
        "5 differences to train on are all 0.2": np.arange(13) * 0.1,  # rounded, so not quite equal
        "5 differences to train on are all 0": np.tile([0.1, 0.7], 7)[:13],
        "float32 cannot hold": np.where(np.arange(13) % 4 < 2, -1.7e308, 1.7e308),
    }
    for message, values in cases.items():
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(ConfigError, match=message):
            open_series(settings(tmp_path / "a.npy", difference=2)).fit()


def test_the_fingerprint_covers_every_value_that_is_used(tmp_path):
    """Also those that are only subtracted, and a change of all that no difference shows."""
    values = np.random.default_rng(0).normal(size=13)

    def fingerprints(array: np.ndarray, difference: int = 2) -> str:
        np.save(tmp_path / "a.npy", array)
        part = open_series(settings(tmp_path / "a.npy", difference=difference))
        return part.train(part.fit()).fingerprint() + part.test(part.fit()).fingerprint()

    seen = {fingerprints(values), fingerprints(values + 1), fingerprints(values, 1)}
    for row in range(13):
        changed = values.copy()
        changed[row] += 1e-12
        seen.add(fingerprints(changed))
    assert len(seen) == 16


# Runs


@pytest.mark.parametrize("difference", [1, 12])
def test_same_bits_on_any_number_of_processes_and_after_kills(difference, train, tmp_path, series):
    keys = {"data.difference": difference}
    assert train({**keys, "output.dir": "one"}).codes == [0]
    assert train({**keys, "output.dir": "three"}, processes=3).codes == [0] * 3
    for processes, step in ((1, 7), (2, 4)):
        kill = [{"rank": 0, "at": step, "of": "step", "do": "kill"}]
        limit = {**keys, "checkpoint.every_steps": 1, "train.timeout_s": 20}
        assert train(limit, processes=processes, faults=kill).codes[0] == -9
    assert train(keys, processes=2).codes == [0, 0]
    runs = [tmp_path / name for name in ("one", "three", "run")]
    assert len({weights_digest(run) for run in runs}) == 1
    assert metrics(runs[0]) == metrics(runs[1]) == metrics(runs[2])


FIRST = 160 - TRAIN - TEST - 2 * (WINDOW + 12)  # the first value of the train part


@pytest.mark.parametrize("row", [FIRST, 160 - TEST - WINDOW - 12], ids=["of train", "of test"])
def test_values_that_are_only_subtracted_may_not_change_either(row, train, tmp_path, series):
    keys = {"data.difference": 12}
    assert train(keys).codes == [0]
    before = series.copy()
    series[row] += 0.01
    write(tmp_path, series)
    ended = train({**keys, "train.epochs": 4}, processes=2)
    assert ended.codes == [2, 2]
    assert "was trained on other values than series.csv holds now" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    before[FIRST - 1] += 1  # no part has it
    write(tmp_path, before)
    assert train({**keys, "train.epochs": 4}).codes == [0]


def test_another_difference_is_another_run(train, series):
    assert train().codes == [0]
    ended = train({"data.difference": 1, "train.epochs": 4})
    assert ended.codes == [2]
    assert "data.difference was 0 and is 1" in ended.stderr


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_run_predicts_values(difference, train, tmp_path, series, monkeypatch):
    """Its losses, `evaluate`, the closing table, forecasts and pictures against numpy alone."""
    ended = train({"data.difference": difference})
    assert ended.codes == [0]
    monkeypatch.chdir(tmp_path)
    context = difference + WINDOW
    part = series[-TEST - context - TRAIN - context : -TEST - context]
    seen = part[difference:] - part[:-difference] if difference else part
    weights = load_file("run/model.safetensors")
    assert weights["scaling.mean"].item() == pytest.approx(seen.mean(), rel=1e-6)
    assert weights["scaling.std"].item() == pytest.approx(seen.std(), rel=1e-6)

    model = Predictor.from_pretrained("run")
    ends = np.arange(len(series) - TEST, len(series))
    predictions = model.predict(np.stack([series[end - context : end, None] for end in ends]))[:, 0]
    errors = np.abs(predictions - series[-TEST:])
    record = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["test_loss"] == pytest.approx(np.square(errors / seen.std()).mean(), rel=1e-4)

    with join_world(timeout_s=20, one_thread=True) as world:
        found = evaluate.evaluate_trained(read_trained(Path("run")), world=world)
    last = np.abs(series[-TEST:] - series[-TEST - 1 : -1])
    ago = np.abs(series[-TEST:] - series[-TEST - PERIOD : -PERIOD])
    assert found.model.mean_error == pytest.approx(errors.mean(), rel=1e-4)
    assert found.last_value.mean_error == pytest.approx(last.mean(), rel=1e-4)
    assert found.period_ago.mean_error == pytest.approx(ago.mean(), rel=1e-4)
    assert found.notes == []
    sectors = (np.arange(context, context + TEST) * 12 // PERIOD) % 12
    assert found.model.samples.tolist() == np.bincount(sectors, minlength=12).tolist()

    (row,) = [line for line in ended.stdout.splitlines() if "test, last value again" in line]
    loss = float(row.split("│")[2])
    assert loss == pytest.approx(np.square(last / seen.std()).mean(), rel=1e-4)
    assert found.last_value.totals.loss == pytest.approx(loss, rel=1e-4)

    trained = read_trained(Path("run"))
    for first, window, target in windows_to_draw(trained.config.data, trained.series):
        assert [*window, target] == part[first : first + context + 1].tolist()

    far = read_trained(Path("run")).forecast(steps=TEST)
    assert far.truth.tolist() == series[-TEST:].tolist()
    known = list(series[-TEST - context : -TEST])
    for value in far.values:
        window = np.array(known[-context:]).reshape(1, -1, 1)
        assert value == pytest.approx(model.predict(window).item(), rel=1e-5)
        known.append(value)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_command_knows_it(difference, train, tmp_path, series):
    """Also on a wide machine: nothing but a note or an error may be printed on stderr."""
    keys = {**SETTINGS, "data.difference": difference}
    data = {key: value for key, value in keys.items() if key.startswith("data.")}
    assert train({"data.difference": difference}).codes == [0]
    lines = {
        "evaluate": ["run"],
        "forecast": ["run", "--from", "end", "--steps", "30", "--csv", "a.csv"],
        "plot": ["run"],
        "export": ["run", "--output", "a.onnx"],
        "compare": ["run"],
    }
    for module, arguments in lines.items():
        words = command(*arguments, module=f"sinlstm_dist.{module}")
        ended = run(words, cwd=tmp_path)
        assert (ended.code, ended.stderr) == (0, ""), module
    drawn = run(command("data", *flags(data), module="sinlstm_dist.plot"), cwd=tmp_path)
    assert drawn.code == 0, drawn.stderr
    assert (tmp_path / "windows.png").exists()


def test_another_difference_than_the_runs_is_refused(train, tmp_path, series, monkeypatch, capsys):
    assert train({"data.difference": 1}).codes == [0]
    monkeypatch.chdir(tmp_path)
    for main in (evaluate.main,):
        assert main(["run", "--data.difference", "12"]) == 2
        told = capsys.readouterr().err
        assert "data.difference=12" in told
        assert len(told.splitlines()) == 1
    assert plot.main(["run"]) == 0


# What a run has seen


def evaluated(tmp_path: Path, *arguments: object) -> tuple[int, str, str]:
    words = command("run", *map(str, arguments), module="sinlstm_dist.evaluate")
    ended = run(words, cwd=tmp_path)
    return ended.code, ended.stdout, ended.stderr


def notes(text: str) -> list[str]:
    return [line.removeprefix("note: ") for line in text.splitlines() if line.startswith("note")]


@pytest.mark.parametrize("difference", [0, 12])
def test_test_windows_that_the_run_has_seen_are_counted(difference, train, tmp_path, series):
    """Every size against sets of indices, for a file that stays as it is or has grown."""
    from sinlstm_dist.seen import Seen

    sizes = {"window": 3, "train_size": 20, "test_size": 5, "difference": difference}
    np.save(tmp_path / "a.npy", series[:80])
    old = Data(source=str(tmp_path / "a.npy"), **sizes)
    part = open_series(old)
    trained_on = set(range(part.train_start, part.test_start))
    seen = Seen(old, part.record())
    for grown in (0, 1, 7, 40):
        np.save(tmp_path / "a.npy", series[: 80 + grown])
        for test_size in (1, 5, 6, 20, 27, 37):
            for window in (1, 3, 8):
                keys = {**sizes, "test_size": test_size, "window": window, "train_size": 2}
                now = open_series(Data(source=str(tmp_path / "a.npy"), **keys))
                windows = [
                    set(range(now.test_start + i, now.test_start + i + difference + window + 1))
                    for i in range(test_size)
                ]
                common = sum(not trained_on.isdisjoint(window) for window in windows)
                found = seen.notes(now)
                assert ("has grown" in str(found)) == (grown > 0)
                said = [note for note in found if "hold values that the run was trained on" in note]
                assert [int(note.split()[0]) for note in said] == ([common] if common else [])


def test_evaluate_says_what_the_run_has_seen(train, tmp_path, series):
    assert train({"data.difference": 1}).codes == [0]
    sizes = ["--data.train_size", 9, "--data.test_size", 100]
    code, told, _ = evaluated(tmp_path, *sizes)
    assert code == 0
    assert notes(told) == [
        "69 of the 100 test windows hold values that the run was trained on: these figures are "
        "not those of new values"
    ]
    newest = max((tmp_path / "run" / "checkpoints").iterdir()).relative_to(tmp_path)
    words = command(str(newest), *map(str, sizes), module="sinlstm_dist.evaluate")
    assert notes(run(words, cwd=tmp_path).stdout) == notes(told)

    write(tmp_path, np.append(series, [1800, 1803, 1807]))
    assert notes(evaluated(tmp_path)[1]) == [
        "series.csv has grown by 3 values since the run was trained"
    ]
    series[-1] += 0.01
    write(tmp_path, series)
    (note,) = notes(evaluated(tmp_path)[1])
    assert note.startswith("series.csv holds other values than the run was trained on")
    words = command("run", "--from", "test", module="sinlstm_dist.forecast")
    assert notes(run(words, cwd=tmp_path).stdout) == [note]


def test_the_unit_of_mase_is_that_of_the_train_part_of_the_run(train, tmp_path, series):
    assert train().codes == [0]

    def unit(path: str = "run") -> float:
        found = read_trained(tmp_path / path, {"data.source": str(tmp_path / "series.csv")})
        backtest = found.backtest(steps=1)
        assert backtest is not None
        return backtest.unit

    before = unit()
    write(tmp_path, np.append(series, [1800, 1803, 1907]))
    assert unit() == before
    series[70:] *= 2  # other values: those of the run are not in the file any more
    write(tmp_path, series)
    assert unit() > 1.5 * before


def test_a_run_of_an_older_version_is_taken_for_unchanged(train, tmp_path, series):
    assert train().codes == [0]
    starts = tmp_path / "run" / "starts.jsonl"
    start = json.loads(starts.read_text())
    assert start.pop("data")["values"] == 160
    starts.write_text(json.dumps(start) + "\n")
    assert notes(evaluated(tmp_path)[1]) == []
    (note,) = notes(evaluated(tmp_path, "--data.train_size", 9, "--data.test_size", 100)[1])
    assert note.startswith("69 of the 100 test windows")


def test_one_impossible_baseline_leaves_its_row_out(train, tmp_path, series):
    assert train().codes == [0]
    code, told, errors = evaluated(tmp_path, "--data.period", 150)
    assert (code, errors) == (0, "")
    (note,) = notes(told)
    assert note.startswith("data.period=150: series.csv begins less than that before")
    assert "the last value again" in told
    assert "150 steps ago" not in told


# What to try


def advised(launch: Launch) -> list[str]:
    """The differences that the line about a better baseline advises; [] if it has none."""
    lines = [line for line in launch.stdout.splitlines() if line.startswith("worse than")]
    return [n for line in lines for n in re.findall(r"try --data\.difference (\d+), more", line)]


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        (lambda t, noise: 10 * t + noise, ["1"]),
        (lambda t, noise: 5 * t + 100 * np.sin(2 * np.pi * t / PERIOD) + noise, ["12"]),
        (lambda t, noise: np.where(t < 123, noise, 3 + 0.01 * t), []),  # differences deviate more
    ],
    ids=["trend", "season", "neither"],
)
def test_a_run_that_a_baseline_beats_says_what_to_try(values, difference, train, tmp_path):
    steps, noise = np.arange(160), np.random.default_rng(0).normal(size=160)
    write(tmp_path, values(steps, noise))
    untrained = {"optim.lr": 1e-9, "train.epochs": 1}
    ended = train(untrained)
    assert 'worse than "last value again"' in ended.stdout
    assert advised(ended) == difference
    assert advised(train({**untrained, "data.difference": 1, "output.dir": "differences"})) == []


def test_what_is_advised_helps(train, tmp_path, series):
    assert advised(train()) == ["12"]
    helped = train({"data.difference": 12, "output.dir": "differences", "train.epochs": 30})
    assert "worse than" not in helped.stdout
