"""On a GPU: the gradient of a batch, and whole training steps, in several ways side by side.

The gradient, in milliseconds (the median; each call ends when the GPU does): nn.LSTM through cuDNN,
the same as a CUDA graph, JAX's scan where JAX has the GPU, and this package's kernel in eight
pieces; and how far kernel and cuDNN are apart, relative to the largest entry. Steps, in samples per
second: this package as it trains, with its kernel and with nn.LSTM, plain torch, and plain torch as
a CUDA graph. A dash stands for what does not fit or is not there.

python benchmarks/gpu.py
"""

import argparse
import functools
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinlstm_dist import job, lstm
from sinlstm_dist.config import load_config
from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.model import Predictor
from sinlstm_dist.processes.joining import join_world
from sinlstm_dist.processes.world import World

WINDOW, PIECES, LR = 50, 8, 0.01
TIMES, ENOUGH_S = 20, 0.4  # of a measurement: at most so many calls, and no more after so long
DEVICE = "cuda"
GRADIENTS = ("cuDNN", "graph", "JAX", "kernel")
OURS = ("kernel", "nn.LSTM")
STEPS = (*OURS, "plain torch", "torch graph")
FULL = ("out of memory", "RESOURCE_EXHAUSTED")  # what torch and JAX say


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call, after two that compile and allocate."""
    call(), call()
    found: list[float] = []
    while len(found) < TIMES and sum(found) < ENOUGH_S:
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def by_cudnn(model: Predictor, windows: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the sum of squared errors, flat."""
    loss = (model(windows) - targets).square().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def by_kernel(model: Predictor, windows: Tensor, targets: Tensor) -> Tensor:
    """The same, from the sum of the pieces' rows."""
    shares = windows.tensor_split(PIECES)
    rows = lstm.predictor_rows(
        windows=windows,
        targets=targets,
        piece_sizes=[len(share) for share in shares],
        parameters=list(model.parameters()),
        tolerance=0.1,
    )
    return rows.sum(0)[: -lstm.predictor.NUM_TOTALS]


def graph_of(call: Callable[[], Any]) -> Callable[[], None]:
    """What replays a call: the GPU is told of all its kernels at once."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # a graph cannot be captured of first calls
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def scan_of(model: Predictor, windows: Tensor, targets: Tensor) -> Callable[[], Any] | None:
    """JAX's gradient, with the peer's program; None without JAX, or without a GPU for it."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or it takes most memory
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    try:
        import jax
        import jax_scan
    except ImportError:
        return None
    if jax.default_backend() != "gpu":
        return None
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
    gradient = jax.jit(jax.grad(jax_scan.loss, has_aux=True))
    weights = {k: jax.numpy.array(v.cpu().numpy()) for k, v in model.state_dict().items()}
    data = [jax.numpy.array(tensor.cpu().numpy()) for tensor in (windows, targets)]
    return lambda: jax.block_until_ready(gradient(weights, *data))


