"""Evaluation: the numbers of a plain program, the same on any number of processes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import summary
from safetensors.torch import load_file

from sinlstm_dist import evaluate
from sinlstm_dist.data.sine import TEST_NOISE, SineDataset
from sinlstm_dist.evaluate import SECTORS, evaluate_trained
from sinlstm_dist.model import Predictor
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.trained import read_trained

SIZE, WINDOW, PERIOD, TOLERANCE = 101, 12, 60, 0.1  # of launching.SMALL


def evaluated(path: Path, **overrides: object) -> evaluate.Evaluation:
    with join_world(timeout_s=10.0, one_thread=True) as world:
        keys = {key.replace("__", "."): value for key, value in overrides.items()}
        return evaluate_trained(read_trained(path, keys), world=world)


def test_the_numbers_are_those_of_a_plain_program(trained_run):
    result = evaluated(trained_run)
    data = SineDataset(size=SIZE, window=WINDOW, noise=0.02, phase=0.5, stream=TEST_NOISE)
    windows, targets = data[np.arange(SIZE)]
    model = Predictor()
    model.load_state_dict(load_file(trained_run / "model.safetensors"))
    with torch.no_grad():
        error = (model(windows) - targets).abs()[:, 0].numpy()
    steps = np.arange(SIZE) + 0.5 + WINDOW
    sectors = (steps / PERIOD % 1 * 12).astype(int)
    assert result.model.totals.loss == pytest.approx((error**2).mean(), rel=1e-5)
    assert result.model.totals.accuracy == (error < TOLERANCE).mean()
    assert result.model.mean_error == pytest.approx(error.mean(), rel=1e-5)
    for i in range(SECTORS):
        there = error[sectors == i]
        assert result.model.samples[i] == len(there) > 0
        assert result.model.errors[i] == pytest.approx(there.sum(), rel=1e-5)
        assert result.model.largest[i] == pytest.approx(there.max(), rel=1e-5)
    last = (windows[:, -1, 0] - targets[:, 0]).abs().numpy()
    assert result.last_value.mean_error == pytest.approx(last.mean(), rel=1e-6)


def test_the_value_one_period_ago_is_right_but_for_its_noise(trained_run):
    assert evaluated(trained_run, data__noise=0.0).period_ago.largest.max() < 1e-6
    noisy = evaluated(trained_run, data__noise=0.1, data__test_size=20_000).period_ago
    assert noisy.totals.loss == pytest.approx(0.01, rel=0.04)  # 4 standard errors of 20,000
    between = evaluated(trained_run, data__noise=0.0, data__period=60.5).period_ago
    assert between.largest.max() == pytest.approx(2 * np.pi * 0.5 / 60.5, rel=0.01)


def test_a_target_at_the_edge_of_a_sector_opens_it(trained_run):
    exact = evaluated(trained_run, data__test_phase=0.0, data__test_size=600)
    assert exact.model.samples.tolist() == [50] * SECTORS


def test_a_cycle_of_few_steps_leaves_out_empty_sectors(trained_run):
    result = evaluated(trained_run, data__period=4.0, data__test_phase=0.0)
    rows = evaluate.by_position(result)
    assert [row["target at"].split("°")[0].strip() for row in rows] == ["0", "90", "180", "270"]


def test_a_finished_run_and_its_last_checkpoint_have_the_recorded_loss(trained_run):
    own = summary(trained_run)["metrics"]
    newest = max((trained_run / "checkpoints").iterdir())
    for path in (trained_run, newest):
        totals = evaluated(path).model.totals
        assert (totals.loss, totals.accuracy) == (own["test_loss"], own["test_accuracy"])


@pytest.mark.parametrize("lstm", ["auto", "torch"])
def test_any_number_of_processes_says_the_same(lstm, trained_run, nursery):
    arguments = [str(trained_run), "--data.noise", "0.1", "--model.lstm", lstm]
    said = set()
    for processes in (1, 3):
        ended = nursery.run(arguments, cwd=trained_run, processes=processes, module="evaluate")
        assert set(ended.codes) == {0}, ended.stderr
        said.add(ended.stdout)
    assert len(said) == 1
    assert "the value 60 steps ago" in said.pop()


def spoiled(run: Path, to: Path) -> dict[str, tuple[list[str], str]]:
    """What a user may get wrong, and what the one line of answer must hold."""
    unfinished, damaged, torn = (shutil.copytree(run, to / name) for name in ("un", "dam", "torn"))
    (unfinished / "model.safetensors").unlink()
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    checkpoint = max((torn / "checkpoints").iterdir())
    (checkpoint / "model.safetensors").write_bytes(b"")
    return {
        "no run": ([str(to / "absent")], "absent"),
        "no argument": ([], "RUN_DIR"),
        "unfinished": ([str(unfinished)], "has not finished"),
        "damaged": ([str(damaged)], "model.safetensors: is damaged"),
        "torn": ([str(checkpoint)], "model.safetensors: is damaged"),
        "empty": ([str(to)], "config.toml"),
    }


def test_bad_input_is_one_line_and_code_2(trained_run, tmp_path, capsys):
    wrong = {
        **spoiled(trained_run, tmp_path),
        "value": ([str(trained_run), "--data.noise", "-1"], "data.noise"),
        "time": ([str(trained_run), "--train.timeout_s", "soon"], "train.timeout_s"),
        "flag": ([str(trained_run), "--optim.lr", "3"], "--optim.lr"),
    }
    for name, (arguments, expected) in wrong.items():
        assert evaluate.main(arguments) == 2, name
        printed, errors = capsys.readouterr()
        assert printed == ""
        assert errors.startswith("error: "), name
        assert errors.count("\n") == 1, name
        assert expected in errors, name


def test_two_processes_show_an_error_once(tmp_path, nursery):
    ended = nursery.run(["absent"], cwd=tmp_path, processes=2, module="evaluate")
    assert ended.codes == [2, 2]
    assert ended.stderr.count("error: absent is not a run folder") == 1
