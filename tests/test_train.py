"""The main job: parity with the article, exact counts on any number of processes, files, exits."""

import contextlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import launching
import numpy as np
import pytest
import tomli
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sinlstm_dist import reduction, stepping, train
from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import TEST_NOISE, SineDataset
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.initial_weights import read_weights
from sinlstm_dist.model import Predictor
from sinlstm_dist.plan import epoch_order
from sinlstm_dist.randomness import states
from sinlstm_dist.run.folder import RunFolder

QUICK = {
    "data.train_size": 60,
    "data.test_size": 30,
    "data.window": 10,
    "train.global_batch_size": 20,
    "train.epochs": 2,
    "checkpoint.every_epochs": 1,
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small matrices: more threads than cores left over would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_main(folder: Path, **settings: object) -> int:
    """`python -m sinlstm_dist.train` in this process; returns its exit code."""
    return train.main(launching.flags({**QUICK, "output.dir": folder, **settings}))


# Parity with the article


class ArticleProgram:
    """The article's training, from its description, in plain PyTorch.

    Given from outside are the starting weights, the order of samples and, with noise, the windows.
    """

    def __init__(self, weights: dict[str, torch.Tensor], *, noise: float) -> None:
        self.rnn = nn.LSTM(input_size=1, hidden_size=5, batch_first=True)
        self.output_layer = nn.Linear(5, 1)
        self.parts = nn.ModuleDict({"rnn": self.rnn, "output_layer": self.output_layer})
        self.parts.load_state_dict(weights)
        self.train = self.windows(350, shift=0.0, noise=noise, stream=0)
        self.test = self.windows(120, shift=0.5, noise=noise, stream=TEST_NOISE)

    @staticmethod
    def windows(size: int, *, shift: float, noise: float, stream: int):
        steps = torch.arange(size, dtype=torch.float64)[:, None] + torch.arange(51) + shift
        series = torch.sin(2 * math.pi * steps / 60.0).float()
        inputs, targets = series[:, :50, None], series[:, 50:]
        if noise:
            noisy = SineDataset(size=size, noise=noise, phase=shift, seed=7, stream=stream)
            inputs = noisy[np.arange(size)][0]
        return inputs, targets

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(inputs)
        return self.output_layer(output[:, -1, :])

    def run(self, *, sampling: str) -> list[dict[str, float]]:
        criterion = nn.MSELoss()
        optimizer = torch.optim.SGD(self.parts.parameters(), lr=0.1)
        records = []
        for epoch in range(5):
            order = epoch_order(seed=3, epoch=epoch, size=350, sampling=sampling)
            loss_sum, correct = 0.0, 0
            for indices in torch.from_numpy(order).split(100):  # the last batch has 50
                inputs, targets = self.train[0][indices], self.train[1][indices]
                predictions = self.predict(inputs)
                loss = criterion(predictions, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.item() * len(indices)
                correct += int(((predictions - targets).abs() < 0.1).sum())
            with torch.no_grad():
                error = self.predict(self.test[0]) - self.test[1]
            records.append({
                "train_loss": loss_sum / 350,
                "train_accuracy": correct / 350,
                "test_loss": error.square().mean().item(),
                "test_accuracy": int((error.abs() < 0.1).sum()) / 120,
            })  # fmt: skip
        return records


@pytest.mark.parametrize("lstm", [launching.FUSED, "torch"])
@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_five_epochs_equal_the_articles(sampling, noise, reduction, lstm, tmp_path):
    torch.manual_seed(11)
    start = {name: value.clone() for name, value in Predictor().state_dict().items()}
    save_file(start, tmp_path / "start.safetensors")
    article = ArticleProgram(start, noise=noise)
    expected = article.run(sampling=sampling)
    summary = train.train(
        load_config(
            overrides={
                "data.train_size": 350, "data.test_size": 120, "data.noise": noise, "data.seed": 7,
                "optim.lr": 0.1, "train.epochs": 5, "train.seed": 3, "train.sampling": sampling,
                "train.reduction": reduction, "model.lstm": lstm,
                "train.init_from": str(tmp_path / "start.safetensors"),
                "output.dir": str(tmp_path / "run"),
            }
        )
    )  # fmt: skip
    assert summary.outcome == "completed"
    found = launching.metrics(tmp_path / "run")
    assert len(found) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)
        assert ours["train_accuracy"] == theirs["train_accuracy"]
        assert ours["test_accuracy"] == theirs["test_accuracy"]
    weights = load_file(tmp_path / "run" / "model.safetensors")
    moved = 0.0
    for name, value in article.parts.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=name)
        moved = max(moved, (value - start[name]).abs().max().item())
    assert moved > 1e-2  # the weights have gone a thousand times farther than they may differ
    assert 0 < expected[-1]["train_accuracy"] < 1  # the accuracies say something