def plain_step(model: Predictor, windows: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    """A step as most programs write it; the batch is on the GPU already."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(windows), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def epoch_size(batch: int) -> int:
    """Samples in an epoch of this package."""
    return max(2 * batch, 2000) // batch * batch


def our_epoch(world: World, batch: int, hidden_size: int, recurrence: str) -> Callable[[], None]:
    """An epoch as training does it: fetch, send, compute, add, move along, but no test."""
    settings = {
        "data.train_size": epoch_size(batch), "data.window": WINDOW,
        "train.global_batch_size": batch,
        "model.hidden_size": hidden_size, "model.lstm": recurrence,
    }  # fmt: skip
    built = job.build(load_config(overrides=settings), world)

    def epoch() -> None:
        for step, share in built.train.batches(whole=built.gradient.is_whole):
            built.gradient(share, epoch=0, step=step, stop=False)
            built.update(step)

    return epoch


def measured(make: Callable[[], Callable[[], Any] | None]) -> float | None:
    """Seconds of what `make` returns; None if that is None, or if memory does not suffice."""
    gc.collect()  # what the last error's traceback still holds
    torch.cuda.empty_cache()
    try:
        call = make()
        return seconds(call) if call else None
    except RuntimeError as error:  # torch's and JAX's errors are of this kind
        cause: BaseException | None = error
        while cause and not any(word in str(cause) for word in FULL):
            cause = cause.__context__  # the capture of a graph ends with an error of its own
        if not cause:  # no reason to leave out the other figures
            print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def has_kernel(hidden_size: int) -> bool:
    """Whether this package's kernel computes this size."""
    sizes = {"device_type": DEVICE, "input_size": 1, "hidden_size": hidden_size, "num_layers": 1}
    return lstm.choose("auto", **sizes).name == "fused"


def inputs(batch: int, hidden_size: int) -> tuple[Predictor, Tensor, Tensor]:
    """A model, windows and targets on the GPU."""
    torch.manual_seed(0)
    windows, targets = SineDataset(size=batch, window=WINDOW)[np.arange(batch)]
    return Predictor(hidden_size=hidden_size).to(DEVICE), windows.to(DEVICE), targets.to(DEVICE)


def gradients(batch: int, hidden_size: int) -> str:
    """A line of the first table."""
    given, fits = inputs(batch, hidden_size), has_kernel(hidden_size)
    found = {
        "cuDNN": measured(lambda: lambda: by_cudnn(*given)),
        "graph": measured(lambda: graph_of(lambda: by_cudnn(*given))),
        "JAX": measured(lambda: scan_of(*given)),
        "kernel": measured(lambda: (lambda: by_kernel(*given)) if fits else None),
    }
    line = "".join(figure(found[name] and 1e3 * found[name], ".3f") for name in GRADIENTS)
    if found["cuDNN"] is None or found["kernel"] is None:
        return line + figure(None, "")
    expected = by_cudnn(*given)
    apart = (by_kernel(*given) - expected).abs().max() / expected.abs().max()
    return line + figure(float(apart), ".1e")


def steps(world: World, batch: int, hidden_size: int) -> str:
    """A line of the second table."""
    ways = {
        "kernel": lambda: our_epoch(world, batch, hidden_size, "fused"),
        "nn.LSTM": lambda: our_epoch(world, batch, hidden_size, "torch"),
        "plain torch": lambda: plain_step(*inputs(batch, hidden_size)),
        "torch graph": lambda: graph_of(plain_step(*inputs(batch, hidden_size))),
    }
    if not has_kernel(hidden_size):
        del ways["kernel"]
    num_samples = {**dict.fromkeys(STEPS, batch), **dict.fromkeys(OURS, epoch_size(batch))}
    found = {name: measured(make) for name, make in ways.items()}
    return "".join(
        figure(num_samples[name] / found[name] if found.get(name) else None, ",.0f")
        for name in STEPS
    )


def figure(number: float | None, form: str) -> str:
    """A number in its column, or a dash."""
    return f"{'-' if number is None else format(number, form):>14}"


def main() -> int:
    """Print a line for each hidden size and batch, as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="*", default=[100, 4096, 65536])
    parser.add_argument("--hidden", type=int, nargs="*", default=[5, 64, 512])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py measures a GPU, and torch finds none here", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32 without TF32")
    with join_world(timeout_s=60, one_thread=True) as world:  # with training's exact settings
        for title, names, line in (
            ("gradient, ms", (*GRADIENTS, "apart"), gradients),
            ("steps, samples/s", STEPS, functools.partial(steps, world)),
        ):
            print(f"\n{title}\nhidden   batch" + "".join(f"{name:>14}" for name in names))
            for hidden_size in options.hidden:
                for batch in options.batch:
                    print(f"{hidden_size:6} {batch:7}{line(batch, hidden_size)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
