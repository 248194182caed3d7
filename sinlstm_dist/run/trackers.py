"""Send a run's metrics to experiment trackers, through Accelerate; off by default.

    python -m sinlstm_dist.train --output.trackers tensorboard
    tensorboard --logdir runs

A tracker sees one run, however many processes train and however often they are killed. If it
writes files, each start writes them again from metrics.jsonl, so no step is there twice. If it is a
service, it resumes under the run id stored in the checkpoint.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinlstm_dist.errors import ConfigError, MissingPackage
from sinlstm_dist.run.record import TENSORBOARD, Summary

TRACKED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "samples_per_s")
PROJECT = "sinlstm-dist"

# How a service is told to resume a run. The others begin a new run at each start.
_RESUMES: dict[str, Callable[[str], dict[str, Any]]] = {
    "wandb": lambda identity: {"id": identity, "resume": "allow"},
    "swanlab": lambda identity: {"id": identity, "resume": "allow"},
    "trackio": lambda identity: {"name": identity, "resume": "allow"},
    "comet_ml": lambda identity: {"experiment_key": identity, "mode": "get_or_create"},
}


class Trackers:
    """The trackers of a run. Without `start` it does nothing: only the main process calls it.

    A tracker that fails after its start is reported and disabled; training continues.

    Args:
        names: of Accelerate's trackers.
        folder: the run folder; trackers that write files get a folder in it.
        note: tells the user something.
    """

    def __init__(self, names: Sequence[str], *, folder: Path, note: Callable[[str], None]) -> None:
        self._names = list(dict.fromkeys(names))
        self._folder, self._note = folder, note
        self._trackers: dict[str, Any] = {}

    def check(self) -> None:
        """Refuse unknown and missing trackers, before anything changes.

        Raises:
            ConfigError: a tracker is unknown or is not installed.
        """
        for name in self._names:
            _class_of(name)

    def start(
        self,
        *,
        identity: str,
        hyperparameters: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
    ) -> str:
        """Begin or resume the run in each tracker.

        Args:
            identity: the run id from the checkpoint; "" for a new one.
            hyperparameters: dotted keys to values.
            history: metrics of the finished epochs.

        Returns:
            the run id.

        Raises:
            ConfigError: a tracker does not start.
        """
        identity = identity or uuid.uuid4().hex
        values = {key: _plain(value) for key, value in hyperparameters.items()}
        # Trackers that write files start last: if another fails, those files are unchanged.
        for name in sorted(self._names, key=TENSORBOARD.__eq__):
            try:
                tracker = self._make(name, identity)
                tracker.start()
                if name == TENSORBOARD:
                    _show_hyperparameters(tracker.tracker, values)
                    for record in history:
                        _log(tracker, record)
                else:
                    tracker.store_init_configuration(values)
            except Exception as error:
                self.close()
                if name == TENSORBOARD:
                    self._remove_folder()
                raise ConfigError(f"output.trackers={name} does not start: {error}") from error
            self._trackers[name] = tracker
        return identity

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Send a finished epoch; `record` is its line of metrics.jsonl."""
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                _log(tracker, record)

    def end(self, summary: Summary) -> None:
        """Send the numbers that sum up a run, unless it was stopped."""
        if summary.outcome != "stopped" and summary.metrics:
            names = ("test_loss", "test_accuracy")
            figures = {key: summary.metrics[key] for key in names if key in summary.metrics}
            figures |= {"best_test_loss": summary.best["test_loss"], "wall_s": summary.wall_s}
            values = {f"summary/{key}": value for key, value in figures.items()}
            for name, tracker in list(self._trackers.items()):
                with self._surviving(name):
                    tracker.log(values, step=summary.step)

    def close(self) -> None:
        """Let the trackers write what they still hold; may be called twice."""
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.finish()
        self._trackers = {}

    def _make(self, name: str, identity: str) -> Any:
        make = _class_of(name)
        place = [str(self._folder)] if make.requires_logging_directory else []
        if name == TENSORBOARD:
            self._remove_files()
            return make(name, *place, purge_step=0)  # a viewer forgets the removed files
        return make(PROJECT, *place, **_RESUMES.get(name, lambda _: {})(identity))

    def _remove_folder(self) -> None:
        """Remove the folder of a start that failed."""
        with contextlib.suppress(OSError):
            self._remove_files()
            (self._folder / TENSORBOARD).rmdir()

    def _remove_files(self) -> None:
        for file in (self._folder / TENSORBOARD).glob("events.out.tfevents.*"):
            file.unlink()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any error of a library that is not ours: the run matters more
            del self._trackers[name]
            self._note(f"{name} is disabled from here on: {error}")


def _class_of(name: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ConfigError(f"output.trackers={name} is unknown: Accelerate knows {known}")
    if name in LoggerType.list() and LoggerType(name) not in get_available_trackers():
        install = "sinlstm-dist[tensorboard]" if name == TENSORBOARD else name
        raise MissingPackage(f"output.trackers={name}", package=name, install=install)
    return LOGGER_TYPE_TO_CLASS[name]


def _plain(value: Any) -> bool | int | float | str:
    """A value of a type that every tracker accepts."""
    return value if isinstance(value, bool | int | float) else str(value)


def _log(tracker: Any, record: Mapping[str, Any]) -> None:
    values = {name: record[name] for name in TRACKED if name in record}
    tracker.log(values, step=record["step"])


def _show_hyperparameters(writer: Any, values: dict[str, Any]) -> None:
    """Write TensorBoard's hyperparameters into this run.

    `add_hparams`, which Accelerate calls, would make another run of them at each call.
    """
    from torch.utils.tensorboard.summary import hparams

    for part in hparams(values, dict.fromkeys(("train_loss", "test_loss", "test_accuracy"), 0.0)):
        writer.file_writer.add_summary(part)
