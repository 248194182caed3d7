"""On a GPU: the gradient of a batch by nn.LSTM through cuDNN, and by the Triton kernel.

Milliseconds (the median of 20), and how far the two gradients are apart, relative to the largest
entry. Eight pieces per batch, as in training. Written where there is no GPU: never run on one.

python benchmarks/gpu.py
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sinlstm_dist import lstm
from sinlstm_dist.model import Predictor

WINDOW, PIECES, TIMES = 50, 8, 20


def by_cudnn(model: Predictor, windows: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the sum of squared errors, flat."""
    loss = (model(windows) - targets).square().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def by_triton(model: Predictor, windows: Tensor, targets: Tensor) -> Tensor:
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


def milliseconds(compute: Callable[[], Tensor]) -> float:
    """The median, on the GPU's own clock, after one call that compiles."""
    compute()
    found = []
    for _ in range(TIMES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        compute()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


def measure(batch: int, hidden_size: int) -> str:
    """A line of the table."""
    torch.manual_seed(0)
    model = Predictor(hidden_size=hidden_size).cuda()
    data = torch.randn(batch, WINDOW, 1).cuda(), torch.randn(batch, 1).cuda()
    cudnn = milliseconds(lambda: by_cudnn(model, *data))
    if hidden_size > lstm.MAX_HIDDEN_SIZE:
        return f"{cudnn:9.3f}         -"
    triton = milliseconds(lambda: by_triton(model, *data))
    expected = by_cudnn(model, *data)
    apart = (by_triton(model, *data) - expected).abs().max() / expected.abs().max()
    return f"{cudnn:9.3f} {triton:9.3f} {cudnn / triton:12.2f} {apart:.1e}"


def main() -> int:
    """Print one line for each hidden size and batch, as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="*", default=[100, 4096, 65536])
    parser.add_argument("--hidden", type=int, nargs="*", default=[5, 64, 512])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py measures a GPU, and torch finds none here", file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32 without TF32")
    print("hidden   batch  cuDNN ms Triton ms cuDNN/Triton apart")
    for hidden_size in options.hidden:
        for batch in options.batch:
            try:
                line = measure(batch, hidden_size)
            except Exception as error:  # no room for one size is no reason to leave out the rest
                line = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{hidden_size:6} {batch:7} {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
