"""A trained model as ONNX, for runtimes without torch.

    python -m sinlstm_dist.export runs/default --output sine.onnx

The graph is written out here: torch's exporter takes 11 s and one more package, its predecessor
is deprecated, and to ONNX this model is two standard operators. ONNX Runtime checks the result.

Source: the operator LSTM, https://onnx.ai/onnx/operators/onnx__LSTM.html.
"""

import importlib
import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sinlstm_dist.command import as_program, command
from sinlstm_dist.differences import integrate
from sinlstm_dist.errors import ConfigError, MissingPackage, RunError
from sinlstm_dist.model import Predictor
from sinlstm_dist.screen.console import show_text
from sinlstm_dist.trained import refuse_task
from sinlstm_dist.words import counted

FLOAT, DOUBLE = 1, 11  # ONNX's numbers of its types
LAST = 2**63 - 1  # as the end of a slice: after its last element
OPSET, IR_VERSION = 17, 8  # of 2022: runtimes of today and of some years ago read it
CHECKED_BATCHES, CHECKED_WINDOWS = (1, 7, 1000), (10, 50, 200)  # sizes of the check's inputs
TOLERANCE = 1e-5  # float32 sums in another order differ by some 1e-7


def to_onnx(model: Predictor) -> bytes:
    """The content of an ONNX file: "windows" (batch, window, D) to "predictions" (batch, O).

    A model that learns differences at a lag of n reads windows of n more values.

    Both are in the user's units, float32 of the sine and float64 of a series, whose values may be
    large compared with their differences.

    Raises:
        ConfigError: the extra "export" is not installed.
    """
    onnx = _import("onnx")
    describe, kind = onnx.helper.make_tensor_value_info, DOUBLE if model.scaling else FLOAT
    nodes, constants = _graph(model, onnx.helper.make_node)
    graph = onnx.helper.make_graph(
        nodes,
        "sinlstm_dist",
        [describe("windows", kind, ("batch", "window", model.rnn.input_size))],
        [describe("predictions", kind, ("batch", model.output_layer.out_features))],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    file = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(file, full_check=True)
    return bytes(file.SerializeToString())


def _graph(model: Predictor, node: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The operators, in the order of their computation, and their constants."""
    before, after, units = _units(model, node)
    constants = {"first_axis": np.array([0]), **units}
    inputs, outputs = ("inputs", "outputs") if model.scaling else ("windows", "predictions")
    nodes = [*before, node("Transpose", [inputs], ["steps_0"], perm=[1, 0, 2])]  # (W, B, D)
    constants |= {
        "output_weight": _array(model.output_layer.weight),
        "output_bias": _array(model.output_layer.bias),
    }
    last_layer = model.rnn.num_layers - 1
    for layer, tensors in enumerate(model.rnn.all_weights):
        weight_ih, weight_hh, bias_ih, bias_hh = (_reordered(tensor) for tensor in tensors)
        weights = {
            f"weight_ih_{layer}": weight_ih[None],
            f"weight_hh_{layer}": weight_hh[None],
            f"bias_{layer}": np.concatenate((bias_ih, bias_hh))[None],
        }
        constants |= weights
        results = ["", "last"] if layer == last_layer else [f"all_{layer}"]
        operands, hidden_size = [f"steps_{layer}", *weights], model.rnn.hidden_size
        nodes.append(node("LSTM", operands, results, hidden_size=hidden_size))
        if layer < last_layer:
            constants["direction_axis"] = np.array([1])
            all_steps = [f"all_{layer}", "direction_axis"]  # (W, 1, B, H)
            nodes.append(node("Squeeze", all_steps, [f"steps_{layer + 1}"]))  # (W, B, H)
    nodes.append(node("Squeeze", ["last", "first_axis"], ["state"]))  # (1, B, H) to (B, H)
    output = ["state", "output_weight", "output_bias"]
    nodes.append(node("Gemm", output, [outputs], transB=1))
    return [*nodes, *after], constants


def _units(model: Predictor, node: Any) -> tuple[list[Any], list[Any], dict[str, np.ndarray]]:
    """What takes "windows" of a series to the model's "inputs", and its "outputs" to "predictions".

    Returns:
        the operators of both, and their constants; none for the sine.
    """
    if not model.scaling:
        return [], [], {}
    values, predictions, lag = "windows", "predictions", model.scaling.lag
    mean, std = model.scaling.mean.double(), model.scaling.std.double()
    constants, before, after = {"mean": _array(mean), "std": _array(std)}, [], []
    if lag:
        values, predictions = "differences", "difference"
        ends = {"start": 0, "lag": lag, "lag_from_end": -lag, "end": LAST, "steps_axis": 1}
        constants |= {name: np.array([number]) for name, number in ends.items()}
        constants["target_lag"] = np.array(-lag)
        before = [
            node("Slice", ["windows", "lag", "end", "steps_axis"], ["later"]),
            node("Slice", ["windows", "start", "lag_from_end", "steps_axis"], ["earlier"]),
            node("Sub", ["later", "earlier"], ["differences"]),
        ]
        after = [
            node("Gather", ["windows", "target_lag"], ["lagged"], axis=1),  # (B, D)
            node("Add", ["lagged", "difference"], ["predictions"]),
        ]
    before += [
        node("Sub", [values, "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["exact"]),
        node("Cast", ["exact"], ["inputs"], to=FLOAT),
    ]
    after = [
        node("Cast", ["outputs"], ["widened"], to=DOUBLE),
        node("Mul", ["widened", "std"], ["spread"]),
        node("Add", ["spread", "mean"], [predictions]),
        *after,
    ]
    return before, after, constants


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _reordered(tensor: torch.Tensor) -> np.ndarray:
    """torch's gates input, forget, cell, output in ONNX's order: input, output, forget, cell."""
    gates = np.split(_array(tensor), 4)
    return np.concatenate([gates[gate] for gate in (0, 3, 1, 2)])


def check(content: bytes, model: Predictor) -> float:
    """Compare ONNX Runtime with torch on random inputs of several sizes.

    Returns:
        the largest absolute difference, in the model's units.

    Raises:
        RunError: it is above TOLERANCE.
        ConfigError: the extra "export" is not installed.
    """
    session = _import("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst, unit = 0.0, float(model.scaling.std) if model.scaling else 1.0
    for batch, window in itertools.product(CHECKED_BATCHES, CHECKED_WINDOWS):
        windows = _windows(model, (batch, window, model.rnn.input_size), generator)
        expected = model.predict(windows).numpy()
        (predictions,) = session.run(None, {"windows": windows.numpy()})
        difference = float(np.abs(predictions - expected).max()) / unit
        if not difference <= TOLERANCE:
            raise RunError(
                f"ONNX Runtime differs from torch by {difference:.2e} for "
                f"{counted(batch, 'window')} of {counted(window, 'step')}, "
                f"more than {TOLERANCE:g}: nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _windows(model: Predictor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random windows in the user's units whose inputs to the model have this shape."""
    inputs = torch.randn(*shape, generator=generator)
    if not model.scaling:
        return inputs
    differenced = model.scaling.undo(inputs).transpose(1, 2)  # (B, D, W)
    before = torch.randn(*differenced.shape[:2], model.scaling.lag, generator=generator).double()
    values = integrate(before.numpy(), differenced.numpy())
    return torch.from_numpy(np.concatenate((before, values), axis=2)).transpose(1, 2)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingPackage("export", package=package, install="sinlstm-dist[export]") from error


@command("export", by_one=True)
def main(options: Namespace) -> int:
    """Write a trained model as ONNX."""
    if not os.path.isdir(options.path):
        raise ConfigError(f"{options.path} is not a folder: name the folder of a finished run")
    refuse_task(Path(options.path), "an ONNX graph")
    model = Predictor.from_pretrained(options.path)
    content = to_onnx(model)
    difference = check(content, model)
    try:
        Path(options.output).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{options.output}: cannot be written: {error.strerror}") from error
    show_text(
        f"{options.output}: {len(content):,} bytes, batch and window free\n"
        f"ONNX Runtime and torch differ by at most {difference:.1e} for batches of "
        f"{', '.join(map(str, CHECKED_BATCHES))} and windows of "
        f"{', '.join(map(str, CHECKED_WINDOWS))}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
