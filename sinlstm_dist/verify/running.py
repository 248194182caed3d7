"""Check whole runs: a resumed run equals an unbroken one, and a run learns the task."""

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sinlstm_dist.config import Config
from sinlstm_dist.gallery import Pictures
from sinlstm_dist.job import Job
from sinlstm_dist.logbook import Logbook
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World
from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.checkpoint import DamagedCheckpoint
from sinlstm_dist.screen.report import Report
from sinlstm_dist.train import Training
from sinlstm_dist.verify.alone import JobAlone, distance, weights_vector
from sinlstm_dist.verify.bench import Bench, Finding
from sinlstm_dist.words import counted

Figures = Sequence[Mapping[str, Any]]

ROOT = Path("runs")  # the default place of run folders, which must be writable
STOP_AFTER = 4  # steps: in the middle of the second epoch, if it has three
LEAST_STEPS = 8  # of a run that is stopped and resumed
ROUNDING = 1e-2  # of a run with the data-parallel wrapper, whose optimizer may enlarge it
VISIBLE_S = 5.0  # a shared file system may show a new file to other nodes a little later
NOTHING = "nothing"
# The small model, whatever the user's configuration is, because its accuracy is known.
LEARNING = {
    "data.train_size": 1000, "data.test_size": 200, "data.window": 20, "train.epochs": 6,
    "train.global_batch_size": 20, "optim.momentum": 0.9, "model.hidden_size": 5,
    "model.num_layers": 1,
}  # fmt: skip
REACHED = 0.97  # seen: 1.0 with this seed, 0.98 to 1.0 with others


