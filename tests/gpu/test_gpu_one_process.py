"""One process on a GPU: it computes the same bits twice, and every command reads its runs."""

import sys

import pytest
from gpu_runs import DEVICE, ON_CPU, OWN_MODEL, ROOT, SETTINGS, TRAINED, train, train_both
from launching import check_same, flags, metrics, run, summary


@pytest.mark.parametrize("name", TRAINED)
def test_two_runs_agree(name, tmp_path):
    check_same(*train_both(tmp_path, TRAINED[name]))


@pytest.mark.parametrize("workspace", [":4096:2", ":16:8"])
def test_each_workspace_of_cublas_gives_the_same_bits(workspace, tmp_path):
    """Those that the page of torch.nn.LSTM names; the default is :4096:8."""
    large = TRAINED["two layers"]
    check_same(*train_both(tmp_path, large, {"CUBLAS_WORKSPACE_CONFIG": workspace}))


def test_ddp_reduction_trains_as_ordered_does(tmp_path):
    for reduction in ("ordered", "ddp"):
        train(tmp_path / reduction, {**TRAINED["torch"], "train.reduction": reduction})
    ordered, ddp = (metrics(tmp_path / name / "run")[-1] for name in ("ordered", "ddp"))
    assert ddp["train_loss"] == pytest.approx(ordered["train_loss"], rel=1e-3)  # other sums


@pytest.mark.parametrize("recurrence", ["torch", "fused"])
def test_every_command_reads_a_run(recurrence, tmp_path):
    pytest.importorskip("onnxruntime")
    train(tmp_path, TRAINED[recurrence])
    for words in (
        "evaluate run", "forecast run --steps 20", "export run --output run.onnx",
        "plot run --output run.png", "compare run run",
    ):  # fmt: skip
        ended = run([sys.executable, "-m", "sinlstm_dist", *words.split()], cwd=tmp_path)
        assert ended.code == 0, ended.stdout + ended.stderr
        assert "Warning" not in ended.stderr
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_an_own_model_is_evaluated(tmp_path):
    train(tmp_path, OWN_MODEL)
    words = ["evaluate", "run", "--task.build", str(OWN_MODEL["task.build"])]
    ended = run([sys.executable, "-m", "sinlstm_dist", *words], cwd=tmp_path)
    assert ended.code == 0, ended.stdout + ended.stderr


def test_a_run_goes_on_on_a_cpu_and_again_on_a_gpu(tmp_path):
    """It says that the last bits may be others."""
    settings = {**TRAINED["torch"], "checkpoint.every_epochs": 1}
    train(tmp_path, {**settings, "train.epochs": 1})
    on_cpu = train(tmp_path, {**settings, "train.epochs": 2}, **ON_CPU)
    assert "continues with another arithmetic" in on_cpu.stdout
    assert f"device was {DEVICE} and is cpu" in on_cpu.stdout
    on_gpu = train(tmp_path, {**settings, "train.epochs": 3})
    assert f"device was cpu and is {DEVICE}" in on_gpu.stdout
    train(tmp_path / "straight", {**settings, "train.epochs": 3})
    losses, straight = (
        [each["train_loss"] for each in metrics(path)]
        for path in (tmp_path / "run", tmp_path / "straight/run")
    )
    assert losses == pytest.approx(straight, rel=1e-3)  # with the velocities of before
    assert summary(tmp_path / "run")["outcome"] == "completed"


def test_the_benchmark_measures(tmp_path):
    sizes = ["--hidden", "5", "--batch", "100"]
    ended = run([sys.executable, str(ROOT / "benchmarks/gpu.py"), *sizes], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert "Error" not in ended.stderr
    assert ended.stdout.count("\n     5     100") == 2  # of the gradient, and of steps


def test_noise_and_shuffle_are_those_of_the_cpu(tmp_path):
    """Both are numbers of the package's own: the first losses differ by rounding only."""
    one, other = train_both(tmp_path, {**SETTINGS, "model.lstm": "torch"}, ON_CPU)
    for on_gpu, on_cpu in zip(metrics(one), metrics(other), strict=True):
        assert on_gpu["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=1e-3)


DRAWS_ON = """
import sys, torch
from sinlstm_dist import train
before = torch.cuda.get_rng_state()
code = train.main(sys.argv[1:])
assert torch.equal(torch.cuda.get_rng_state(), before)
sys.exit(code)
"""


@pytest.mark.parametrize("name", ["torch", "own model"])
def test_a_program_draws_on_as_if_it_had_not_trained(name, tmp_path):
    ended = run([sys.executable, "-c", DRAWS_ON, *flags(TRAINED[name])], cwd=tmp_path)
    assert ended.code == 0, ended.stdout + ended.stderr
