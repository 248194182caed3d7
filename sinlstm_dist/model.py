"""The model: a window of values in, the next value out.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sinlstm_dist import hub, lstm
from sinlstm_dist.card import find_card, find_config, write_card
from sinlstm_dist.differences import DIFFERENCE, MEAN
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.rollout import continue_series

State = tuple[torch.Tensor, torch.Tensor]  # hidden and cell, each (num_layers, B, H)
Values = TypeVar("Values", torch.Tensor, np.ndarray)


class StoredScale(nn.Module):
    """What turns the values of a series from a file into the model's numbers, and back.

    They are buffers, saved with the weights as `scaling.mean`, `scaling.std` and, if the model
    learns differences, `scaling.difference`.

    Args:
        difference: 0 if the model learns the values; n if it learns by how much they differ from
            those n time steps before.
    """

    mean: torch.Tensor
    std: torch.Tensor
    difference: torch.Tensor | None

    def __init__(self, difference: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))
        self.register_buffer("difference", torch.tensor(difference) if difference else None)

    def _apply(self, change: Callable[..., torch.Tensor], recurse: bool = True) -> "StoredScale":
        """Follow the model to another device, but not to another dtype: half is no unit."""
        exact = dict(self.named_buffers())
        super()._apply(change, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != exact[name].dtype:
                setattr(self, name, torch.as_tensor(exact[name], device=buffer.device))
        return self

    @property
    def lag(self) -> int:
        """Time steps between the two values of a difference; 0 if the model learns the values."""
        return 0 if self.difference is None else int(self.difference)

    def set(self, mean: float, std: float) -> None:
        """Set both numbers, in the user's units."""
        self.mean.fill_(mean)
        self.std.fill_(std)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the user's units to the model's; in float64, as the mean may be large."""
        return ((values.double() - self.mean.double()) / self.std.double()).float()

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the model's units to the user's, as float64."""
        return values.double() * self.std.double() + self.mean.double()


