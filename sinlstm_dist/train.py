"""Train an LSTM to predict a sine wave, on one process or many.

    python -m sinlstm_dist.train --config configs/noisy.toml
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.train
    accelerate launch -m sinlstm_dist.train --train.epochs 20 --data.noise 0.02

The same command continues a run that was stopped or killed. Results are in the run folder.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from sinlstm_dist import program
from sinlstm_dist.arithmetic import versions
from sinlstm_dist.command import BAD_CONFIG, exit_code_of, exit_code_of_run, tell
from sinlstm_dist.command_line import Parser, add_config_flags, parse_with_config
from sinlstm_dist.config import Config, Optim, flat, to_toml
from sinlstm_dist.data.steps import step_batches
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.gradient import evaluate
from sinlstm_dist.job import Job, build, describe, load_tensors
from sinlstm_dist.metrics import Totals
from sinlstm_dist.model import Persistence
from sinlstm_dist.optim import optimizer_tensors
from sinlstm_dist.processes.launcher import is_speaker, launching_parent
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World, join_world
from sinlstm_dist.run.checkpoint import Checkpoint, not_finite
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.run.record import Summary
from sinlstm_dist.run.trackers import Trackers
from sinlstm_dist.screen.console import show_toml, tell_losses
from sinlstm_dist.screen.report import Report


def train(config: Config) -> Summary:
    """Run the training that `config` describes, or what is left of it.

    Returns:
        how it ended, as in the run folder's summary.json.

    Raises:
        ConfigError: the configuration, the run folder or the world must be changed.
        RunError: the run folder cannot be written.
        LostProcess: another process died or hangs.
        StoppedEarly: asked to stop before all processes had started.

    Collective: yes.
    """
    if config.output.plots:
        _check_pictures()
    training = None
    with (
        StopRequest(parent=launching_parent()) as request,
        contextlib.closing(RunFolder(Path(config.output.dir))) as run,
    ):
        try:
            with join_world(
                timeout_s=config.train.timeout_s,
                one_thread=config.train.reduction == "ordered",
                stop_reason=lambda: request.reason,
            ) as world:
                job = build(config, world)
                training = Training(config, job, run=run, world=world, request=request)
                training.start()
                while not training.is_over:
                    if training.train_epoch():
                        training.end_epoch()
                return training.finish()
        except Exception as error:
            if training is not None:
                training.record_failure(error)
            raise
        finally:
            if training is not None:
                training.report.close()


class Training:
    """A run from its start, or from its checkpoint, to its summary."""

    def __init__(
        self, config: Config, job: Job, *, run: RunFolder, world: World, request: StopRequest
    ) -> None:
        self.config, self.job, self.run, self.world, self.request = config, job, run, world, request
        self.stop_after_epoch = False
        self.report = Report(
            enabled=world.is_main,
            epochs=config.train.epochs,
            num_steps=job.train_plan.num_steps,
        )
        self.epoch = 0  # finished epochs
        self.step_in_epoch = 0
        self.step = 0
        self.saved_step: int | None = None  # of the last checkpoint
        self.totals = Totals()  # of the running epoch
        self.history: list[dict[str, Any]] = []
        self.trackers = Trackers(config.output.trackers, folder=run.path, note=self.report.note)
        self.tracker_id = ""
        self.outcome, self.reason, self.below_target = "", "", False
        self.ended: Summary | None = None  # of a run that was already over when this one started
        self.started = time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or the run was stopped or has failed."""
        return bool(self.outcome) or self.epoch >= self.config.train.epochs

    def start(self) -> None:
        """Claim the run folder and continue from the checkpoint that it holds, if any."""
        self.job.agreement.check_start()
        on_main = self.world.on_main
        on_main(self.trackers.check)
        on_main(self.run.claim)
        found = on_main(
            self.run.find,
            config=self.config.model_dump(mode="json"),
            layout=self.job.layout,
            fingerprint=self.job.fingerprint,
        )
        if found["summary"]:
            self.ended = Summary(**found["summary"])
            self.outcome = self.ended.outcome
            return
        self.report.start(describe(self.job, self.config, self.world))
        self.request.announce, self.request.leave = self.report.stopping, self.report.abandon
        for note in found["notes"]:
            self.report.note(note)
        self.history = found["history"]
        if found["state"]:
            self.tracker_id = found["state"]["tracker_id"]
        self._start_trackers()  # which may refuse: so before the folder becomes a run's
        on_main(self.run.begin, toml=to_toml(self.config), arithmetic=self.job.agreement.arithmetic)
        if found["state"]:
            self._restore(found["state"])
        elif self.config.output.trackers:
            self._save()  # a run that is killed before its first checkpoint continues its curve too
        self.report.begin_training(finished_epochs=self.epoch, preview=self.job.preview)

    def train_epoch(self) -> bool:
        """Train what is left of the running epoch. Returns whether it was finished."""
        self.epoch_began, self.samples_before = time.perf_counter(), self.totals.samples
        self.job.train_sampler.start(epoch=self.epoch, step=self.step_in_epoch)
        batches = step_batches(
            self.job.train_loader, self.job.train_plan, first_step=self.step_in_epoch
        )
        for step, batch in batches:
            result = self.job.gradient(batch, step=step, stop=self._stop_requested())
            if not result.totals.is_finite:
                self._fail(f"the training loss became {result.totals.loss} at step {self.step + 1}")
                return False
            self.job.optimizer.step()
            self.totals += result.totals
            self.step_in_epoch, self.step = step + 1, self.step + 1
            self.report.step(epoch=self.epoch + 1, step=self.step_in_epoch)
            if self.step_in_epoch == self.job.train_plan.num_steps:
                self.stop_after_epoch = result.stop  # what a checkpoint holds is tested by then
            elif result.stop:
                self._stop()
                return False
            elif _is_due(self.step, every=self.config.checkpoint.every_steps) and not self._save():
                return False
        return True

    def end_epoch(self) -> None:
        """Test, record and, when it is due, save."""
        train_s = time.perf_counter() - self.epoch_began
        test = self._evaluate(self.job.model)
        if not test.is_finite:
            return self._fail(f"the test loss became {test.loss} after step {self.step}")
        self.epoch += 1
        record = {
            "epoch": self.epoch,
            "step": self.step,
            "train_loss": self.totals.loss,
            "train_accuracy": self.totals.accuracy,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "train_samples": self.totals.samples,
            "test_samples": test.samples,
            "epoch_s": time.perf_counter() - self.epoch_began,
            "samples_per_s": (self.totals.samples - self.samples_before) / train_s,
        }
        self.step_in_epoch, self.totals = 0, Totals()
        self.history.append(record)
        self.world.on_main(self.run.append_metrics, record)
        self.report.epoch(record)
        self.trackers.epoch(record)
        is_last = self.epoch == self.config.train.epochs
        due = self.config.checkpoint
        if self.stop_after_epoch and not is_last:
            self._stop()
        elif (
            is_last
            or _is_due(self.epoch, every=due.every_epochs)
            or _is_due(self.step, every=due.every_steps)
        ):
            self._save()

    def finish(self) -> Summary:
        """Write and show how the run ended."""
        self.report.end_training()
        baseline = self._evaluate(Persistence())
        if self.ended:
            self.report.end(self.ended, baseline=baseline, folder=str(self.run.path))
            self.report.note(
                "nothing was left to do: train.epochs continues this run, another output.dir "
                "starts a new one"
            )
            self._draw()
            return self.ended
        if not self.outcome:
            self._complete()
        summary = self._summary()
        self._end_trackers(summary)
        is_done = self.epoch >= self.config.train.epochs and self.saved_step == self.step
        weights = self.job.model.state_dict() if is_done else None
        digest = self.world.on_main(self.run.end, summary, weights)
        summary = replace(summary, weights_sha256=digest)
        self.report.end(summary, baseline=baseline, folder=str(self.run.path), history=self.history)
        self._draw()
        return summary

    def record_failure(self, error: Exception) -> None:
        """Leave the folder in order after `error`, as far as that is still possible."""
        self.trackers.close()
        self.outcome, self.reason = "failed", str(error) or type(error).__name__
        with contextlib.suppress(OSError):
            self.run.record_failure(self._summary())

    def _draw(self) -> None:
        if not self.config.output.plots:
            return
        drawn = self.world.on_main(_draw_pictures, self.run.path, only_missing=bool(self.ended))
        if drawn:
            self.report.note(f"pictures there: {', '.join(drawn)}")

    def _start_trackers(self) -> None:
        if self.config.output.trackers:
            self.tracker_id = self.world.on_main(
                self.trackers.start,
                identity=self.tracker_id,
                hyperparameters=flat(self.config),
                history=self.history,
            )

    def _end_trackers(self, summary: Summary) -> None:
        if self.outcome != "stopped" and summary.metrics:
            figures = {"best_test_loss": summary.best["test_loss"], "wall_s": summary.wall_s}
            figures |= {key: summary.metrics[key] for key in ("test_loss", "test_accuracy")}
            self.trackers.end(figures, step=self.step)
        self.trackers.close()

    def _summary(self) -> Summary:
        return Summary(
            outcome=self.outcome,
            reason=self.reason,
            epochs=self.epoch,
            step=self.step,
            metrics=self.history[-1] if self.history else {},
            best=min(self.history, key=lambda record: record["test_loss"], default={}),
            world_size=self.world.size,
            device=self.world.device.type,
            reduction=self.config.train.reduction,
            wall_s=time.perf_counter() - self.started,
            versions=versions(),
            below_target=self.below_target,
        )

    def _complete(self) -> None:
        accuracy = self._evaluate(self.job.model).accuracy
        target = self.config.train.target_accuracy
        self.below_target = accuracy < target
        if self.below_target:
            self.outcome = "failed"
            self.reason = f"test accuracy {accuracy:.4f} is below train.target_accuracy={target:g}"
        else:
            self.outcome, self.reason = "completed", f"{self.epoch} epochs"

    def _fail(self, what: str) -> None:
        lr = self.config.optim.lr
        self.outcome = "failed"
        smaller = min(lr / 10, Optim().lr)
        self.reason = f"{what} with optim.lr={lr:g}: try a smaller one, such as {smaller:g}"

    def _stop(self) -> None:
        if not (folder := self._save()):
            return
        by_file = self.world.on_main(self.run.stop_requested)
        asked = self.request.reason or ("STOP file" if by_file else "asked by another process")
        self.outcome = "stopped"
        self.reason = f"{asked}; {self._same_command()} continues from {folder}"

    def _stop_requested(self) -> bool:
        return bool(self.request.reason) or (self.world.is_main and self.run.stop_requested())

    def _evaluate(self, model: nn.Module) -> Totals:
        return evaluate(
            model,
            self.job.test_loader,
            plan=self.job.test_plan,
            world=self.world,
            tolerance=self.config.train.tolerance,
        )

    def _save(self) -> str:
        """Publish a checkpoint of this instant. Returns its folder; "" if a value is not finite.

        Raises:
            RunError: the processes do not agree on it; nothing is written.
        """
        self.job.agreement.check_now(step=self.step, continues=self._continues())
        weights = self.job.model.state_dict()
        optimizer = optimizer_tensors(self.job.model, self.job.optimizer)
        if names := not_finite({**weights, **optimizer}):
            self._fail(f"{names[0]} became infinite or nan at step {self.step}")
            return ""
        state = {
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "totals": asdict(self.totals),
            "config": self.config.model_dump(mode="json"),
            "data": self.job.fingerprint,
            "tracker_id": self.tracker_id,
            "arithmetic": self.job.agreement.arithmetic,
        }
        checkpoint = Checkpoint(state, weights, optimizer)
        keep = self.config.checkpoint.keep
        folder: str = self.world.on_main(self.run.save_checkpoint, checkpoint, keep=keep)
        self.saved_step = self.step
        return folder

    def _continues(self) -> str:
        """Where the run continues if this state is lost."""
        if self.saved_step is None:
            return f"{self._same_command()} starts from the beginning"
        return f"{self._same_command()} continues after step {self.saved_step}"

    def _same_command(self) -> str:
        is_never = self.config.checkpoint.resume == "never"
        return f"the same command{' with checkpoint.resume=auto' if is_never else ''}"

    def _restore(self, state: dict[str, Any]) -> None:
        weights, optimizer = self.run.loaded_tensors() if self.world.is_main else ({}, {})
        load_tensors(
            self.job,
            weights=self.world.broadcast_tensors(weights),
            optimizer=self.world.broadcast_tensors(optimizer),
        )
        self.step, self.epoch = state["step"], state["epoch"]
        self.saved_step = self.step
        self.step_in_epoch, self.totals = state["step_in_epoch"], Totals(**state["totals"])
        self.report.note(f"continues in epoch {self.epoch + 1}, after step {self.step} of the run")
        if change := self.job.agreement.what_changed(state["arithmetic"]):
            self.report.note(change)


def _is_due(count: int, *, every: int) -> bool:
    return every > 0 and count % every == 0


def _check_pictures() -> None:
    from sinlstm_dist.screen.pictures import check_matplotlib  # on use: a start should load little

    check_matplotlib()


def _draw_pictures(folder: Path, *, only_missing: bool) -> list[str]:
    from sinlstm_dist.plot import draw_missing, draw_run

    return draw_missing(folder) if only_missing else draw_run(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="sinlstm_dist.train", description="Train an LSTM to predict a sine wave.")
    add_config_flags(parser)
    try:
        options, config = parse_with_config(parser, arguments)
    except ConfigError as error:
        tell(str(error))
        return BAD_CONFIG
    if options.print_config:
        if is_speaker():
            show_toml(to_toml(config))
        return 0
    code = exit_code_of(lambda: exit_code_of_run(train(config)))
    tell_losses()  # the exit code is the run's
    return code


if __name__ == "__main__":
    sys.exit(program.run(main))