def check_checkpoint(bench: Bench) -> Finding:
    """Every process reads what one writes, and a resumed run equals an unbroken one."""
    num_epochs = max(3, LEAST_STEPS // bench.build().train.plan.num_steps)
    changed = {"train.epochs": num_epochs, "checkpoint.every_steps": 2}
    with runs_folder(bench.world) as folder:
        straight = _run(bench, folder / "straight", changed)
        stopped = _run(bench, folder / "resumed", changed, stop_after=STOP_AFTER)
        problems = _unreadable(bench, folder / "resumed", step=stopped.step)
        resumed = _run(bench, folder / "resumed", changed)
    if stopped.outcome != "stopped":
        problems.append(f"the run was asked to stop, and ended as {stopped.outcome}")
    # The wrapper's first sum after a start may be rounded otherwise than a later one.
    is_exact = not bench.is_own or bench.settings().train.reduction == "ordered"
    rounding = 0.0 if is_exact else ROUNDING
    apart = distance(straight.weights, resumed.weights)
    if not apart <= rounding * float(straight.weights.abs().max()):
        problems.append(f"weights of the resumed run differ from the unbroken one's by {apart:.1e}")
    if not _same_figures(straight.figures, resumed.figures, rounding=rounding):
        problems.append("metrics.jsonl of the resumed run differs from the unbroken one's")
    by, read = f" of rank {bench.world.size - 1}", ", read by every process"
    if bench.is_one:
        by = read = ""
    measured = (
        f"stopped on request{by} after step {stopped.step}{read}, resumed: the weights and "
        "metrics of the unbroken run"
    )
    return Finding(measured if is_exact else f"{measured} within {ROUNDING:.0e}", problems)


def _same_figures(
    figures: Sequence[Mapping[str, float]],
    others: Sequence[Mapping[str, float]],
    *,
    rounding: float,
) -> bool:
    """Whether two runs have the same metrics, up to a relative difference."""
    if rounding == 0.0:
        return figures == others
    return len(figures) == len(others) and all(
        math.isclose(row[name], other[name], rel_tol=rounding, abs_tol=rounding)
        for row, other in zip(figures, others, strict=True)
        for name in row
    )


def check_learning(bench: Bench) -> Finding:
    """The small built-in model reaches its known accuracy."""
    is_own, bench = bench.is_own, bench.built_in
    config, initial = bench.settings(LEARNING), bench.build(LEARNING)
    with runs_folder(bench.world) as folder:
        run = _run(bench, folder / "run", LEARNING)
    last = run.figures[-1] if run.figures else {"test_accuracy": 0.0, "test_loss": float("nan")}
    reached = last["test_accuracy"]
    problems = [] if reached >= REACHED else [f"test accuracy {reached:.4f}, needed {REACHED}"]
    steps, loss = counted(run.step, "step"), last["test_loss"]
    measured = f"test accuracy {reached:.4f} after {steps}, loss {loss:.1e}"
    measured = f"the built-in model: {measured}" if is_own else measured
    if config.train.reduction == "ordered":
        *_, alone = JobAlone(initial, config, bench.world).steps(run.step)
        if not torch.equal(run.weights, alone):
            problems.append("the run ends with other weights than one process alone computes")
        where = "a run without a data loader" if bench.is_one else "one process alone"
        measured += f"; the weights of {where}"
    return Finding(measured, problems)


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended.

    Args:
        outcome: "completed", "stopped" or "failed".
        step: number of optimizer steps.
        weights: (G,) for G parameters.
        figures: the metrics of each finished epoch, without timings.
    """

    outcome: str
    step: int
    weights: torch.Tensor
    figures: list[dict[str, Any]]


class AskOnce(StopRequest):
    """A request to stop that comes after some steps and needs no signal.

    Args:
        after: number of steps; None for no request.
    """

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self._left = after

    @property
    def reason(self) -> str:
        """See StopRequest."""
        if self._left is None:
            return ""
        self._left -= 1
        return "asked by verify" if self._left < 0 else ""


def _run(
    bench: Bench, folder: Path, changed: Mapping[str, object], *, stop_after: int | None = None
) -> EndedRun:
    """Run a training of the configuration to verify; see `run_job`. Collective: yes."""
    changed = {"output.dir": str(folder), **changed}
    job = bench.build(changed)
    return run_job(bench, bench.settings(changed), job, stop_after=stop_after)


def run_job(bench: Bench, config: Config, job: Job, *, stop_after: int | None = None) -> EndedRun:
    """Run a training, or the rest of it, as `train` does, but in this world and without output.

    Args:
        config: of the job, with its `output.dir`.
        stop_after: number of steps after which the last process is asked to stop.

    Collective: yes.
    """
    world, folder = bench.world, Path(config.output.dir)
    is_asked = world.rank == world.size - 1
    request = AskOnce(stop_after if is_asked else None)
    silent = Report(enabled=False, epochs=config.train.epochs)
    with contextlib.closing(bench.parts.run_folder(folder)) as run:
        pictures = Pictures(enabled=False, folder=folder)
        log = Logbook(config, job, world, folder=run, report=silent, pictures=pictures)
        summary = Training(config, job, world, log=log, request=request).run()
    timings = ("epoch_s", "samples_per_s")
    figures = [{k: v for k, v in record.items() if k not in timings} for record in log.history]
    return EndedRun(summary.outcome, summary.step, weights_vector(job.task.model), figures)


@contextlib.contextmanager
def runs_folder(world: World) -> Iterator[Path]:
    """A new folder for runs, removed at the end. Collective: yes."""
    folder = Path(world.on_main(_make_folder))
    try:
        yield folder
    finally:
        if world.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # only if it is empty


def _make_folder() -> str:
    ROOT.mkdir(exist_ok=True)
    return tempfile.mkdtemp(prefix="verify-", dir=ROOT.absolute())


def _unreadable(bench: Bench, folder: Path, *, step: int) -> list[str]:
    """Find the processes that do not read the same checkpoint as the main process.

    Collective: yes.
    """
    path = folder / "checkpoints" / f"step-{step:08d}"
    seen = bench.world.gather_json(_what_is_read(path))
    problems = []
    for rank, read in enumerate(seen):
        if read == seen[0]:
            continue
        problems.append(f"{bench.name(rank)} reads {read}, rank 0 {seen[0]}")
        if read == NOTHING and bench.world.hosts[rank] != bench.world.hosts[0]:
            problems[-1] = (
                f"{ROOT.absolute()} is not shared between nodes: {bench.name(rank)} does not see "
                "it; training works, but resumes only where rank 0 is on the same node"
            )
    return problems


def _what_is_read(path: Path) -> str:
    """A short text on what this process reads in a checkpoint."""
    deadline = time.monotonic() + VISIBLE_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not path.exists():
        return NOTHING
    try:
        weights = checkpoint.read(path).weights
    except (DamagedCheckpoint, OSError) as error:
        return str(error)
    return ", ".join(f"{name} of sum {weights[name].sum():.9g}" for name in sorted(weights))
