"""Train an LSTM to predict a sine wave, or your own model, on one process or many.

    python -m sinlstm_dist.train --config configs/noisy.toml
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.train
    accelerate launch -m sinlstm_dist.train --train.epochs 20 --data.noise 0.02

The same command continues a run that was stopped or killed. Results are in the run folder.
"""

import contextlib
import math
import sys
import time
from argparse import Namespace
from pathlib import Path

from sinlstm_dist.command import as_program, command, exit_code_of, exit_code_of_run
from sinlstm_dist.config import Config
from sinlstm_dist.data.steps import Split
from sinlstm_dist.gallery import Pictures
from sinlstm_dist.job import Job, build
from sinlstm_dist.logbook import Logbook
from sinlstm_dist.metrics import Totals
from sinlstm_dist.optimizers import FULL_LR
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.launcher import is_speaker, launching_parent
from sinlstm_dist.processes.stop import StopRequest
from sinlstm_dist.processes.world import World
from sinlstm_dist.reduction import totals_over
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.run.layout import not_finite
from sinlstm_dist.run.progress import Outcome, Progress
from sinlstm_dist.run.record import Summary
from sinlstm_dist.screen.console import report_lost_output
from sinlstm_dist.screen.report import Report
from sinlstm_dist.stepping import new_stepping
from sinlstm_dist.words import counted

USUAL_LR = 0.01  # of SGD; the largest that is advised


def train(config: Config) -> Summary:
    """Run the training that `config` describes, or continue it from its newest checkpoint.

    The generators of random, numpy and torch are afterwards as they were before.

    Args:
        config: the run's configuration; `config.output.dir` is the run folder.

    Returns:
        how the run ended, as in the run folder's summary.json.

    Raises:
        ConfigError: the configuration, the run folder or the world must be changed.
        RunError: the run folder cannot be written.
        LostProcess: another process died or hangs.
        StoppedEarly: asked to stop before all processes had started.

    Collective: yes.
    """
    with (
        StopRequest(parent=launching_parent()) as request,
        contextlib.closing(RunFolder(Path(config.output.dir))) as folder,
        contextlib.closing(Report(enabled=is_speaker(), epochs=config.train.epochs)) as report,
    ):
        pictures = Pictures(enabled=config.output.plots, folder=folder.path)
        pictures.check()
        training = None
        try:
            with join_world(
                timeout_s=config.train.timeout_s,
                one_thread=config.train.reduction == "ordered",
                stop_reason=lambda: request.reason,
            ) as world:
                job = build(config, world)
                log = Logbook(config, job, world, folder=folder, report=report, pictures=pictures)
                training = Training(config, job, world, log=log, request=request)
                with contextlib.closing(log.trackers):  # Accelerate's need the world to end
                    return training.run()
        except Exception as error:
            if training:
                log.failure(training.progress, error)
            raise


