"""The fused kernel computes the CPU's bits on a GPU too, and all that follows it."""

import json
import sys

import pytest
import torch
from gpu_runs import DEVICE, ON_CPU, ROOT, TRAINED, train, train_both
from launching import check_same, flags, run
from lstm_cases import Case, same_bits
from safetensors.torch import load_file

from sinlstm_dist.golden import GOLDEN, KNOWN, weights_digest

FUSED = {"model.lstm": "fused"}
ONE_LAYER = [name for name, golden in GOLDEN.items() if "model.num_layers" not in golden.changed]


@pytest.mark.parametrize("sizes", [(1, 5), (1, 1), (3, 6), (1, 33), (16, 17), (1, 64)])
@torch.no_grad()
def test_rows_have_the_bits_of_the_cpu(sizes):
    case, piece_sizes = Case(1, 313, 30, *sizes), [300, 0, 13]
    tensors = {"windows": case.inputs.to(DEVICE), "targets": case.targets.to(DEVICE)}
    parameters = [parameter.to(DEVICE) for parameter in case.parameters]
    rows = case.rows(piece_sizes, **tensors, parameters=parameters)
    assert rows.device.type == DEVICE
    assert same_bits(rows.cpu(), case.rows(piece_sizes))


def test_golden_runs_end_with_the_known_weights(tmp_path):
    runs = [{**GOLDEN[name].changed, **FUSED, "output.dir": name} for name in ONE_LAYER]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    words = [sys.executable, str(ROOT / "tests/train_many.py"), "runs.json"]
    ended = run(words, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    found = {
        name: weights_digest(load_file(tmp_path / name / "model.safetensors")) for name in ONE_LAYER
    }
    assert found == {name: KNOWN[name] for name in ONE_LAYER}


def test_verify_finds_the_known_weights(tmp_path):
    arguments = ["--processes", "1", "--json", "v.json", *flags(FUSED)]
    ended = run([sys.executable, "-m", "sinlstm_dist.verify", *arguments], cwd=tmp_path)
    claims = {
        each["claim"]: each for each in json.loads((tmp_path / "v.json").read_text())["claims"]
    }
    assert claims["Golden"]["result"] == "PASS", ended.stdout
    assert ended.code == 0, ended.stdout


def test_a_run_has_the_weights_and_metrics_of_the_cpu(tmp_path):
    check_same(*train_both(tmp_path, TRAINED["fused"], ON_CPU))


def test_the_default_run_has_the_weights_line_of_the_cpu(tmp_path):
    settings = {**FUSED, "train.epochs": 3, "output.dir": "run"}
    on_gpu, on_cpu = (
        train(tmp_path / name, settings, **variables).stdout.splitlines()[-1]
        for name, variables in (("gpu", {}), ("cpu", ON_CPU))
    )
    assert on_gpu.startswith("weights ")
    assert on_gpu == on_cpu


def test_a_run_that_moves_between_devices_keeps_its_bits(tmp_path):
    settings = {**TRAINED["fused"], "checkpoint.every_epochs": 1}
    train(tmp_path, {**settings, "train.epochs": 1})
    train(tmp_path, {**settings, "train.epochs": 2}, **ON_CPU)
    train(tmp_path, {**settings, "train.epochs": 3})
    train(tmp_path / "straight", {**settings, "train.epochs": 3}, **ON_CPU)
    check_same(tmp_path / "run", tmp_path / "straight/run")