# Counts and losses on 1, 2 and 3 processes

SIZES = {1: 100, 2: 97, 97: 2, 100: 1}  # train windows: test windows
BATCHES = (1, 7, 100)
REDUCTIONS = ("ordered", "ddp")
CASES = [
    f"{reduction}-{size}-{batch}" for reduction in REDUCTIONS for size in SIZES for batch in BATCHES
]


def settings_of(case: str, *, folder: Path) -> dict[str, object]:
    reduction, size, batch = case.split("-")
    return {
        "data.train_size": int(size),
        "data.test_size": SIZES[int(size)],
        "data.window": 10,
        "data.noise": 0.02,
        "train.global_batch_size": int(batch),
        "train.reduction": reduction,
        # 7 pieces are not alike for 2 or 3 processes, in the middle too; "ddp" has no use for them
        "train.virtual_shards": 7 if reduction == "ordered" else 1,
        "train.epochs": 1 if batch == "1" else 2,
        "output.dir": str(folder / case),
    }


def run_cases(folder: Path, *, processes: int) -> None:
    runs = [settings_of(case, folder=folder) for case in CASES]
    if processes == 1:
        for run in runs:
            train.train(load_config(overrides=run))
        return
    (folder / "runs.json").write_text(json.dumps(runs))
    script = str(Path(__file__).with_name("train_many.py"))
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", str(processes)]
    ended = launching.run([*torchrun, script, "runs.json"], cwd=folder)
    assert ended.code == 0, ended.stderr


@pytest.fixture(scope="module")
def world_runs(tmp_path_factory):
    """The metrics of every case on 1, 2 and 3 processes."""
    found = {}
    for processes in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"world{processes}")
        run_cases(folder, processes=processes)
        found[processes] = {case: launching.metrics(folder / case) for case in CASES}
        assert all(launching.summary(folder / c)["world_size"] == processes for c in CASES)
    return found


@pytest.mark.parametrize("case", CASES)
def test_no_sample_is_repeated_or_dropped(case, world_runs):
    _, size, batch = case.split("-")
    for processes in (1, 2, 3):
        for epoch, record in enumerate(world_runs[processes][case], start=1):
            assert record["epoch"] == epoch
            assert record["train_samples"] == int(size)
            assert record["test_samples"] == SIZES[int(size)]
            assert record["step"] == epoch * math.ceil(int(size) / int(batch))


@pytest.mark.parametrize("case", CASES)
def test_losses_do_not_depend_on_the_number_of_processes(case, world_runs):
    alone = world_runs[1][case]
    for processes in (2, 3):
        if case.startswith("ordered"):
            assert world_runs[processes][case] == alone  # bit for bit
        for ours, theirs in zip(world_runs[processes][case], alone, strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
            assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ddp")])
def test_the_two_reductions_agree(case, world_runs):
    ordered = world_runs[1][case.replace("ddp", "ordered")]
    for ours, theirs in zip(world_runs[3][case], ordered, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)


# The run folder


def test_files_of_the_contract(tmp_path):
    run = tmp_path / "run"
    assert run_main(run, **{"data.noise": 0.02}) == 0
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.toml", "metrics.jsonl", "starts.jsonl", "summary.json", "model.safetensors",
        "checkpoints",
    }  # fmt: skip
    config = tomli.loads((run / "config.toml").read_text())
    assert config["data"]["noise"] == 0.02
    assert load_config(run / "config.toml").model_dump(mode="json") == config

    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    fields = {
        "epoch": int, "step": int, "train_loss": float, "train_accuracy": float,
        "test_loss": float, "test_accuracy": float, "train_samples": int, "test_samples": int,
        "epoch_s": float, "samples_per_s": float,
    }  # fmt: skip
    assert [{name: type(value) for name, value in r.items()} for r in records] == [fields] * 2
    assert [(r["epoch"], r["step"], r["train_samples"], r["test_samples"]) for r in records] == [
        (1, 3, 60, 30), (2, 6, 60, 30),
    ]  # fmt: skip
    assert all(min(r["epoch_s"], r["samples_per_s"]) > 0 for r in records)

    summary = launching.summary(run)
    best = min(records, key=lambda record: record["test_loss"])
    assert {key: summary[key] for key in (
        "outcome", "epochs", "step", "metrics", "best", "world_size", "device", "reduction",
    )} == {
        "outcome": "completed", "epochs": 2, "step": 6, "metrics": records[-1], "best": best,
        "world_size": 1, "device": "cuda" if torch.cuda.is_available() else "cpu",
        "reduction": "ordered",
    }  # fmt: skip
    assert summary["reason"]
    assert summary["wall_s"] > 0
    assert summary["versions"]["torch"] == torch.__version__

    shapes = {name: list(t.shape) for name, t in load_file(run / "model.safetensors").items()}
    assert shapes == {name: list(t.shape) for name, t in Predictor().state_dict().items()}
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints == ["step-00000003", "step-00000006"]
    suffixes = {path.suffix for path in (run / "checkpoints").rglob("*.*")}
    assert suffixes == {".safetensors", ".json"}


