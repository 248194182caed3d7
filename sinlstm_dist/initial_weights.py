"""The weights that `train.init_from` names, for a run to start with."""

import contextlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sinlstm_dist.differences import DIFFERENCE, MEAN, SCALING
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.model import Predictor
from sinlstm_dist.run import checkpoint
from sinlstm_dist.run.checkpoint import Tensors
from sinlstm_dist.run.layout import shapes, unlike
from sinlstm_dist.run.record import WEIGHTS


def read_weights(path: Path, model: nn.Module) -> Tensors:
    """Read the starting weights of `train.init_from`, which must be exactly the model's.

    Those of a Predictor may be of another dtype, and its units are those of its own data.

    Raises:
        ConfigError: they are not, or the file cannot be read.
    """
    where = f"train.init_from={path}:"
    if path.is_dir():
        raise ConfigError(f"{where} is a folder: name a .safetensors file in it, such as {WEIGHTS}")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        if _is_pickle(path):
            raise ConfigError(
                f"{where} is a PyTorch file, which may hold code. If it is a state dict, these two "
                f"lines make a .safetensors file of it:\n{_of_pytorch(path)}"
            ) from error
        raise ConfigError(f"{where} is not a readable .safetensors file: {error}") from error
    if path.name == checkpoint.OPTIMIZER:
        raise ConfigError(f"{where} is an optimizer's state: name the {WEIGHTS} in the same folder")
    wanted, buffers = model.state_dict(), dict(model.named_buffers())
    if isinstance(model, Predictor):
        has, needs = int(weights.get(DIFFERENCE, 0)), model.scaling.lag if model.scaling else 0
        if MEAN in weights and has != needs:  # what they have learned means something else here
            raise ConfigError(
                f"{where} was trained with data.difference={has}, and this run has {needs}"
            )
        wanted = dict(model.named_parameters())
        weights = {k: v.float() for k, v in weights.items() if k not in SCALING}
    if prefix := _prefix(weights, wanted):
        raise ConfigError(
            f'{where} its names begin with "{prefix}", as those of a wrapped model. These two '
            f"lines make a file without it:\n{_without_prefix(path, prefix)}"
        )
    if problem := unlike(weights, shapes(wanted), buffers=buffers):
        raise ConfigError(f"{where} weights of another model: {problem}")
    return weights


def _is_pickle(path: Path) -> bool:
    """Whether torch.save, of today or of old, has written a file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(4).startswith((b"PK\3\4", b"\x80"))
    return False


def _of_pytorch(path: Path) -> str:
    return (
        f" import torch; weights = torch.load({str(path)!r}, weights_only=True, "
        'map_location="cpu")\n'
        ' from safetensors.torch import save_file; save_file({name.removeprefix("module."): '
        "value.clone().contiguous() for name, value in weights.items()}, "
        f"{str(path.with_suffix('.safetensors'))!r})"
    )


def _without_prefix(path: Path, prefix: str) -> str:
    return (
        " from safetensors.torch import load_file, save_file\n"
        f" save_file({{name.removeprefix({prefix!r}): value for name, value in "
        f"load_file({str(path)!r}).items()}}, "
        f"{str(path.with_name(f'{path.stem}-converted.safetensors'))!r})"
    )


def _prefix(weights: Tensors, wanted: Tensors) -> str:
    """What stands before all names, such as "module."; "" if nothing does, or more is wrong."""
    first = next(iter(wanted), "")
    for name in weights:
        prefix = name.removesuffix(first)
        others = set(weights) - {f"{prefix}{units}" for units in SCALING}
        if prefix.endswith(".") and others == {f"{prefix}{name}" for name in wanted}:
            return prefix
    return ""