class Training:
    """One start of a run: from its beginning, or from its checkpoint, to its summary.

    Args:
        config: of the run.
        job: the prepared objects of the run.
        world: all processes of the run.
        log: writes the run down.
        request: a request to stop.
    """

    def __init__(
        self, config: Config, job: Job, world: World, *, log: Logbook, request: StopRequest
    ) -> None:
        self.config, self.job, self.world, self.log = config, job, world, log
        self.request = request
        self.make_steps = new_stepping(job, world)
        self.progress = Progress()
        self.outcome: Outcome | None = None
        self.stops = False  # whether a process asked to, in the last step

    def run(self) -> Summary:
        """Train from where the run folder's checkpoint is to the end. Collective: yes."""
        self.job.agreement.check_start()
        start = self.log.open()
        if start.ended:  # nothing is left to do
            ended = Summary(**start.ended)
            return self.log.show_ended(ended, baselines=self._count_baselines())
        self.progress = self.log.begin(start, self.request)
        while self.progress.epoch < self.config.train.epochs and not self.outcome:
            if self._train_epoch():
                self._end_epoch()
        self.log.report.end_training()
        outcome = self.outcome or self._final_outcome()
        return self.log.end(self.progress, outcome, baselines=self._count_baselines())

    def _train_epoch(self) -> bool:
        """Train the rest of the running epoch. Returns whether it was finished."""
        self.epoch_began, self.samples_before = time.perf_counter(), self.progress.totals.samples
        split, epoch = self.job.train, self.progress.epoch
        for steps, batch in split.strides(
            epoch=epoch,
            next_step=lambda: self.progress.step_in_epoch,
            whole=self.job.gradient.is_whole,
            most=self._most_steps,
        ):
            # The gradient over all processes and the optimizer's update, of one step or several.
            result = self.make_steps(
                batch, self.progress, most=len(steps), stop=self._stop_requested()
            )
            self.progress, self.stops = result.progress, result.stop
            if not math.isfinite(result.loss):
                at = f"at step {self.progress.step + 1}"
                self._fail(f"the training loss became {result.loss} {at}")
                return False
            self.log.report.step(epoch=epoch + 1, step=self.progress.step_in_epoch)
            if self.progress.step_in_epoch < split.plan.num_steps and not self._stop_or_save():
                return False
        return True

    def _most_steps(self) -> int:
        """How many steps may be made before a checkpoint is due."""
        every = self.config.checkpoint.every_steps
        most = self.make_steps.most
        return min(most, every - self.progress.step % every) if every else most

    def _stop_or_save(self) -> bool:
        """Stop if that was asked for, or save if that is due. Returns whether to go on."""
        due = self.config.checkpoint
        if self.stops:
            self._stop()
        elif _is_due(self.progress.step, every=due.every_steps) or (
            not self.progress.step_in_epoch and _is_due(self.progress.epoch, every=due.every_epochs)
        ):
            self._save()
        return self.outcome is None

    def _end_epoch(self) -> None:
        """Test, record and, when it is due, save."""
        train_s = time.perf_counter() - self.epoch_began
        trained, test = self.progress.totals, self._count(self.job.rows, self.job.test)
        if not test.is_finite:
            self._fail(f"the test loss became {test.loss} after step {self.progress.step}")
            return
        self.progress = self.progress.after_epoch()
        record = {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "train_samples": trained.samples,
            "test_samples": test.samples,
            "epoch_s": time.perf_counter() - self.epoch_began,
            "samples_per_s": (trained.samples - self.samples_before) / train_s,
        }
        self.log.epoch({name: value for name, value in record.items() if value is not None})
        if self.progress.epoch == self.config.train.epochs:
            self._save()
        else:
            self._stop_or_save()

    def _count(self, rows: PieceRows, test: Split) -> Totals:
        """The totals of a model's predictions for the test samples. Collective: yes."""
        self.job.gradient.settle()
        return totals_over(rows, test, peers=self.world)

    def _count_baselines(self) -> dict[str, Totals]:
        """The totals of the baselines for the test samples, by name. Collective: yes."""
        return {name: self._count(*baseline) for name, baseline in self.job.baselines.items()}

    def _save(self) -> str:
        """Publish a checkpoint of this instant. Returns its folder; "" if a value is not finite.

        Raises:
            RunError: the processes do not agree on it; nothing is written.

        Collective: yes.
        """
        step = self.progress.step
        self.job.gradient.settle()
        self.job.agreement.check_now(step=step, continues=self._how_to_continue())
        checkpoint = self.log.checkpoint(self.progress)
        saved = {**checkpoint.weights, **checkpoint.optimizer}
        if names := not_finite(saved, buffers=self.job.layout.buffers):
            self._fail(f"{names[0]} became infinite or nan at step {step}")
            return ""
        return self.log.save(checkpoint)

    def _final_outcome(self) -> Outcome:
        """The outcome of a run whose epochs are all done. Collective: yes."""
        accuracy = self._count(
            self.job.rows, self.job.test
        ).accuracy  # metrics.jsonl may have been removed
        target = self.config.train.target_accuracy
        if accuracy is not None and accuracy < target:
            reason = f"test accuracy {accuracy:.4f} is below train.target_accuracy={target:g}"
            return Outcome("failed", reason, below_target=True)
        return Outcome("completed", counted(self.progress.epoch, "epoch"))

    def _fail(self, what: str) -> None:
        groups = self.job.task.optimizer.param_groups
        lr = max(group.get(FULL_LR, group["lr"]) for group in groups)
        smaller = min(lr / 10, USUAL_LR)
        advice = f"with a learning rate of {lr:g}: try a smaller one, such as {smaller:g}"
        self.outcome = Outcome("failed", f"{what} {advice}")

    def _stop_requested(self) -> bool:
        folder = self.log.folder
        return bool(self.request.reason) or (self.world.is_main and folder.stop_requested())

    def _stop(self) -> None:
        if not (folder := self._save()):
            return
        by_file = self.world.on_main(self.log.folder.stop_requested)
        asked = self.request.reason or ("STOP file" if by_file else "asked by another process")
        reason = f"{asked}; {self._same_command()} continues from {folder}"
        self.outcome = Outcome("stopped", reason)

    def _how_to_continue(self) -> str:
        """Where the run continues if this state is lost."""
        if self.log.saved_step is None:
            return f"{self._same_command()} starts from the beginning"
        return f"{self._same_command()} continues after step {self.log.saved_step}"

    def _same_command(self) -> str:
        is_never = self.config.checkpoint.resume == "never"
        return f"the same command{' with checkpoint.resume=auto' if is_never else ''}"


def _is_due(count: int, *, every: int) -> bool:
    return every > 0 and count % every == 0


@command("train")
def main(options: Namespace) -> int:
    """Train the sine, or the user's own model."""
    code = exit_code_of(lambda: exit_code_of_run(train(options.config)))
    report_lost_output()  # the exit code is the run's
    return code


if __name__ == "__main__":
    sys.exit(as_program(main))