def test_samples_per_s_is_training_only_and_epoch_s_includes_the_test(tmp_path, monkeypatch):
    """By a clock that only steps and tests move: 2 and 10 s."""
    now = [0.0]

    def new_stepping(*arguments):
        make_steps = stepping.new_stepping(*arguments)

        def timed(batch, progress, **keywords):
            result = make_steps(batch, progress, **keywords)
            now[0] += 2.0 * (result.progress.step - progress.step)
            return result

        timed.most = make_steps.most
        return timed

    def totals_over(*arguments, **keywords):
        now[0] += 10.0
        return reduction.totals_over(*arguments, **keywords)

    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(train, "new_stepping", new_stepping)
    monkeypatch.setattr(train, "totals_over", totals_over)
    run_main(tmp_path / "run")
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [(r["epoch_s"], r["samples_per_s"]) for r in records] == [(16.0, 10.0)] * 2


def test_a_program_draws_on_as_if_it_had_not_trained(tmp_path):
    """Or a random search would try the same again and again."""
    before = states(torch.device("cpu"))
    run_main(tmp_path / "run")
    assert states(torch.device("cpu")) == before


def test_final_weights_are_those_that_were_tested(tmp_path):
    run_main(tmp_path / "run")
    model = Predictor()
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    windows, targets = SineDataset(size=30, window=10, phase=0.5)[np.arange(30)]
    loss = (model(windows) - targets).square().mean().item()
    assert launching.metrics(tmp_path / "run")[-1]["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_train_returns_what_summary_json_has(tmp_path):
    summary = train.train(load_config(overrides={**QUICK, "output.dir": str(tmp_path / "run")}))
    written = launching.summary(tmp_path / "run")
    assert (summary.outcome, summary.metrics, summary.wall_s) == (
        written["outcome"], written["metrics"], written["wall_s"],
    )  # fmt: skip


def test_seeds_decide_the_weights_and_settings_are_not_ignored(tmp_path):
    changes = {
        "same": {}, "seed": {"train.seed": 1}, "data": {"data.noise": 0.1},
        "noise": {"data.noise": 0.1, "data.seed": 1}, "lr": {"optim.lr": 0.1},
        "momentum": {"optim.momentum": 0.9}, "order": {"train.sampling": "replacement"},
        "batch": {"train.global_batch_size": 19}, "period": {"data.period": 50.0},
    }  # fmt: skip
    digests = {}
    for name, change in changes.items():
        run_main(tmp_path / name, **change)
        digests[name] = launching.weights_digest(tmp_path / name)
    assert len(set(digests.values())) == len(changes)
    run_main(tmp_path / "again")
    assert launching.weights_digest(tmp_path / "again") == digests["same"]
    for name, change in {
        "tolerance": {"train.tolerance": 0.9}, "phase": {"data.test_phase": 7.0}
    }.items():  # fmt: skip
        run_main(tmp_path / name, **change)
        assert launching.weights_digest(tmp_path / name) == digests["same"]
        assert launching.metrics(tmp_path / name) != launching.metrics(tmp_path / "same")


# How a command ends


def test_done_and_already_done_are_0(tmp_path, capsys):
    assert run_main(tmp_path / "run") == 0
    weights, metrics = (
        launching.weights_digest(tmp_path / "run"),
        launching.metrics(tmp_path / "run"),
    )
    assert run_main(tmp_path / "run") == 0
    assert launching.weights_digest(tmp_path / "run") == weights
    assert launching.metrics(tmp_path / "run") == metrics
    assert launching.summary(tmp_path / "run")["outcome"] == "completed"
    assert capsys.readouterr().err == ""


def test_below_the_target_is_3(tmp_path, capsys):
    assert run_main(tmp_path / "run", **{"train.target_accuracy": 1.0}) == 3
    summary = launching.summary(tmp_path / "run")
    assert summary["outcome"] == "failed"
    assert "target_accuracy=1" in summary["reason"]
    assert "target_accuracy=1" in capsys.readouterr().out
    reached = summary["metrics"]["test_accuracy"]
    assert run_main(tmp_path / "other", **{"train.target_accuracy": reached}) == 0


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    # The error grows a hundredfold or so each step; in the first epoch it is still finite.
    code = run_main(run, **{"optim.lr": 100.0, "train.epochs": 500})
    summary = launching.summary(run)
    assert code == 1
    assert summary["outcome"] == "failed"
    assert summary["epochs"] >= 1
    epochs = launching.metrics(run)
    assert len(epochs) == summary["epochs"]
    step = summary["step"] + 1
    assert f"the training loss became inf at step {step}" in summary["reason"]
    assert "a learning rate of 100: try a smaller one, such as 0.01" in summary["reason"]
    assert summary["reason"] in capsys.readouterr().out
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == [f"step-{3 * (len(epochs) + i):08d}" for i in (-1, 0) if len(epochs) + i]
    assert not (run / "model.safetensors").exists()


def refused(folder: Path, capsys, **settings: object) -> str:
    """The one message of a start that is refused with code 2."""
    assert run_main(folder, **settings) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("kind", ["missing", "folder", "no safetensors", "shapes", "names"])
def test_starting_weights_that_do_not_fit_are_refused(kind, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    weights = {name: value.clone() for name, value in Predictor().state_dict().items()}
    if kind == "folder":
        path.mkdir()
    elif kind == "no safetensors":
        path.write_text("weights")
    elif kind == "shapes":
        save_file(Predictor(hidden_size=6).state_dict(), path)
    elif kind == "names":
        weights["output_layer.offset"] = weights.pop("output_layer.bias")
        save_file(weights, path)
    message = refused(tmp_path / "run", capsys, **{"train.init_from": path})
    assert f"train.init_from={path}" in message
    if kind == "shapes":
        assert "rnn.weight_hh_l0" in message
        assert "[24, 6]" in message
        assert "[20, 5]" in message
    if kind == "names":
        assert "output_layer.offset" in message
    assert not (tmp_path / "run").exists()


def two_lines(message: str) -> str:
    """The code that a message names: its last two lines."""
    return "\n".join(line.strip() for line in message.splitlines()[-2:])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("name", ["it's.pt", "pytorch_model.bin", "last.ckpt"])
def test_a_pytorch_file_is_converted_by_the_lines_of_the_message(
    name, old_format, prefix, tmp_path, capsys
):
    path, model = tmp_path / name, Predictor()
    weights = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    torch.save(weights, path, _use_new_zipfile_serialization=not old_format)
    assert run_main(tmp_path / "run", **{"train.init_from": path}) == 2
    message = capsys.readouterr().err
    assert f"error: train.init_from={path}: is a PyTorch file" in message
    subprocess.run([sys.executable, "-W", "error", "-c", two_lines(message)], check=True)
    found = read_weights(path.with_suffix(".safetensors"), model)
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("model", [Predictor(), Predictor(scaled=True), nn.Linear(2, 1)])
def test_names_of_a_wrapped_model_are_converted_by_the_lines_of_the_message(
    model, prefix, tmp_path
):
    path = tmp_path / "w.safetensors"
    save_file({f"{prefix}{key}": value for key, value in model.state_dict().items()}, path)
    with pytest.raises(ConfigError, match=f'its names begin with "{prefix}"') as caught:
        read_weights(path, model)
    subprocess.run([sys.executable, "-W", "error", "-c", two_lines(str(caught.value))], check=True)
    found = read_weights(tmp_path / "w-converted.safetensors", model)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.items())


def test_an_optimizers_file_and_a_folder_name_the_weights(tmp_path):
    save_file({"rnn.weight_ih_l0.momentum": torch.zeros(3)}, tmp_path / "optimizer.safetensors")
    for path, what in ((tmp_path / "optimizer.safetensors", "optimizer"), (tmp_path, "folder")):
        with pytest.raises(ConfigError, match=rf"{what}.* model\.safetensors"):
            read_weights(path, Predictor())


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert "is a file: choose a folder" in refused(tmp_path / "run", capsys)
    assert "cannot be written" in refused(tmp_path / "run" / "below", capsys)
    assert (tmp_path / "run").read_text() == "mine"


def test_an_unwritable_folder_is_refused(tmp_path, capsys):
    assert "cannot be written" in refused(Path("/proc/sinlstm-dist"), capsys)


def test_a_used_folder_is_not_used_again_if_it_must_not_be(tmp_path, capsys):
    run_main(tmp_path / "run")
    before = launching.content(tmp_path / "run")
    capsys.readouterr()
    message = refused(tmp_path / "run", capsys, **{"checkpoint.resume": "never"})
    assert "already holds a run" in message
    assert launching.content(tmp_path / "run") == before


def test_a_folder_of_another_run_is_refused(tmp_path, capsys):
    run_main(tmp_path / "run")
    before = launching.content(tmp_path / "run")
    capsys.readouterr()
    message = refused(tmp_path / "run", capsys, **{"optim.lr": 0.5})
    assert "optim.lr was 0.01 and is 0.5" in message
    assert launching.content(tmp_path / "run") == before


def test_another_run_is_refused_where_no_checkpoint_is_left_too(tmp_path, capsys):
    run_main(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = launching.content(tmp_path / "run")
    capsys.readouterr()
    assert "train.seed was 0 and is 9" in refused(tmp_path / "run", capsys, **{"train.seed": 9})
    assert launching.content(tmp_path / "run") == before
    assert run_main(tmp_path / "run", **{"train.epochs": 3}) == 0
    assert "no whole checkpoint is left: the run starts" in capsys.readouterr().out


def test_a_misspelt_tracker_costs_a_finished_run_nothing(tmp_path, capsys):
    run_main(tmp_path / "run")
    before = launching.content(tmp_path / "run")
    capsys.readouterr()
    message = refused(tmp_path / "run", capsys, **{"output.trackers": "tensorbord"})
    assert "output.trackers=tensorbord is unknown" in message
    assert launching.content(tmp_path / "run") == before


def test_of_two_that_start_at_once_the_second_leaves_the_folder_alone(tmp_path, monkeypatch):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", lambda path: False)  # it looked before the first made it
        with pytest.raises(ConfigError, match="in use"):
            second.claim()
    second.close()
    assert (tmp_path / "run").is_dir()
    first.close()
    assert not (tmp_path / "run").exists()


def test_a_stop_file_of_a_complete_run_is_not_kept_for_a_later_one(tmp_path, capsys):
    run_main(tmp_path / "run")
    (tmp_path / "run" / "STOP").touch()
    assert run_main(tmp_path / "run") == 0
    assert run_main(tmp_path / "run", **{"train.epochs": 3}) == 0


def test_a_folder_with_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")
    assert "holds no run" in refused(tmp_path / "run", capsys)
    assert launching.content(tmp_path / "run") == {"letter.txt": b"dear"}


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    run_main(tmp_path / "run")
    before = launching.content(tmp_path / "run")
    capsys.readouterr()
    with contextlib.closing(RunFolder(tmp_path / "run")) as another:
        another.claim()
        assert "is in use" in refused(tmp_path / "run", capsys)
    assert launching.content(tmp_path / "run") == before
    assert run_main(tmp_path / "run") == 0


def test_a_kernel_that_is_not_available_is_refused(tmp_path, capsys):
    settings = {"model.lstm": "fused", "model.hidden_size": 65}
    message = refused(tmp_path / "run", capsys, **settings)
    assert 'model.lstm="fused"' in message
    assert "hidden size 65 > 64" in message
    assert not (tmp_path / "run").exists()


def test_train_raises_config_errors_for_its_python_caller(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        train.train(load_config(overrides={**QUICK, "output.dir": str(tmp_path / "run")}))


def test_larger_models_train(tmp_path):
    assert run_main(tmp_path / "run", **{"model.num_layers": 2, "model.hidden_size": 8}) == 0
    names = load_file(tmp_path / "run" / "model.safetensors")
    assert names["rnn.weight_hh_l1"].shape == (32, 8)


def test_a_run_starts_without_what_it_does_not_need(tmp_path):
    """Each of these costs every start from half a second to two; torch and Accelerate bring them
    in at innocent calls."""
    program = (
        "import sys\n"
        "from sinlstm_dist import train\n"
        "assert train.main(sys.argv[1:]) == 0\n"
        "heavy = ('sympy', 'torch._dynamo', 'torch.distributed.tensor', 'pandas', 'matplotlib',\n"
        "    'triton')\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)\n"
    )
    arguments = launching.flags({**QUICK, "output.dir": tmp_path / "run"})
    ended = launching.run([sys.executable, "-c", program, *arguments], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
