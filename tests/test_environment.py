"""The environment is a user's input: what cannot be right is one line that names the variable."""

import contextlib
import os
from types import SimpleNamespace
from unittest import mock

import launching
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sinlstm_dist.errors import ConfigError
from sinlstm_dist.processes import accelerator, launcher

QUICK = {
    "data.train_size": 60,
    "data.test_size": 30,
    "data.window": 10,
    "train.global_batch_size": 20,
    "train.epochs": 1,
    "train.timeout_s": 20,
    "output.dir": "run",
}
NUMBERS = (
    *sorted(launcher.PLACE_VARIABLES), launcher.WORLD_SIZE_CHECK, launcher.TASKS, launcher.THREADS,
    "MASTER_PORT",
)  # fmt: skip
OTHERS = (
    *accelerator.OTHER_WAYS, accelerator.DEVICE, launcher.INTERFACE, "MASTER_ADDR",
    "ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RESTART_COUNT",
)  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
VALUES = (
    TEXTS
    | st.integers(-2, 10).map(str)
    | st.integers().map(str)
    | st.sampled_from(["", " ", "true", "True", "127.0.0.1", "4,2", "²", "1e3", "a..b", "lo"])
)
ENVIRONMENTS = st.dictionaries(st.sampled_from((*NUMBERS, *OTHERS)), VALUES)


@given(ENVIRONMENTS)
@example({"SLURM_PROCID": "5", "WORLD_SIZE": "2"})
@example({"OMP_NUM_THREADS": " "})
@settings(max_examples=1000, deadline=None)
def test_any_environment_is_a_launch_or_an_error_that_names_a_variable(variables):
    with mock.patch.dict(os.environ, variables, clear=True):
        launcher.is_speaker()
        launcher.is_node_speaker()
        try:
            launch = launcher.check_launch()
            with accelerator.checked_environment(launch):
                told = dict(os.environ)
                assert launcher.num_threads() > 0
        except ConfigError as error:
            launch, message = None, str(error)
        assert dict(os.environ) == variables
    if not launch:
        assert [name for name in variables if name in message] or "MASTER_ADDR" in message
        return
    assert launch.size == 1 or launch.rank < launch.size
    if launch.size == 1:
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(told)
    else:
        assert told["WORLD_SIZE"] == str(launch.size)
        assert told["RANK"] == str(launch.rank)


@given(ENVIRONMENTS)
@settings(max_examples=300, deadline=None)
def test_empty_is_unset(variables):
    def outcome(environment):
        with mock.patch.dict(os.environ, environment, clear=True):
            try:
                return launcher.check_launch(), launcher.num_threads()
            except ConfigError as error:
                return str(error)

    empty = dict.fromkeys((*NUMBERS, *OTHERS), "")
    assert outcome(empty | variables) == outcome(variables)


ODD = {
    "RANK": ["two", "3", "-1"],
    "WORLD_SIZE": ["two", "0"],
    "LOCAL_RANK": ["-1"],
    "OMP_NUM_THREADS": ["²", "9999999999999999999"],
    "SLURM_STEP_NUM_TASKS": ["x"],
    "PMI_SIZE": ["x"],
    "OMPI_COMM_WORLD_RANK": ["5"],
    "SINLSTM_DIST_WORLD_SIZE": ["x"],
    "ACCELERATE_USE_DEEPSPEED": ["true"],
    "ACCELERATE_USE_FSDP": ["true"],
    "ACCELERATE_USE_MEGATRON_LM": ["true"],
    "ACCELERATE_USE_SAGEMAKER": ["true"],
    "ACCELERATE_USE_CPU": ["perhaps"],
    "ACCELERATE_DEBUG_MODE": ["x"],
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": ["x"],
    "ACCELERATE_FP8_BACKEND": ["x"],
    "ACCELERATE_CPU_AFFINITY": ["x"],
    "ACCELERATE_TORCH_DEVICE": ["x", "meta", "cuda:77"],
    "FORK_LAUNCHED": ["x"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in ODD.items() for v in values])
