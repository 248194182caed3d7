"""A trained model's files, in a folder here or on the Hugging Face Hub.

huggingface_hub is imported on first use: that takes 0.2 s (2026-11). Its mixin for PyTorch is not
the base class of the model: it falls back to files that hold code, and accepts weights of another
model.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run.record import CONFIG, WEIGHTS

WINDOW = "window"  # its name in config.json and in the metadata of the weights


def find(source: str | Path, **download: Any) -> Path:
    """The file with the weights of `source`, downloaded if need be.

    Args:
        source: a run folder, a checkpoint folder, a folder that `save` wrote, or a name on the Hub.
        download: arguments of `huggingface_hub.hf_hub_download`, such as `revision`.

    Raises:
        ConfigError: there is no such folder or Hub name, or it holds no weights.
    """
    folder = Path(source)
    if os.path.isdir(folder):
        return _find_here(folder)
    if os.path.lexists(folder):
        raise ConfigError(f"{source} is a file: name the run folder that it is in")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(str(source), WEIGHTS, **download))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{source} is not a folder here, and the Hub does not provide its {WEIGHTS}: {reason}"
        ) from error


def read_window(path: Path) -> int | None:
    """The window that `Predictor.save_pretrained` has written into a file of weights, if any."""
    with safe_open(path, "np") as file:
        written = (file.metadata() or {}).get(WINDOW)
    return int(written) if written else None


def _find_here(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if weights.is_file():
        return weights
    if (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds a run that has not finished: continue it with python -m "
            f"sinlstm_dist.train --config {folder / CONFIG}, or name one of its checkpoints"
        )
    raise ConfigError(f"{folder} holds no {WEIGHTS}: name the folder of a finished run")


def save(
    folder: str | Path, *, weights: bytes, config: Mapping[str, int], card: str, **options: Any
) -> None:
    """Write a model's files to a folder.

    Args:
        weights: content of a safetensors file.
        config: sizes of the model, for config.json.
        card: the model card; a card that is already there is kept.
        options: arguments of `huggingface_hub.ModelHubMixin.save_pretrained`, such as
            `push_to_hub=True` and `repo_id`.
    """
    from huggingface_hub import ModelCard, ModelHubMixin

    class Files(ModelHubMixin):
        def _save_pretrained(self, save_directory: Path) -> None:
            (save_directory / WEIGHTS).write_bytes(weights)

        def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
            return ModelCard(card)

    Files().save_pretrained(folder, config=dict(config), **options)
