"""A trained model as ONNX, for runtimes without torch.

    python -m sinlstm_dist.export runs/default --output sine.onnx

The graph is written out here: torch's exporter takes 11 s and one more package, its predecessor
is deprecated, and to ONNX this model is two standard operators. ONNX Runtime checks the result.

Source: the operator LSTM, https://onnx.ai/onnx/operators/onnx__LSTM.html.
"""

import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sinlstm_dist.config import ConfigError, Parser
from sinlstm_dist.launcher import is_speaker
from sinlstm_dist.model import Predictor
from sinlstm_dist.report import show_error, show_text

OPSET, IR_VERSION = 17, 8  # of 2022: runtimes of today and of some years ago read it
BATCHES, WINDOWS = (1, 7, 1000), (10, 50, 200)  # sizes of the random inputs of the check
TOLERANCE = 1e-5  # float32 sums in another order differ by some 1e-7


class Disagreement(Exception):
    """ONNX Runtime computes something else than torch."""


def to_onnx(model: Predictor) -> bytes:
    """The content of an ONNX file: "windows" (batch, window, D) to "predictions" (batch, O).

    Raises:
        ConfigError: the extra "export" is not installed.
    """
    onnx = _import("onnx")
    describe = onnx.helper.make_tensor_value_info
    nodes, constants = _graph(model, onnx.helper.make_node)
    graph = onnx.helper.make_graph(
        nodes,
        "sinlstm_dist",
        [describe("windows", 1, ("batch", "window", model.rnn.input_size))],  # 1 is float32
        [describe("predictions", 1, ("batch", model.output_layer.out_features))],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    file = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(file, full_check=True)
    return bytes(file.SerializeToString())


def _graph(model: Predictor, node: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The operators, in the order of their computation, and their constants."""
    nodes = [node("Transpose", ["windows"], ["steps_0"], perm=[1, 0, 2])]  # (W, B, D)
    constants = {
        "first_axis": np.array([0]),
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
        outputs = ["", "last"] if layer == last_layer else [f"all_{layer}"]
        inputs, hidden_size = [f"steps_{layer}", *weights], model.rnn.hidden_size
        nodes.append(node("LSTM", inputs, outputs, hidden_size=hidden_size))
        if layer < last_layer:
            constants["direction_axis"] = np.array([1])
            all_steps = [f"all_{layer}", "direction_axis"]  # (W, 1, B, H)
            nodes.append(node("Squeeze", all_steps, [f"steps_{layer + 1}"]))  # (W, B, H)
    nodes.append(node("Squeeze", ["last", "first_axis"], ["state"]))  # (1, B, H) to (B, H)
    output = ["state", "output_weight", "output_bias"]
    nodes.append(node("Gemm", output, ["predictions"], transB=1))
    return nodes, constants


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _reordered(tensor: torch.Tensor) -> np.ndarray:
    """torch's gates input, forget, cell, output in ONNX's order: input, output, forget, cell."""
    gates = np.split(_array(tensor), 4)
    return np.concatenate([gates[gate] for gate in (0, 3, 1, 2)])


def check(content: bytes, model: Predictor) -> float:
    """Compare ONNX Runtime with torch on random inputs of several sizes.

    Returns:
        the largest absolute difference.

    Raises:
        Disagreement: it is above TOLERANCE.
        ConfigError: the extra "export" is not installed.
    """
    session = _import("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, window in itertools.product(BATCHES, WINDOWS):
        windows = torch.randn(batch, window, model.rnn.input_size, generator=generator)
        with torch.no_grad():
            expected = model(windows).numpy()
        (found,) = session.run(None, {"windows": windows.numpy()})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:
            raise Disagreement(
                f"ONNX Runtime differs from torch by {difference:.2e} for {batch} windows of "
                f"{window} steps, more than {TOLERANCE:g}: nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"export needs the package {package}: pip install 'sinlstm-dist[export]'"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    if not is_speaker():
        return 0  # one process is enough
    parser = Parser(prog="sinlstm_dist.export", description="Write a trained model as ONNX.")
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="run or checkpoint folder")
    parser.add_argument("--output", metavar="FILE.onnx", type=Path, required=True)
    try:
        options = parser.parse_args(arguments)
        show_text(_export(options.run, options.output))
    except ConfigError as error:
        show_error(str(error))
        return 2
    except Disagreement as error:
        show_error(str(error))
        return 1
    return 0


def _export(run: Path, output: Path) -> str:
    """Write the file once it is checked; returns what to tell the user."""
    if not run.is_dir():
        raise ConfigError(f"{run} is not a folder: name the folder of a finished run")
    model = Predictor.from_pretrained(run)
    content = to_onnx(model)
    difference = check(content, model)
    try:
        output.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be written: {error.strerror}") from error
    return (
        f"{output}: {len(content):,} bytes, batch and window free\n"
        f"ONNX Runtime and torch differ by at most {difference:.1e} for batches of "
        f"{', '.join(map(str, BATCHES))} and windows of {', '.join(map(str, WINDOWS))}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
