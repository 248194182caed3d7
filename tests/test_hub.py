"""Predictors to and from folders and the Hub's cache; no test uses the network."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import SMALL, flags, summary
from nursery import Nursery
from safetensors.torch import load_file, save_file

from sinlstm_dist.card import write_card
from sinlstm_dist.config import read_config
from sinlstm_dist.data.source import datasets, open_source
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.model import Predictor
from sinlstm_dist.run.record import Summary
from sinlstm_dist.sections import Task

WINDOWS = torch.linspace(-1, 1, 36).reshape(3, 12, 1)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def run(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    settings = {**SMALL, "model.hidden_size": 7, "output.dir": "run"}
    assert nursery.run(flags(settings), cwd=folder).codes == [0]
    return folder / "run"


def check_same(first: Predictor, second: Predictor) -> None:
    assert list(first.state_dict()) == list(second.state_dict())
    torch.testing.assert_close(first(WINDOWS), second(WINDOWS), rtol=0, atol=0)


def test_a_run_folder_and_its_checkpoints_are_models(run):
    model = Predictor.from_pretrained(run)
    assert not model.training
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in load_file(run / "model.safetensors").items()
    }
    check_same(model, Predictor.from_pretrained(str(max((run / "checkpoints").iterdir()))))


def test_what_is_saved_is_the_same_model_with_a_card(run, tmp_path):
    model = Predictor.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"```toml\n{(run / 'config.toml').read_text().partition('[output]')[0].strip()}" in card
    metrics = summary(run)["metrics"]
    assert "| windows | mean squared error | accuracy | number |\n| --- | --- | --- | --- |" in card
    assert f"| test | {metrics['test_loss']:.4e} | {metrics['test_accuracy']:.4f} | 101 |" in card
    again = Predictor.from_pretrained(tmp_path / "saved")
    check_same(model, again)
    assert again.card == card


def test_a_card_has_no_accuracy_that_was_not_counted(run):
    ended = Summary(**summary(run))
    metrics = {name: value for name, value in ended.metrics.items() if "accuracy" not in name}
    ended = replace(ended, metrics=metrics)
    sizes = {"input_size": 1, "output_size": 1, "scaled": False, "difference": 0}
    card = write_card(sizes=sizes, config=read_config(run / "config.toml"), ended=ended)
    assert "| windows | mean squared error | number |\n| --- | --- | --- |\n| train | " in card
    assert f"| test | {metrics['test_loss']:.4e} | 101 |\n" in card


@pytest.fixture(scope="module")
def series_run(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file that is named by its absolute path, as are its starting weights."""
    folder = tmp_path_factory.mktemp("alice")
    values = 400 + 40 * np.sin(np.arange(300) / 5)
    (folder / "load.csv").write_text("\n".join(["MW", *(repr(v) for v in values.tolist())]))
    Predictor().save_pretrained(folder / "start")
    settings = {
        **SMALL, "data.source": folder / "load.csv", "data.column": "MW", "data.train_size": 200,
        "data.test_size": 50, "data.period": 31, "output.dir": folder / "run",
        "train.init_from": folder / "start" / "model.safetensors", "train.global_batch_size": 20,
    }  # fmt: skip
    del settings["data.noise"]
    assert nursery.run(flags(settings), cwd=folder).codes == [0]
    return folder / "run"


def test_a_forecast_reads_the_window_of_the_training(run, series_run, tmp_path):
    """However much is given, and wherever the model comes from."""
    for trained in (run, series_run):
        model = Predictor.from_pretrained(trained)
        model.save_pretrained(tmp_path / trained.parent.name)
        (tmp_path / trained.parent.name / "config.json").unlink()  # the weights say it themselves
        moved = shutil.copytree(max((trained / "checkpoints").iterdir()), tmp_path / "moved")
        values = 400 + 40 * np.sin(np.arange(30) / 5)
        for source in (trained, moved, tmp_path / trained.parent.name):
            again = Predictor.from_pretrained(source)
            assert again.window == 12
            expected = again.forecast(values[-12:], 5)
            np.testing.assert_array_equal(again.forecast(values, 5), expected)
            np.testing.assert_array_equal(again.forecast(torch.tensor(values), 5), expected)
            with pytest.raises(ValueError, match=r"shape \(11,\): \(12,\) or \(batch, 12, 1\)"):
                again.forecast(values[:11], 5)
        shutil.rmtree(moved)


def test_a_bare_file_of_weights_has_no_window(run, tmp_path):
    shutil.copy(run / "model.safetensors", tmp_path)
    model = Predictor.from_pretrained(tmp_path)
    assert model.window is None
    values = np.sin(np.arange(30) / 5)
    assert not np.array_equal(model.forecast(values, 5), model.forecast(values[-12:], 5))


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"format": 4}'])
def test_a_damaged_configuration_leaves_the_window_unknown(damaged, run, tmp_path):
    newest = max((run / "checkpoints").iterdir())
    for source, name in ((newest, "state.json"), (run, "config.toml")):
        copy = shutil.copytree(source, tmp_path / name)
        (copy / name).write_text(damaged or "[")
        assert Predictor.from_pretrained(copy).window is None


