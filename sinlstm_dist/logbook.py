"""Everything that a run writes down, and reads back: its folder, screen, trackers and pictures."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sinlstm_dist.arithmetic import versions
from sinlstm_dist.config import Config, flat, is_set, to_toml
from sinlstm_dist.gallery import Pictures
from sinlstm_dist.job import Job
from sinlstm_dist.metrics import Totals
from sinlstm_dist.optimizers import (
    group_values,
    load_group_values,
    load_optimizer_tensors,
    optimizer_tensors,
)
from sinlstm_dist.problems import show_value
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World
from sinlstm_dist.run.checkpoint import Checkpoint
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.run.progress import Outcome, Progress
from sinlstm_dist.run.record import Summary
from sinlstm_dist.run.resume import Start
from sinlstm_dist.run.trackers import Trackers
from sinlstm_dist.screen.report import Report
from sinlstm_dist.words import counted

FEWER = (
    "fewer pieces are faster: train.virtual_shards need be no larger than the most processes that "
    "you will use"
)


class Logbook:
    """Writes one start of a run down: `open`, `begin`, then epochs and checkpoints, then `end`.

    Every process has one and calls its methods; only the main process writes.

    Args:
        config: of the run.
        job: the prepared objects of the run.
        world: all processes of the run.
        folder: of the run.
        report: shows the run; disabled on all processes but the main one.
        pictures: drawn at the end.
    """

    def __init__(
        self,
        config: Config,
        job: Job,
        world: World,
        *,
        folder: RunFolder,
        report: Report,
        pictures: Pictures,
    ) -> None:
        self.config, self.job, self.world = config, job, world
        self.folder, self.report, self.pictures = folder, report, pictures
        self.trackers = Trackers(config.output.trackers, folder=folder.path, note=report.note)
        self.history: list[dict[str, Any]] = []  # the finished epochs' metrics
        self.saved_step: int | None = None  # of the last checkpoint
        self._tracker_id = ""
        self._started = time.perf_counter()

    def open(self) -> Start:
        """Claim the run folder and find what this start continues from.

        Raises:
            ConfigError: the folder holds another run, or a tracker is not available.

        Collective: yes.
        """
        self.world.on_main(self.trackers.check)
        self.world.on_main(self.folder.claim)
        start = self.world.on_main(
            self.folder.find,
            config=self.config.model_dump(mode="json"),
            layout=self.job.layout,
            fingerprint=self.job.fingerprint,
        )
        return Start(**start)

    def begin(self, start: Start, request: StopRequest) -> Progress:
        """Begin the run, or continue it; returns the position from which it goes on.

        Args:
            request: announced on the screen from now on.

        Collective: yes.
        """
        self.report.start(self._facts())
        request.announce, request.leave = self.report.stopping, self.report.abandon
        for note in start.notes:
            self.report.note(note)
        is_chosen = is_set(self.config, "train.virtual_shards")
        if self._pieces() and not is_chosen and start.state is None:
            self.report.note(FEWER)
        self.history = start.history
        known_id = self._tracker_id = start.state["tracker_id"] if start.state else ""
        self._start_trackers()  # first: a tracker may refuse, and then nothing has been written
        self.world.on_main(
            self.folder.begin,
            toml=to_toml(self.config),
            arithmetic=self.job.agreement.arithmetic,
            data=self.job.task.data_record,
        )
        progress = self._restore(start.state) if start.state else Progress()
        if self._tracker_id != known_id:
            self.save(self.checkpoint(progress))  # keeps the tracker's id if the run is killed soon
        self.report.begin_training(
            finished_epochs=progress.epoch,
            num_steps=self.job.train.plan.num_steps,
            preview=self.job.task.preview,
        )
        return progress

    def _facts(self) -> dict[str, str]:
        """The start panel: processes, data, the algebra of a batch, the model."""
        job, world, plan = self.job, self.world, self.job.train.plan
        where = ", ".join(dict.fromkeys(world.hosts))
        why = "CUDA is available" if world.device.type == "cuda" else "no CUDA device"
        sizes = " or ".join(map(str, sorted(set(plan.all_sizes(0)))))
        num_parameters = sum(parameter.numel() for parameter in job.task.model.parameters())
        return {
            "processes": f"{world.size} on {where}, {world.device.type} ({why}), "
            f"{counted(world.num_threads, 'thread')} each",
            "data": f"{len(job.train.data):,} train and "
            f"{counted(len(job.test.data), 'test sample')}",
            "batch": f"{counted(plan.num_samples(0), 'sample')} per step = "
            f"{counted(plan.num_pieces, 'piece')} of {sizes}; "
            f"{counted(plan.num_steps, 'step')} per epoch",
            "reduction": self.config.train.reduction + self._pieces(),
            "model": f"{counted(num_parameters, 'parameter')}, {type(job.task.model).__name__}",
            **self._task(),
            **job.task.facts,
            "run folder": self.config.output.dir,
        }

    def _pieces(self) -> str:
        """How many pieces a process computes one after the other, where each takes its time."""
        at_once, number = self.job.rows.at_once, len(self.job.train.plan.owned(0))
        if at_once is None or number == 1:
            return ""
        how = "one after the other" if at_once == 1 else f"{min(at_once, number)} at a time"
        return f", {number} pieces per process, {how}"

    def _task(self) -> dict[str, str]:
        """The user's own task: its code, settings and optimizer."""
        own, task = self.config.task, self.job.task
        if not own.build:
            return {}
        settings = ", ".join(f"{key}={show_value(value)}" for key, value in own.settings().items())
        parts = [f"{own.build} ({settings})" if settings else own.build]
        parts += [type(task.optimizer).__name__]
        parts += [f"clip_norm={task.clip_norm:g}"] if task.clip_norm else []
        return {"task": ", ".join(parts)}

    def _start_trackers(self) -> None:
        if self.config.output.trackers:
            self._tracker_id = self.world.on_main(
                self.trackers.start,
                identity=self._tracker_id,
                hyperparameters=flat(self.config),
                history=self.history,
            )

    def _restore(self, state: Mapping[str, Any]) -> Progress:
        task, from_main = self.job.task, self.world.tensors_from_main
        task.model.load_state_dict(from_main(lambda: self.folder.loaded().weights))
        optimizer = from_main(lambda: self.folder.loaded().optimizer)
        load_optimizer_tensors(task.model, task.optimizer, optimizer)
        changes = load_group_values(task.model, task.optimizer, state["optimizer"])
        progress = Progress.from_state(state)
        self.saved_step = progress.step
        self.report.note(
            f"continues in epoch {progress.epoch + 1}, after step {progress.step} of the run"
        )
        if changes:
            self.report.note(f"the checkpoint's optimizer settings are kept: {', '.join(changes)}")
        if change := self.job.agreement.what_changed(state["arithmetic"]):
            self.report.note(change)
        return progress

    def epoch(self, record: dict[str, Any]) -> None:
        """Write down a finished epoch's metrics. Collective: yes."""
        self.history.append(record)
        self.world.on_main(self.folder.append_metrics, record)
        self.report.epoch(record)
        self.trackers.epoch(record)

    def checkpoint(self, progress: Progress) -> Checkpoint:
        """The state of the run at this instant."""
        job = self.job
        state = {
            **progress.to_state(),
            "optimizer": group_values(job.task.model, job.task.optimizer),
            "config": self.config.model_dump(mode="json"),
            "data": job.fingerprint,
            "tracker_id": self._tracker_id,
            "arithmetic": job.agreement.arithmetic,
        }
        optimizer = optimizer_tensors(job.task.model, job.task.optimizer)
        return Checkpoint(state, job.task.model.state_dict(), optimizer)

    def save(self, checkpoint: Checkpoint) -> str:
        """Publish a checkpoint; returns its folder.

        Raises:
            RunError: it cannot be written.

        Collective: yes.
        """
        keep = self.config.checkpoint.keep
        folder: str = self.world.on_main(self.folder.save_checkpoint, checkpoint, keep=keep)
        self.saved_step = checkpoint.state["step"]
        return folder

    def end(
        self, progress: Progress, outcome: Outcome, *, baselines: Mapping[str, Totals]
    ) -> Summary:
        """Write down how the run ended, with its weights if it is whole. Collective: yes."""
        summary = self._summary(progress, outcome)
        self.trackers.end(summary)
        is_whole = progress.epoch >= self.config.train.epochs and self.saved_step == progress.step
        weights = self.job.task.model.state_dict() if is_whole else None
        digest = self.world.on_main(self.folder.end, summary, weights)
        summary = replace(summary, weights_sha256=digest)
        self._show(summary, baselines, only_missing=False)
        return summary

    def show_ended(self, summary: Summary, *, baselines: Mapping[str, Totals]) -> Summary:
        """Show how a run ended in which nothing was left to do. Collective: yes."""
        self._show(summary, baselines, only_missing=True)
        self.report.note(
            "already complete: a larger train.epochs continues this run, another output.dir "
            "starts a new one"
        )
        return summary

    def _show(
        self, summary: Summary, baselines: Mapping[str, Totals], *, only_missing: bool
    ) -> None:
        self.report.end(
            summary,
            baselines=baselines,
            folder=str(self.folder.path),
            advice=self.job.task.advice,
            history=self.history,
        )
        if line := self.world.on_main(self.pictures.draw, only_missing=only_missing):
            self.report.note(line)

    def failure(self, progress: Progress, error: Exception) -> None:
        """Write down that the run failed, if it had begun, as far as that is possible."""
        with contextlib.suppress(OSError):
            if self.folder.is_open:
                failed = Outcome("failed", str(error) or type(error).__name__)
                self.folder.record_failure(self._summary(progress, failed))

    def _summary(self, progress: Progress, outcome: Outcome) -> Summary:
        return Summary(
            **asdict(outcome),
            epochs=progress.epoch,
            step=progress.step,
            metrics=self.history[-1] if self.history else {},
            best=min(self.history, key=lambda record: record["test_loss"], default={}),
            world_size=self.world.size,
            device=self.world.device.type,
            reduction=self.config.train.reduction,
            wall_s=time.perf_counter() - self._started,
            versions=versions(),
        )
