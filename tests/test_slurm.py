"""launch/slurm on a real Slurm of two nodes: right worlds, right ends, and one process's bits."""

from pathlib import Path

import launching
import pytest
import slurm

from sinlstm_dist import train

LAUNCH = Path(__file__).parents[1] / "launch"
TRAIN, SINGLE_NODE, ARRAY = (
    str(LAUNCH / f"slurm/{name}.sbatch") for name in ("train", "single-node", "array")
)
BRIEF = {**launching.SMALL, "output.dir": "run"}
# Some seconds on two nodes, so that what happens to the job happens in mid-run.
LONG = {
    **BRIEF,
    "data.train_size": 2030,
    "train.epochs": 200,
    "checkpoint.every_epochs": 50,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Run folders of one process that had no launcher, by settings."""
    known = {}

    def run(settings: dict[str, object]) -> Path:
        if (key := str(settings)) not in known:
            known[key] = tmp_path_factory.mktemp("alone") / "run"
            assert train.main(launching.flags({**settings, "output.dir": known[key]})) == 0
        return known[key]

    return run


def log(folder: Path, job: str) -> str:
    """What the job said so far."""
    path = folder / f"sinlstm-{job}.out"
    return path.read_text() if path.exists() else ""


def wait_for_log(folder: Path, job: str, what: str, *, times: int = 1) -> None:
    """Wait until the job has said `what` so often."""
    try:
        launching.wait_for(lambda: log(folder, job).count(what) >= times)
    except AssertionError:
        raise AssertionError(f"no {what!r} in:\n{log(folder, job)}") from None


def epochs(folder: Path) -> int:
    """How many epochs the run has finished."""
    path = folder / "run/metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_job_goes_on_until_its_run_is_complete_and_never_after(cluster, tmp_path, alone):
    job = cluster.sbatch(TRAIN, *launching.flags(LONG), cwd=tmp_path)
    launching.wait_for(lambda: epochs(tmp_path))
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    wait_for_log(tmp_path, job, "restart 1")
    assert "stopped: STOP file" in log(tmp_path, job)

    wait_for_log(tmp_path, job, "continues in epoch")
    before = epochs(tmp_path)
    launching.wait_for(lambda: epochs(tmp_path) > before)
    cluster.command("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    shown = cluster.wait(job)
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "2"), log(tmp_path, job)
    assert launching.summary(tmp_path / "run")["world_size"] == 2
    launching.check_same(tmp_path / "run", alone(LONG))

    written = (tmp_path / "run/model.safetensors").stat().st_mtime_ns
    cluster.command("scontrol", "requeue", job)
    wait_for_log(tmp_path, job, "already complete: a larger train.epochs")
    shown = cluster.wait(job)
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "3"), log(tmp_path, job)
    assert (tmp_path / "run/model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(("options", "world_size"), [((), 2), (("--gpus-per-node=2",), 4)])
def test_nodes_are_verified_first_when_asked(cluster, tmp_path, alone, options, world_size):
    """With GPUs, a process for each of each node."""
    job = cluster.sbatch(*options, TRAIN, *launching.flags(BRIEF), cwd=tmp_path, VERIFY="1")
    assert cluster.wait(job)["JobState"] == "COMPLETED", log(tmp_path, job)
    verified, trained = (log(tmp_path, job).index(word) for word in ("verified in", "completed:"))
    assert verified < trained
    assert f"processes   {world_size} on node1, node2" in log(tmp_path, job)
    assert launching.summary(tmp_path / "run")["world_size"] == world_size
    launching.check_same(tmp_path / "run", alone(BRIEF))


def test_a_signal_before_the_first_step_is_kept_and_restarts_are_limited(cluster, tmp_path):
    job = cluster.sbatch(TRAIN, *launching.flags(LONG), cwd=tmp_path, MAX_RESTARTS="0")
    wait_for_log(tmp_path, job, "2 processes on 2 nodes")
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    shown = cluster.wait(job)
    assert (shown["JobState"], shown["Restarts"]) == ("FAILED", "0")
    assert "MAX_RESTARTS=0 are used up" in log(tmp_path, job)
    assert launching.summary(tmp_path / "run")["step"] == 1

    # The same signal to a start that fails: how the one before ended is not how this one did.
    absent = {"HEAD_ADDRESS": "10.213.77.99", "START_TIMEOUT_S": "5", "MAX_RESTARTS": "0"}
    job = cluster.sbatch(TRAIN, *launching.flags(LONG), cwd=tmp_path, **absent)
    wait_for_log(tmp_path, job, "2 processes on 2 nodes")
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert "are used up" not in log(tmp_path, job)

    # The STOP file that it left is the script's own, and stops no later start ...
    stop = tmp_path / "run/STOP"
    assert stop.exists()
    taken = {"HEAD_PORT": str(slurm.SLURMD_PORT)}
    cluster.wait(cluster.sbatch(TRAIN, *launching.flags(LONG), cwd=tmp_path, **taken))
    assert not stop.exists()
    # ... as a user's does, who made it while the job waited.
    stop.touch()
    job = cluster.sbatch(TRAIN, *launching.flags(LONG), cwd=tmp_path)
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert "stopped: STOP file" in log(tmp_path, job)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HEAD_PORT": str(slurm.SLURMD_PORT)}, "address already in use"),
        ({"HEAD_ADDRESS": "10.213.77.99", "START_TIMEOUT_S": "5"}, "10.213.77.99"),
    ],
)
def test_a_head_that_cannot_be_reached_ends_the_job(cluster, tmp_path, variables, message):
    job = cluster.sbatch(TRAIN, *launching.flags(BRIEF), cwd=tmp_path, **variables)
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert message in log(tmp_path, job)
    assert not (tmp_path / "run").exists()


def test_wrong_flags_end_the_job_before_it_starts_anything(cluster, tmp_path):
    job = cluster.sbatch(TRAIN, "--train.epoch", "1", cwd=tmp_path)
    shown = cluster.wait(job)
    assert (shown["JobState"], shown["ExitCode"]) == ("FAILED", "2:0")
    assert "did you mean train.epochs?" in log(tmp_path, job)
    assert "processes on" not in log(tmp_path, job)


def test_one_node_with_gpus_saves_before_its_time_is_over(cluster, tmp_path):
    endless = {**BRIEF, "train.epochs": 1_000_000, "checkpoint.every_epochs": 1_000_000}
    submit = ["--gpus-per-node=2", SINGLE_NODE, *launching.flags(endless)]
    job = cluster.sbatch(*submit, cwd=tmp_path)
    launching.wait_for(lambda: epochs(tmp_path) > 3)
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert "stopped: SIGUSR1" in log(tmp_path, job)
    assert launching.summary(tmp_path / "run")["world_size"] == 2


def test_an_array_goes_on_until_its_runs_are_complete_and_ends_in_a_table(cluster, tmp_path, alone):
    settings = {key: value for key, value in LONG.items() if key != "output.dir"}
    (tmp_path / "variants.txt").write_text("--train.seed 7\n--optim.lr 0.02 --train.epochs 2\n")
    variables = {"VARIANTS": "variants.txt", "SWEEP": "sweep"}
    job = cluster.sbatch(
        "--array=1-2", ARRAY, *launching.flags(settings), cwd=tmp_path, **variables
    )
    launching.wait_for(lambda: (tmp_path / "sweep/001/metrics.jsonl").exists())  # not only run 2
    cluster.command("scancel", "--signal=USR1", "--batch", f"{job}_1")
    table = tmp_path / "sweep/table.txt"
    launching.wait_for(lambda: table.exists() and table.read_text())
    said = (tmp_path / f"sinlstm-array-{job}-1.out").read_text()
    assert "stopped: STOP file" in said
    assert "continues in epoch" in said
    launching.check_same(tmp_path / "sweep/001", alone({**settings, "train.seed": 7}))
    launching.wait_for(lambda: "002" in table.read_text())
    lines = table.read_text().splitlines()
    for run, setting in (("001", "train.seed=7"), ("002", "optim.lr=0.02")):
        assert any(run in line and "completed" in line for line in lines), lines
        assert any(setting in line for line in lines), lines