def python_of(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


def test_the_card_of_a_series_has_its_units_and_no_folder(series_run, tmp_path):
    model = Predictor.from_pretrained(series_run)
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "`windows` and `predictions` are in the units of `MW` of `load.csv`." in card
    assert "model.forecast(windows, steps=12)" in card
    assert "Trained on 1 process, " in card
    assert 'source = "load.csv"' in card
    assert 'init_from = "model.safetensors"' in card
    folders = [*series_run.parents, Path.home(), Path.cwd()]
    assert not [str(part) for part in folders if len(str(part)) > 1 and str(part) in card]
    assert not re.search(r"~|alice|[\"'`(]/", card)

    settings = read_config(series_run / "config.toml").data
    _, test = datasets(settings, open_source(settings))
    windows, targets = test[np.arange(50)]
    units = test.scale.undo
    predictions = model.predict(units(windows.double().numpy()))
    error = np.sqrt(np.mean((predictions - units(targets.double().numpy())) ** 2))
    row = next(line for line in card.splitlines() if line.startswith("| test |")).split(" | ")
    assert float(row[1]) == pytest.approx(error, rel=1e-3)
    assert float(row[2]) == pytest.approx((error / model.scaling.std.item()) ** 2, rel=1e-3)
    assert f"train part ({model.scaling.std.item():.6g} " in card


@pytest.mark.parametrize("source", ["run", "series_run", "checkpoint", "untrained", "differences"])
def test_the_code_of_a_card_runs_as_it_stands(source, run, series_run, tmp_path):
    model = {
        "run": lambda: Predictor.from_pretrained(run),
        "series_run": lambda: Predictor.from_pretrained(series_run),
        "checkpoint": lambda: Predictor.from_pretrained(
            max((series_run / "checkpoints").iterdir())
        ),
        "untrained": lambda: Predictor(3, 4, 2, num_layers=2),
        "differences": lambda: Predictor(scaled=True, difference=7),
    }[source]()
    model.save_pretrained(tmp_path)
    code = python_of((tmp_path / "README.md").read_text())
    assert "model.predict(windows)" in code
    shown = "print(*windows.shape, *predictions.shape)"
    words = [sys.executable, "-W", "error", "-c", f"{code}\n{shown}"]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    window = {"run": 12, "series_run": 12, "checkpoint": 12, "differences": 57}.get(source, 50)
    sizes = (3, 2) if source == "untrained" else (1, 1)
    assert ended.stdout.split() == ["1", str(window), str(sizes[0]), "1", str(sizes[1])], ended
    has_units = "in the units of" in (tmp_path / "README.md").read_text()
    assert has_units == (model.scaling is not None)


def test_the_loss_of_ones_own_task_is_no_squared_error(run):
    ended, config = Summary(**summary(run)), read_config(run / "config.toml")
    own = config.model_copy(
        update={"task": Task(build="/home/alice/my_task.py:build", data="~/a/b")}
    )
    sizes = {"input_size": 1, "output_size": 1, "scaled": False, "difference": 0}
    card = write_card(sizes=sizes, config=own, ended=ended)
    assert "| windows | loss | accuracy | number |" in card
    assert 'build = "my_task.py:build"\ndata = "b"\n' in card
    assert "alice" not in card


@pytest.mark.parametrize("damaged", [b"", b"[]", b"\xff", b'{"metrics": {"epoch": 1}}'])
def test_a_damaged_summary_costs_only_the_figures_of_the_card(damaged, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "summary.json").write_bytes(damaged)
    card = Predictor.from_pretrained(copy).card
    assert "## Configuration" in card
    assert "## Measured" not in card


def test_an_untrained_model_of_any_size_is_saved_too(tmp_path):
    model = Predictor(hidden_size=3, num_layers=2, output_size=4)
    model.save_pretrained(tmp_path)
    check_same(model.eval(), Predictor.from_pretrained(tmp_path))


def test_a_name_on_the_hub_comes_from_its_cache(run, tmp_path):
    repository = tmp_path / "models--someone--sine"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(load_file(run / "model.safetensors"), snapshot / "model.safetensors")
    check_same(
        Predictor.from_pretrained("someone/sine", cache_dir=tmp_path),
        Predictor.from_pretrained(run),
    )


@pytest.mark.parametrize("source", ["someone/unknown", "no/such/folder", "/no/such", "run.toml"])
def test_what_is_neither_a_folder_nor_on_the_hub_is_named(source, tmp_path):
    with pytest.raises(
        ConfigError, match="not a folder here, and the Hub does not provide"
    ) as caught:
        Predictor.from_pretrained(source, cache_dir=tmp_path)
    assert source in str(caught.value)


def test_weights_of_another_model_are_named(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="holds no weights of a Predictor"):
        Predictor.from_pretrained(tmp_path)
    weights = Predictor().state_dict()
    save_file({**weights, "output_layer.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"output_layer\.bias"):
        Predictor.from_pretrained(tmp_path)


def test_a_file_and_an_empty_folder_are_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="is a file: name the run folder"):
        Predictor.from_pretrained(file)
    with pytest.raises(ConfigError, match="holds no model"):
        Predictor.from_pretrained(tmp_path)


def test_training_does_not_import_what_only_sharing_needs():
    program = (
        "import sys, sinlstm_dist.train\n"
        "slow = {'huggingface_hub.hf_api', 'huggingface_hub.hub_mixin', 'onnx', 'tensorboard'}\n"
        "loaded = slow & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