class Predictor(nn.Module):
    """An LSTM over the window and a linear layer on its last time step.

    Parameters have the names of the article's program and the layout of torch.nn.LSTM, so weights
    can be exchanged with both. Shapes: B samples, W window (time steps), D features of a time step.

    Args:
        input_size: features of a time step.
        hidden_size: features of the hidden state.
        output_size: values in a prediction.
        num_layers: stacked LSTM layers.
        scaled: whether the model learns from a series in the user's units; see `predict`.
        difference: 0, or n if a scaled model learns by how much each value differs from the one
            n time steps before.
        fused: use the compiled kernel in `forward` (CPU only; on a GPU only `sine.py` uses a
            fused kernel). `lstm.choose` says whether it can be used.

    Examples:
        >>> model = Predictor(hidden_size=5)
        >>> model(torch.zeros(3, 50, 1)).shape  # three windows of 50 time steps
        torch.Size([3, 1])
        >>> sum(parameter.numel() for parameter in model.parameters())
        166
    """

    def __init__(
        self,
        input_size: int = 1,
        hidden_size: int = 5,
        output_size: int = 1,
        *,
        num_layers: int = 1,
        scaled: bool = False,
        difference: int = 0,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if difference and not (difference > 0 and scaled and input_size == output_size):
            raise ValueError(
                f"difference={difference} with scaled={scaled}, input_size={input_size} and "
                f"output_size={output_size}: it must be 0, or positive in a scaled model whose "
                "output is the next value of its input"
            )
        self.card = ""  # the model card, in Markdown
        self.window: int | None = None  # time steps of a window in the training, if known
        self.rnn: nn.LSTM = (
            lstm.FusedLSTM(input_size, hidden_size, num_layers)
            if fused
            else nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        )
        self.output_layer = nn.Linear(hidden_size, output_size)
        self.scaling = StoredScale(difference) if scaled else None

    def forward(self, inputs: torch.Tensor, hidden0: State | None = None) -> torch.Tensor:
        """Predict the value that follows each window.

        Args:
            inputs: (B, W, D).
            hidden0: hidden and cell state before the first time step; None for zeros.

        Returns:
            (B, output_size).

        Raises:
            ValueError: `inputs` are no batch of windows; RuntimeError: as torch.nn.LSTM.
        """
        if inputs.dim() != 3 or inputs.shape[1] == 0:
            raise ValueError(
                f"inputs have shape {list(inputs.shape)}: (batch, window, {self.rnn.input_size}) "
                "is needed, with a window of at least 1"
            )
        outputs, _ = self.rnn(inputs, hidden0)  # (B, W, H)
        return self.output_layer(outputs[:, -1])  # (B, output_size)

    @torch.no_grad()
    def predict(self, windows: Values) -> Values:
        """Predict in the units of the series that the model was trained on.

        Args:
            windows: (B, W, D) values in the user's units, a tensor or what NumPy makes an array of;
                (B, W + n, D) if the model learns differences to the value n time steps before.

        Returns:
            (B, output_size) values in the user's units, a tensor for a tensor, otherwise an array:
            float64 for a series, float32 for the sine.

        Raises:
            ValueError: `windows` has another shape, or holds no finite real numbers.
        """
        weight, lag = self.output_layer.weight, self.scaling.lag if self.scaling else 0
        windows = _to_real(windows)
        if isinstance(windows, np.ndarray):
            values = weight.new_tensor(windows.astype(np.float64, "C"), dtype=torch.float64)
            return self.predict(values).numpy(force=True)
        if windows.dim() != 3 or windows.shape[1] <= lag or windows.shape[2] != self.rnn.input_size:
            raise ValueError(
                f"windows have shape {tuple(windows.shape)}: (batch, window"
                f"{f' + {lag}' if lag else ''}, {self.rnn.input_size}) is needed"
            )
        if self.scaling is None:
            return self(windows.type(weight.dtype))
        values = windows.double()
        if lag:
            values = values[:, lag:] - values[:, :-lag]  # (B, W, D)
        predictions = self.scaling.undo(self(self.scaling(values).type(weight.dtype)))
        return predictions + windows[:, -lag] if lag else predictions

    def forecast(self, window: Values, steps: int) -> Values:
        """Predict the next value, then the one after it from the window moved on, and so on.

        Args:
            window: (N,) or (B, N, 1) values in the user's units, oldest first: a tensor, or what
                NumPy makes an array of, such as a list or a pandas Series. Each prediction reads
                the last W of them, the window of the training (W + n if the model learns
                differences to the value n time steps before). Where `model.window` is None, as
                for a bare file of weights, it reads all N: set it, or give W values.
            steps: values to predict, at least 1.

        Returns:
            (steps,) or (B, steps) values in the user's units, as from `predict`.

        Raises:
            ValueError: the model has several features, `window` has another shape, is too short or
                holds no finite real numbers, or there are no steps.
        """
        window = _to_real(window)
        if isinstance(window, torch.Tensor):
            found = self.forecast(window.double().numpy(force=True), steps)
            return window.new_tensor(found, dtype=torch.from_numpy(found).dtype)
        windows = window[None, :, None] if window.ndim == 1 else window
        lag, features = self.scaling.lag if self.scaling else 0, self.output_layer.out_features
        needed = (self.window or 1) + lag
        if not self.rnn.input_size == features == 1:
            raise ValueError("a model of several features does not predict its own next input")
        if windows.ndim != 3 or windows.shape[1] < needed or windows.shape[2] != 1:
            wanted = f"{self.window or 'window'}{f' + {lag}' if lag else ''}"
            raise ValueError(
                f"window has shape {window.shape}: ({wanted},) or (batch, {wanted}, 1) is needed"
            )
        if steps < 1:
            raise ValueError(f"steps={steps}: 1 or more are needed")
        weights = {
            name: value.float().numpy(force=True) for name, value in self.state_dict().items()
        }
        windows = windows[:, -needed:] if self.window else windows
        found = continue_series(weights, windows[:, :, 0].astype(np.float64), steps=steps)
        found = found if self.scaling else found.astype(np.float32)
        return found[0] if window.ndim == 1 else found

    @classmethod
    def from_pretrained(cls, source: str | Path, **download: Any) -> "Predictor":
        """Load a trained model, in evaluation mode and on the CPU.

        Args:
            source: a run folder, one of its checkpoints, a folder that `save_pretrained` wrote,
                or a name on the Hugging Face Hub.
            download: arguments of `huggingface_hub.hf_hub_download`, such as `revision`.

        Raises:
            ConfigError: there is no such model, or its file is damaged or of another model.
        """
        path = hub.find(source, **download)
        try:
            weights = load_file(path)
            model = cls(**_sizes(weights))
            model.load_state_dict(weights)
            model.window = hub.read_window(path)
        except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: holds no weights of a Predictor: {error}") from error
        std = float(model.scaling.std) if model.scaling else 1.0
        config = find_config(path.parent)
        if model.window is None and config and not config.task.build:
            model.window = config.data.window
        model.card = find_card(path, sizes=_sizes(weights), std=std, config=config)
        return model.eval()

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write model.safetensors, config.json and a model card for `from_pretrained`.

        Args:
            folder: made if it is missing; a README.md in it is kept.
            options: arguments of `huggingface_hub.ModelHubMixin.save_pretrained`, such as
                `push_to_hub=True` and `repo_id`.
        """
        weights = self.state_dict()
        sizes = _sizes(weights)
        card = self.card or write_card(sizes=sizes)
        known = {hub.WINDOW: self.window} if self.window else {}
        content = save(weights, {name: str(value) for name, value in known.items()})
        hub.save(folder, weights=content, config=sizes | known, card=card, **options)


def _to_real(values: Any) -> Any:
    """A tensor as it is, all else as an array; what holds no finite real numbers is refused."""
    if isinstance(values, torch.Tensor):
        is_real = not (values.is_complex() or values.dtype is torch.bool)
    else:
        values = np.asarray(values)
        is_real = values.dtype.kind in "fiu"
    if not is_real:
        raise ValueError(f"the windows are {values.dtype}: real numbers are needed")
    if not (torch if isinstance(values, torch.Tensor) else np).isfinite(values).all():
        raise ValueError("the windows hold NaN or infinity: fill the gaps in first")
    return values


def _sizes(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of the Predictor that has these weights."""
    output_size, hidden_size = weights["output_layer.weight"].shape
    return {
        "input_size": weights["rnn.weight_ih_l0"].shape[1],
        "hidden_size": hidden_size,
        "output_size": output_size,
        "num_layers": sum(name.startswith("rnn.weight_ih_l") for name in weights),
        "scaled": MEAN in weights,
        "difference": int(weights.get(DIFFERENCE, 0)),
    }


class Persistence(nn.Module):
    """The baseline that every model must beat: it predicts the last value again."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, W, D) -> (B, D)"""
        return inputs[:, -1]
