"""A series of the user's: what is read, how it is parted and scaled, and what a run makes of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from launching import environment, flags, metrics, weights_digest
from nursery import Launch, Nursery
from safetensors.torch import load_file

from sinlstm_dist import evaluate, export, forecast
from sinlstm_dist.config import SINE, Data, load_config
from sinlstm_dist.data.series import open_series
from sinlstm_dist.differences import Scale
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
    assert '"oops' in ended.stderr
    assert "in line 151" in ended.stderr


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

    trained = read_trained(Path("run"))
    for first, window, target in windows_to_draw(trained.config.data, trained.series):
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
    (example,) = re.findall(r"```python\n([^`]*sunspots in 2009[^`]*)```", page)
    ended = subprocess.run(
        [sys.executable, "-c", example], env=environment(), capture_output=True, text=True
    )
    assert abs(float(ended.stdout.split(": ")[1]) - 15.5) < 3, ended.stderr


@pytest.mark.parametrize("difference", [1, 12])
def test_exports_learn_differences_and_give_values(difference):
    model = Predictor(scaled=True, difference=difference, num_layers=2)
    model.scaling.set(30.0, 4.0)
    content = export.to_onnx(model)
    assert export.check(content, model) < 1e-5
    walk = np.random.default_rng(0).normal(30, 4, (5, 40 + difference, 1)).cumsum(axis=1)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"windows": walk})
    np.testing.assert_allclose(found, model.predict(walk), rtol=0, atol=1e-5)
    other = Predictor(scaled=True, difference=difference + 1, num_layers=2)
    other.load_state_dict(
        {**model.state_dict(), "scaling.difference": torch.tensor(difference + 1)}
    )
    with pytest.raises(RunError):
        export.check(content, other)


def test_commands_say_which_column_was_taken_and_what_the_reader_did(
    nursery, tmp_path, monkeypatch, capsys
):
    days = np.datetime64("2024-01-01") + np.arange(150)
    lines = [f"{day};{at % 20},5" for at, day in enumerate(days)]
    (tmp_path / "series.csv").write_text("\n".join(["day;level", *reversed(lines)]))
    launch = nursery.run(flags({**SETTINGS, "data.column": ""}), cwd=tmp_path)
    assert launch.codes == [0], launch.stderr
    said = "level of series.csv (decimal commas, newest first in the file: read backwards)"
    assert said in launch.output("stdout")
    monkeypatch.chdir(tmp_path)
    for module in (evaluate, forecast):
        assert module.main(["run"]) == 0
        assert said in capsys.readouterr().out
