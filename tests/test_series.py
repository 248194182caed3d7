"""A series of the user's: what is read, how it is parted and scaled, and what a run makes of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import environment, flags, metrics, weights_digest
from nursery import Launch, Nursery
from safetensors.torch import load_file

from sinlstm_dist import evaluate, export
from sinlstm_dist.config import SINE, Data, load_config
from sinlstm_dist.data.reading import read_values
from sinlstm_dist.data.series import Scale, open_series
from sinlstm_dist.errors import ConfigError, RunError
from sinlstm_dist.gallery import windows_to_draw
from sinlstm_dist.model import Predictor
from sinlstm_dist.trained import read_trained

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "data.source": "series.csv",
    "data.column": "load",
    "data.window": 12,
    "data.train_size": 90,
    "data.test_size": 31,
    "data.period": 20,
    "train.global_batch_size": 20,
    "train.epochs": 3,
    "checkpoint.every_epochs": 1,
    "output.dir": "run",
}  # five steps per epoch, the last of them partial


@pytest.fixture
def series(tmp_path: Path) -> np.ndarray:
    """150 values around 1000, five more than are used, in tmp_path/series.csv."""
    steps = np.arange(150)
    noise = np.random.default_rng(3).normal(size=150)
    values = np.round(1000 + 40 * np.sin(2 * np.pi * steps / 20) + 3 * noise, 2)
    write(tmp_path / "series.csv", values)
    return values


def write(path: Path, values: np.ndarray) -> None:
    path.write_text("day,load\n" + "".join(f"{day},{v}\n" for day, v in enumerate(values)))


@pytest.fixture
def train(nursery: Nursery, tmp_path: Path):
    def run(changes: dict[str, object] | None = None, **keywords) -> Launch:
        return nursery.run(flags({**SETTINGS, **(changes or {})}), cwd=tmp_path, **keywords)

    return run


FILES = {
    "names": ("a.csv", "time,load\n1,5\n2,7.5\n", "load"),
    "only column": ("a.csv", "load\n5\n7.5\n", ""),
    "no names": ("a.csv", "2020-01-01,5\n2020-01-02,7.5\n", "2"),
    "no names, one column": ("a.txt", "5\n7.5", ""),
    "semicolons, quotes and spaces": ("a.CSV", '"time" ; "load"\n1; 5\n2 ;7.5 \n\n', "load"),
    "tabs": ("a.tsv", "time\tload\n1\t5\n2\t7.5\n", "load"),
    "a year for a name": ("a.csv", "date,2020\nmonday,5\ntuesday,7.5\n", "2020"),
    "a year for the only name": ("a.csv", "2020\n5\n7.5\n", "2020"),
    "a number that is no name": ("a.csv", "2,5\n3,7.5\n", "2"),
    "byte order mark and comment": ("a.csv", "\ufeff# theirs\n#\nload,b\n5,x\n7.5,\n", "load"),
}


@pytest.mark.parametrize(("name", "text", "column"), FILES.values(), ids=FILES)
def test_reads_what_people_have(name, text, column, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_values(tmp_path / name, column).tolist() == [5.0, 7.5]


def test_reads_arrays(tmp_path):
    for array, column in (([5, 7], ""), ([[5], [7]], ""), ([[0.0, 5], [1, 7]], "2")):
        np.save(tmp_path / "a.npy", np.array(array))
        assert read_values(tmp_path / "a.npy", column).tolist() == [5.0, 7.0]


BAD = {
    "hole": ("a.csv", "time,load\n1,5\n2,\n3,4\n", "row 3: the value is missing"),
    "short row": ("a.csv", "time,load\n1,5\n2\n3,4\n", "row 3: the value is missing"),
    "empty line": ("a.csv", "time,load\n1,5\n\n3,4\n", "row 3: the value is missing"),
    "text": ("a.csv", "# c\ntime,load\n1,5\n2,high\n", 'row 4: "high" is not a number'),
    "nan": ("a.csv", "time,load\n1,NaN\n", "row 2: NaN is not a number to learn from"),
    "infinity": ("a.csv", "time,load\n1,-inf\n", "row 2: -inf is not a number to learn from"),
    "unknown column": (
        "a.csv",
        "time,Load\n1,5\n",
        "no column load: set data.column to one of time",
    ),
    "no values": ("a.csv", "", "holds no values"),
    "missing": ("b.csv", None, "cannot be read: No such file"),
    "not text": ("a.csv", b"\xff\xfe\x00", "cannot be read"),
    "other format": ("a.parquet", b"", 'use "sine", or a file that ends in .csv'),
    "not an array": ("a.npy", b"", "cannot be read"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_named_with_its_row(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_values(path, "load")
    assert f"data.source={path}" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_must_be_chosen_where_there_are_several(tmp_path):
    (tmp_path / "a.csv").write_text("time,load\n1,5\n")
    with pytest.raises(
        ConfigError, match=r"several columns: set data\.column to one of time, load"
    ):
        read_values(tmp_path / "a.csv", "")


def test_bad_arrays_are_named(tmp_path):
    cases = (
        (np.array([1.0, np.nan]), "row 2: nan is not a number to learn from"),
        (np.array(["a"]), "numbers of one dimension"),
        (np.array([None]), "cannot be read"),
        (np.zeros((2, 2, 2)), "of shape"),
    )
    for array, message in cases:
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        with pytest.raises(ConfigError, match=message):
            read_values(tmp_path / "a.npy", "1")


def settings(path: Path, **keys: object) -> Data:
    sizes = {"window": 3, "train_size": 4, "test_size": 2}
    return Data(source=str(path), **{**sizes, **keys})


def test_no_window_has_values_of_both_parts(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(100.0, 115.0))  # three older values are left out
    series = open_series(settings(tmp_path / "a.npy"))
    scale = Scale(0.0, 1.0)
    samples = [
        [window[:, 0].tolist() + target.tolist() for window, target in part]
        for part in (series.train(scale), series.test(scale))
    ]
    assert samples == [
        [[103, 104, 105, 106], [104, 105, 106, 107], [105, 106, 107, 108], [106, 107, 108, 109]],
        [[110, 111, 112, 113], [111, 112, 113, 114]],
    ]
    ago = series.before_targets(scale, steps=5)
    assert [window.item() for window, _ in ago] == [108, 109]
    with pytest.raises(ConfigError, match=r"data\.period"):
        series.before_targets(scale, steps=14)


def test_indices_fetch_batches(tmp_path, series):
    data = open_series(settings(tmp_path / "series.csv", column="load")).train(Scale(1000, 30))
    windows, targets = data[np.array([2, 0, -1])]
    assert windows.shape == (3, 3, 1)
    for row, index in enumerate((2, 0, 3)):
        torch.testing.assert_close(windows[row], data[index][0], rtol=0, atol=0)
        torch.testing.assert_close(targets[row], data[index][1], rtol=0, atol=0)
    with pytest.raises(IndexError):
        data[4]


def test_scaling_is_fitted_on_the_train_part_alone(tmp_path):
    values = np.arange(12.0)
    np.save(tmp_path / "a.npy", values)
    scale = open_series(settings(tmp_path / "a.npy")).fit()
    assert scale == Scale(3.0, float(np.float32(np.arange(7).std())))
    values[7:] = 1e6
    np.save(tmp_path / "a.npy", values)
    assert open_series(settings(tmp_path / "a.npy")).fit() == scale


def test_too_short_and_constant_series_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(12))
    with pytest.raises(ConfigError, match="7 values to train on are all 1"):
        open_series(settings(tmp_path / "a.npy")).fit()
    with pytest.raises(ConfigError, match=r"holds 12 values: .* need 106; set them to 5 and 1"):
        open_series(settings(tmp_path / "a.npy", train_size=98))
    with pytest.raises(ConfigError, match="a shorter window, or a longer series"):
        open_series(settings(tmp_path / "a.npy", window=6))


@pytest.mark.filterwarnings("error")
def test_values_that_cannot_be_scaled_are_refused(train, tmp_path):
    """0.1 has no exact mean, so that the deviation of equal values is not 0."""
    cases = {
        "102 values to train on are all 0.1": np.full(150, 0.1),
        "1e+38 and 3e+39, and float32 cannot hold their mean": np.where(
            np.arange(150) % 2, 1e38, 3e39
        ),
        "-1e+308 and 1e+308, and float32": np.where(np.arange(150) % 2, -1e308, 1e308),
        "0 and 1e-60, and float32": np.where(np.arange(150) % 2, 0, 1e-60),
    }
    for message, values in cases.items():
        np.save(tmp_path / "a.npy", values)
        keys = {"window": 12, "train_size": 90, "test_size": 31}
        with pytest.raises(ConfigError) as caught:
            open_series(settings(tmp_path / "a.npy", **keys)).fit()
        assert message in str(caught.value)
        assert f"data.source={tmp_path / 'a.npy'}" in str(caught.value)
    ended = train({"data.source": "a.npy", "data.column": ""})
    assert ended.codes == [2]
    assert len(ended.stderr.splitlines()) == 1


def test_what_is_of_the_sine_alone_is_refused():
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"data.source": "a.csv", "data.noise": 0.1, "data.test_phase": 0})
    assert "data.noise=0.1 is not for data.source=" in str(caught.value)
    assert "data.test_phase=0.0 is not for data.source=" in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.column=load needs a file"):
        load_config(None, {"data.column": "load"})


def test_the_fingerprint_covers_every_value_that_is_used(tmp_path):
    values = np.arange(12.0)

    def fingerprints(array: np.ndarray) -> str:
        np.save(tmp_path / "a.npy", array)
        series = open_series(settings(tmp_path / "a.npy"))
        return series.train(series.fit()).fingerprint() + series.test(series.fit()).fingerprint()

    seen = {fingerprints(values), fingerprints(values * 2), fingerprints(values + 1)}
    for row in range(12):
        changed = values.copy()
        changed[row] += 0.5
        seen.add(fingerprints(changed))
    assert len(seen) == 15


def test_same_bits_on_any_number_of_processes_and_after_kills(train, tmp_path, series):
    assert train({"output.dir": "one"}).codes == [0]
    assert train({"output.dir": "three"}, processes=3).codes == [0] * 3
    for processes, step in ((1, 7), (2, 4)):
        kill = [{"rank": 0, "at": step, "of": "step", "do": "kill"}]
        limit = {"checkpoint.every_steps": 1, "train.timeout_s": 20}
        assert train(limit, processes=processes, faults=kill).codes[0] == -9
    assert train(processes=2).codes == [0, 0]
    runs = [tmp_path / name for name in ("one", "three", "run")]
    assert len({weights_digest(run) for run in runs}) == 1
    assert metrics(runs[0]) == metrics(runs[1]) == metrics(runs[2])


def test_a_changed_file_is_not_continued(train, tmp_path, series):
    assert train().codes == [0]
    series[-1] += 1
    write(tmp_path / "series.csv", series)
    ended = train({"train.epochs": 4}, processes=2)
    assert ended.codes == [2, 2]
    assert "was trained on other values than series.csv holds now" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_hole_is_told_once_by_all_processes(train, tmp_path, series):
    path = tmp_path / "series.csv"
    path.write_text(path.read_text().replace("149,", "149,oops "))
    ended = train(processes=2)
    assert ended.codes == [2, 2]
    assert len(ended.stderr.splitlines()) == 1
    assert 'series.csv, row 151: "oops' in ended.stderr


def test_a_run_predicts_in_the_units_of_its_series(train, tmp_path, series, monkeypatch):
    assert train().codes == [0]
    monkeypatch.chdir(tmp_path)
    weights = load_file("run/model.safetensors")
    part = series[-145:-43]  # 90 + 12 values, before 31 + 12
    assert weights["scaling.mean"].item() == pytest.approx(part.mean())
    assert weights["scaling.std"].item() == pytest.approx(part.std())
    model = Predictor.from_pretrained("run")
    windows = np.stack([series[-43 + i : -31 + i] for i in range(31)])[..., None]
    predictions = model.predict(torch.from_numpy(windows)).numpy()[:, 0]
    errors = np.abs(predictions - series[-31:])
    record = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert np.square(errors / part.std()).mean() == pytest.approx(record["test_loss"], rel=1e-4)

    assert evaluate.main(["run"]) == 0
    found = evaluated("run")
    assert found.model.mean_error == pytest.approx(errors.mean(), rel=1e-4)
    assert found.last_value.mean_error == pytest.approx(np.abs(np.diff(series)[-31:]).mean())
    ago = np.abs(series[-31:] - series[-51:-20]).mean()
    assert found.period_ago.mean_error == pytest.approx(ago, rel=1e-4)

    sectors = (np.arange(12, 43) * 12 // 20) % 12  # of a target, counted from the test part on
    assert found.model.samples.tolist() == np.bincount(sectors, minlength=12).tolist()

    windows_drawn = windows_to_draw(read_trained(Path("run")).config.data)
    for first, window, target in windows_drawn:
        drawn = [*window, target]
        assert drawn == pytest.approx(series[5 + first : 5 + first + 13], rel=1e-5)

    far = read_trained(Path("run")).forecast(steps=40)
    assert far.truth == pytest.approx(series[-31:], rel=1e-6)
    assert far.values[0] == pytest.approx(predictions[0], rel=1e-5)
    assert len(far.values) == 40

    model.save_pretrained("saved")
    again = Predictor.from_pretrained("saved")
    assert again.predict(torch.from_numpy(windows)).numpy()[:, 0].tolist() == predictions.tolist()
    with pytest.raises(ConfigError, match="has no units for a series"):
        read_trained(Path("run"), {"data.source": SINE, "data.column": ""})


def evaluated(run: str) -> evaluate.Evaluation:
    from sinlstm_dist.processes.joining import join_world

    with join_world(timeout_s=20, one_thread=True) as world:
        return evaluate.evaluate_trained(read_trained(Path(run)), world=world)


def test_weights_of_another_series_start_a_run_with_its_own_scale(train, tmp_path, series):
    assert train().codes == [0]
    write(tmp_path / "series.csv", series * 2)
    start = {"train.init_from": "run/model.safetensors", "output.dir": "other"}
    assert train({**start, "train.epochs": 1}).codes == [0]
    scale = load_file(tmp_path / "other" / "model.safetensors")["scaling.mean"]
    assert scale.item() == pytest.approx(2 * series[-145:-43].mean())


def test_exports_take_and_give_the_units_of_the_series():
    model = Predictor(scaled=True)
    model.scaling.set(1e6, 40.0)
    content = export.to_onnx(model)
    assert export.check(content, model) < 1e-5
    model.scaling.set(1e6, 41.0)
    with pytest.raises(RunError):
        export.check(content, model)


def test_the_sine_is_not_scaled():
    assert not any(name.startswith("scaling") for name in Predictor().state_dict())
    windows = torch.linspace(-1, 1, 24).reshape(2, 12, 1)
    model = Predictor()
    assert torch.equal(model.predict(windows), model(windows))


def test_sunspots_are_predicted_better_than_by_either_baseline(nursery, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert nursery.run(["--config", "configs/sunspots.toml"], cwd=tmp_path).codes == [0]
    monkeypatch.chdir(tmp_path)
    found = evaluated("runs/sunspots")
    for baseline in (found.last_value, found.period_ago):
        assert found.model.mean_error < 0.8 * baseline.mean_error
        assert found.model.totals.loss < 0.8 * baseline.totals.loss
    page = (ROOT / "docs" / "series.md").read_text()
    (example,) = re.findall(r"```python\n([^`]*runs/sunspots[^`]*)```", page)
    ended = subprocess.run(
        [sys.executable, "-c", example], env=environment(), capture_output=True, text=True
    )
    assert abs(float(ended.stdout.split(": ")[1]) - 15.5) < 3, ended.stderr