def test_an_odd_variable_is_one_line(nursery, tmp_path, name, value):
    launch = nursery.run(launching.flags(QUICK), cwd=tmp_path, variables={name: value})
    assert launch.codes == [2]
    [error] = launch.stderr.splitlines()
    assert error.startswith("error: ")
    assert f"{name}={value}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "odd",
    [
        {"MASTER_PORT": "abc"},
        {"MASTER_PORT": "0"},
        {"MASTER_PORT": "99999"},
        {"MASTER_ADDR": ""},
        {"MASTER_ADDR": "a..b"},
        {"GLOO_SOCKET_IFNAME": "nope"},
    ],
)
def test_an_odd_meeting_point_is_one_line(nursery, tmp_path, odd):
    launch = nursery.run(
        launching.flags(QUICK), cwd=tmp_path, processes=2, variables=odd, absent=(1,)
    )
    assert launch.codes == [2]
    [error] = launch.stderr.splitlines()
    [name] = odd
    assert f"error: {name}" in error


def test_empty_variables_and_lists_of_threads_train(nursery, tmp_path):
    empty = dict.fromkeys([*ODD, "ACCELERATE_MIXED_PRECISION"], "")
    launch = nursery.run(launching.flags(QUICK), cwd=tmp_path, variables=empty)
    assert launch.codes == [0], launch.stderr
    two = {**QUICK, "output.dir": "two"}
    for rank in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del empty[rank]
    variables = {**empty, "OMP_NUM_THREADS": "2,1", "PMI_SIZE": "7"}
    launch = nursery.run(launching.flags(two), cwd=tmp_path, processes=2, variables=variables)
    assert launch.codes == [0, 0], launch.stderr
    assert launching.weights_digest(tmp_path / "two") == launching.weights_digest(tmp_path / "run")


def test_a_users_accelerate_configuration_is_named_once(tmp_path):
    """As `accelerate config` writes it; found in HF_HOME, so that nothing on the line names it."""
    folder = tmp_path / "accelerate"
    folder.mkdir()
    (folder / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 2\n"
        "num_machines: 1\nmain_process_port: 0\nuse_cpu: false\nmixed_precision: 'no'\n"
        "debug: false\nfsdp_config:\n  fsdp_sharding_strategy: FULL_SHARD\n"
    )
    words = ["accelerate", "launch", "-m", "sinlstm_dist.train", *launching.flags(QUICK)]
    ended = launching.run(words, cwd=tmp_path, HF_HOME=str(tmp_path))
    assert ended.code != 0
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "FSDP" in error
    assert "accelerate config" in error
    assert "sinlstm_dist/" not in ended.stderr  # no traceback of ours


@pytest.mark.parametrize(
    ("local_rank", "variables", "gpu"),
    [
        (1, {}, "GPU-1"),
        (3, {}, "GPU-1"),  # Accelerate begins again at the first one
        (1, {accelerator.DEVICE: "cuda:0"}, "GPU-0"),
        (1, {accelerator.DEVICE: "cuda"}, "GPU-0"),
        (1, {accelerator.DEVICE: " "}, "GPU-1"),
        (1, {accelerator.DEVICE: "cuda:2"}, ""),  # there is none, as Accelerate will say
        (1, {accelerator.DEVICE: "cpu"}, ""),
        (1, {"ACCELERATE_USE_CPU": "true"}, ""),
    ],
)
def test_the_gpu_is_the_one_that_accelerate_gives(monkeypatch, local_rank, variables, gpu):
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{number}")
    )
    launch = launcher.Launch(rank=5, size=8, local_rank=local_rank, local_size=4)
    with mock.patch.dict(os.environ, variables, clear=True):
        assert accelerator.gpu_of(launch) == gpu


def test_without_a_gpu_there_is_none():
    if not torch.cuda.is_available():
        assert accelerator.gpu_of(launcher.Launch(0, 2, 0, 2)) == ""


@pytest.mark.parametrize("told", [":16", ":0:0", ":4096:4", "4096:8"])
def test_settings_of_cublas_that_are_not_deterministic_are_refused(told):
    with pytest.raises(ConfigError, match=f"CUBLAS_WORKSPACE_CONFIG={told} .*:4096:8"):
        accelerator.check_cublas(told)


@pytest.mark.parametrize("told", ["", *accelerator.EXACT_CUBLAS])
def test_deterministic_settings_of_cublas_are_kept(told):
    accelerator.check_cublas(told)


@pytest.mark.parametrize("has_gpu", [True, False])
def test_cublas_matters_where_there_is_a_gpu(monkeypatch, has_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv(accelerator.CUBLAS, ":16")
    with pytest.raises(ConfigError) if has_gpu else contextlib.nullcontext():
        accelerator.check_variables()
