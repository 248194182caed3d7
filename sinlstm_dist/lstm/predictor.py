"""Forward pass, squared error and gradients of the predictor, for all pieces of a batch at once.

The predictor is an LSTM of one or several layers over the window, and a linear layer on the last
hidden state. Because the loss is known, the kernel computes a block's gradients while its states
are still in the cache.

Source: Hsu et al.: Liger Kernel (arXiv 2410.10989), for gradients computed in the forward pass.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size, G numbers in all
parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sinlstm_dist import compiled
from sinlstm_dist.lstm.recurrence import check_float32

NUM_TOTALS = 3  # sum of squared errors, correct predictions, samples
LAYER_PARAMETERS, HEAD_PARAMETERS = 4, 2
_FLOAT32 = torch.float32


def predictor_rows(
    *,
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    num_threads: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Gradient and totals of each piece of a batch.

    A row depends only on its piece's samples, in their order, and on the parameters: it has the
    same bits for any number of threads, any other pieces and any place in memory.

    Args:
        windows: (B, W, D) float32 on the CPU or a CUDA GPU, any strides; all other tensors are on
            the same device.
        targets: (B, 1) float32.
        piece_sizes: samples in each piece, 0 allowed; their sum is B.
        parameters: of each layer, the lowest first, weight_ih (4H, D), weight_hh (4H, H),
            bias_ih (4H,) and bias_hh (4H,), with D = H above the lowest; and the linear layer's
            weight (1, H) and bias (1,).
        tolerance: a prediction is correct if |prediction - target| is below it in float32.
        num_threads: at most this many threads, including the caller's. A GPU ignores it.
        out: result, if given: (at least len(piece_sizes), at least G + 3) float32, contiguous
            within a row. Columns after G + 3 and rows after the pieces are not changed.

    Returns:
        (len(piece_sizes), G + 3) float32: the gradient of the *sum* of squared errors with respect
        to each parameter, flattened in the order given, then sum of squared errors, correct
        predictions, samples. The row of an empty piece is zeros.

    Raises:
        ValueError: a tensor has another shape or type, or the sizes do not add up.
        RuntimeError: there is no compiled kernel.
        ImportError: the tensors are on a GPU and cuda-bindings is not installed.
    """
    return _call(
        windows, targets, piece_sizes, parameters, tolerance, num_threads,
        with_gradient=True, out=out,
    )  # fmt: skip


def predictor_totals(
    *,
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    num_threads: int = 1,
) -> Tensor:
    """The last three columns of `predictor_rows`, with the same bits, without computing gradients.

    Args and Raises: as for `predictor_rows`.

    Returns:
        (len(piece_sizes), 3) float32.
    """
    return _call(
        windows, targets, piece_sizes, parameters, tolerance, num_threads, with_gradient=False
    )


def _call(
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    num_threads: int,
    *,
    with_gradient: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Call the kernel once; runs in every training step, so it copies only unusual layouts."""
    B, W, D, H = check_shapes(windows, targets, parameters)
    rows, width = len(piece_sizes), NUM_TOTALS
    if with_gradient:
        num_above = len(parameters) // LAYER_PARAMETERS - 1
        width += 4 * H * (D + H + 2 + num_above * (2 * H + 2)) + H + 1
    if out is not None:
        _check_out(out, rows, width, on_cpu=windows.is_cpu)
    if windows.is_cuda:
        from sinlstm_dist.lstm import cuda  # it imports this module

        return cuda.predictor(
            windows, targets, piece_sizes, parameters, tolerance,
            with_gradient=with_gradient, out=out,
        )  # fmt: skip
    kernel = compiled.kernel()
    check_types(windows, targets, parameters)
    weights = [p if p.is_contiguous() else p.contiguous() for p in parameters]
    if out is None:
        out = torch.empty(rows, width)
    sample, step, feature = windows.stride()
    kernel.predictor(
        windows=windows.data_ptr(), windows_sample_stride=sample, windows_step_stride=step,
        windows_feature_stride=feature, targets=targets.data_ptr(),
        targets_sample_stride=targets.stride(0), piece_sizes=tuple(piece_sizes),
        parameters=tuple([w.data_ptr() for w in weights]), num_samples=B, window=W, input_size=D,
        hidden_size=H, num_threads=num_threads, tolerance=tolerance, with_gradient=with_gradient,
        out=out.data_ptr(), out_row_stride=out.stride(0),
    )  # fmt: skip
    return out if out.shape == (rows, width) else out[:rows, :width]


def check_shapes(
    windows: Tensor, targets: Tensor, parameters: Sequence[Tensor]
) -> tuple[int, int, int, int]:
    """B, W, D and H of tensors as `predictor_rows` takes them.

    Raises:
        ValueError: they do not fit together.
    """
    num_layers, rest = divmod(len(parameters), LAYER_PARAMETERS)
    if windows.dim() != 3 or num_layers < 1 or rest != HEAD_PARAMETERS:
        raise ValueError(
            f"windows have shape {tuple(windows.shape)} with {len(parameters)} parameters: "
            f"(B, W, D) and {LAYER_PARAMETERS} of each layer and {HEAD_PARAMETERS} more are needed"
        )
    B, W, D = windows.shape
    H = parameters[1].shape[-1]
    N = 4 * H
    above = [(N, H), (N,), (N,), (N, H)] * (num_layers - 1)  # weight_hh to the next weight_ih
    shapes = [p.shape for p in (targets, *parameters)]
    if shapes != [(B, 1), (N, D), *above, (N, H), (N,), (N,), (1, H), (1,)]:
        raise ValueError(
            f"targets and parameters have shapes {[tuple(shape) for shape in shapes]}: windows of "
            f"shape {(B, W, D)} need (B, 1), (4H, D), (4H, H), (4H,), (4H,), those of more layers "
            "with D = H, (1, H), (1,)"
        )
    return B, W, D, H


def check_types(windows: Tensor, targets: Tensor, parameters: Sequence[Tensor]) -> None:
    """Refuse tensors that are not float32 or not on the CPU.

    Raises:
        ValueError: names one.
    """
    for tensor in (windows, targets, *parameters):
        if tensor.dtype is not _FLOAT32 or not tensor.is_cpu:
            check_float32(windows=windows, targets=targets)
            check_float32(**{f"parameter_{i}": p for i, p in enumerate(parameters)})


def _check_out(out: Tensor, rows: int, width: int, *, on_cpu: bool) -> None:
    if (
        out.dim() != 2
        or out.shape[0] < rows
        or out.shape[1] < width
        or out.stride(1) != 1
        or out.dtype is not torch.float32
        or out.is_cpu is not on_cpu
    ):
        raise ValueError(
            f"out has shape {tuple(out.shape)} and strides {out.stride()} and is {out.dtype} on "
            f"{out.device}: it needs at least ({rows}, {width}) torch.float32 on the "
            f"{'CPU' if on_cpu else 'GPU'}, contiguous within a row"
        )
