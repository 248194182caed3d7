"""What makes a start another run than that of a checkpoint: its settings, its data, its schedule.

Numbers of a run that goes on must be those of a run that was never interrupted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinlstm_dist.config import KEYS, SECTIONS, SINE
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.problems import show_value
from sinlstm_dist.run.layout import Layout

# Keys that a resumed run may change: they change no result.
MAY_CHANGE = {
    "train.epochs", "train.target_accuracy", "train.timeout_s", "train.num_workers",
    "checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.keep", "checkpoint.resume",
    "output.dir", "output.plots", "output.trackers",
}  # fmt: skip


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The differences that make `after` another run than `before`: `key was X and is Y`.

    A key that `before` lacks has its default: an older version wrote it. The user's own keys have
    none here. Their code may be named in another way, as after its file was moved, unless their
    settings differ too: then it comes first.
    """
    users = [f"task.{key}" for key in {**before.get("task", {}), **after["task"]} if key != "build"]
    names = ["task.build", *(key for key in [*KEYS, *users] if key != "task.build")]
    values = {name: (_value(before, name), _value(after, name)) for name in names}
    changed = [key for key, (old, new) in values.items() if old != new and key not in MAY_CHANGE]
    if all(values["task.build"]) and not set(users) & set(changed):
        changed = [key for key in changed if key != "task.build"]
    return [
        f"{k} was {show_value(values[k][0])} and is {show_value(values[k][1])}" for k in changed
    ]


def _value(config: Mapping[str, Any], name: str) -> Any:
    """The value of a key; without one its default, and None for a key of the user's own."""
    section, _, key = name.partition(".")
    field = SECTIONS[section].model_fields.get(key)
    return config.get(section, {}).get(key, field.default if field else None)


def refuse_other_data(
    folder: Path, state: Mapping[str, Any], config: Mapping[str, Any], fingerprint: str
) -> None:
    """Refuse a checkpoint of other data.

    Args:
        folder: of the checkpoint.
        state: its state.json.
        config: the resolved configuration of this start.
        fingerprint: of this start's data.

    Raises:
        ConfigError: what the checkpoint was trained on, and what to do.
    """
    if state["data"] in ("", fingerprint):
        return
    task, source = config["task"]["build"], config["data"]["source"]
    if task:
        what = (
            f"samples than task.build={task} gives now: restore its code and its data, or choose "
            "another output.dir"
        )
    elif source != SINE:
        what = f"values than {source} holds now: restore that file, or choose another output.dir"
    else:
        what = (
            "data than this installation makes from the same configuration: continue it with the "
            "versions that its summary.json names"
        )
    raise ConfigError(f"{folder} was trained on other {what}")


def refuse_other_schedule(
    folder: Path, state: Mapping[str, Any], config: Mapping[str, Any], layout: Layout
) -> None:
    """Refuse another number of epochs with which earlier steps had had other learning rates.

    Args:
        folder: of the checkpoint.
        state: its state.json.
        config: the resolved configuration of this start.
        layout: of this start's checkpoints.

    Raises:
        ConfigError: the first step that differs.
    """
    factor, per_epoch = layout.lr_factor, layout.num_steps
    before, now = (c["train"]["epochs"] for c in (state["config"], config))
    if factor is None or before == now:
        return
    for step in range(state["step"]):
        old, new = factor(step, before * per_epoch), factor(step, now * per_epoch)
        if old != new:
            raise ConfigError(
                f"train.epochs was {before} and is {now} (in {folder}), and lr_factor depends on "
                f"it: step {step} had the factor {old} and would now have {new}; keep "
                f"train.epochs={before}, or choose another output.dir"
            )
    last = state["step"] - 1
    for group in state["optimizer"] if last >= 0 else ():
        was, now_is = group["lr"], group["initial_lr"] * factor(last, now * per_epoch)
        if was != now_is:
            raise ConfigError(
                f"train.epochs was {before} and is {now} (in {folder}), and the learning rates "
                f"depend on it: step {last} had {was} and would now have {now_is}; keep "
                f"train.epochs={before}, or choose another output.dir"
            )
