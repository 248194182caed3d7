"""Forward pass, squared error and gradients of the predictor for all pieces of a batch in a call.

An LSTM over the window and a linear layer on its last hidden state. Because the loss is known, the
gradients are computed block by block while a block's states are still in the core's cache. On a GPU
the Triton kernel does the same.

Source: Hsu et al.: Liger Kernel (arXiv 2410.10989), for gradients computed in the forward pass.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size, G parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sinlstm_dist.lstm import compiled

NUM_TOTALS = 3  # sum of squared errors, correct predictions, samples
NUM_PARAMETERS = 6
_FLOAT32 = torch.float32


def predictor_rows(
    *,
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    num_threads: int = 1,
    indices: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Gradient and totals of each piece of a batch.

    A row is a pure function of its piece's samples in their order and of the parameters: the same
    bits for any number of threads, neighbours and place in memory.

    Args:
        windows: (B, W, D) float32 on the CPU or a CUDA GPU, any strides; all other tensors lie on
            the same device.
        targets: (B, 1) float32.
        piece_sizes: samples of each piece, zeros allowed; they add up to B (to the number of
            `indices`, if given).
        parameters: weight_ih (4H, D), weight_hh (4H, H), bias_ih (4H,), bias_hh (4H,), and the
            linear layer's weight (1, H) and bias (1,).
        tolerance: a prediction is correct if |prediction - target| is below it in float32.
        num_threads: threads at most, the caller's among them. A GPU has its own.
        indices: int64; sample i of the batch is row indices[i] of windows and targets. None: row i.
        out: written to if given: (at least len(piece_sizes), at least G + 3) float32, contiguous
            within a row. Columns beyond G + 3 and rows beyond the pieces are left alone.

    Returns:
        (len(piece_sizes), G + 3) float32: the gradient of the *sum* of squared errors with respect
        to each parameter, flattened in the order given, then sum of squared errors, correct
        predictions, samples. The row of an empty piece is zeros.

    Raises:
        ValueError: a tensor has another shape or type, or the sizes do not add up.
        IndexError: one of `indices` is outside. (On a GPU, CUDA reports it, and later.)
        RuntimeError: there is no compiled kernel.
        ImportError: the tensors are on a GPU and Triton is not installed.
    """
    return _call(
        windows, targets, piece_sizes, parameters, tolerance, num_threads, indices, out, True
    )


def predictor_totals(
    *,
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    num_threads: int = 1,
    indices: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The last three columns of `predictor_rows`, the same bits, without the gradients' cost.

    Args:
        windows: and all others: as for `predictor_rows`.

    Returns:
        (len(piece_sizes), 3) float32.

    Raises:
        ValueError, IndexError, RuntimeError, ImportError: as `predictor_rows`.
    """
    return _call(
        windows, targets, piece_sizes, parameters, tolerance, num_threads, indices, out, False
    )


def _call(
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    num_threads: int,
    indices: Tensor | None,
    out: Tensor | None,
    with_gradient: bool,
) -> Tensor:
    """One call of the kernel. Runs once a training step, so it only looks, and copies nothing
    that is laid out as usual."""
    num_rows, W, D, H = _check(windows, targets, parameters)
    G = 4 * H * (D + H + 2) + H + 1
    rows, width = len(piece_sizes), G + NUM_TOTALS if with_gradient else NUM_TOTALS
    if out is not None:
        _check_out(out, rows, width, on_cpu=windows.is_cpu)
    if windows.is_cuda:
        return _call_on_gpu(
            windows, targets, piece_sizes, parameters, tolerance, indices, out, with_gradient
        )
    kernel = compiled.kernel()
    _check_types(windows, targets, parameters)
    num_samples = num_rows if indices is None else _check_indices(indices)
    weights = [p if p.is_contiguous() else p.contiguous() for p in parameters]
    if out is None:
        out = torch.empty(rows, width)
    kernel.predictor(
        windows.data_ptr(), *windows.stride(), num_rows,
        targets.data_ptr(), targets.stride(0), 0 if indices is None else indices.data_ptr(),
        num_samples, tuple(piece_sizes), *[w.data_ptr() for w in weights],
        W, D, H, tolerance, num_threads, with_gradient, out.data_ptr(), out.stride(0),
    )  # fmt: skip
    return out if out.shape == (rows, width) else out[:rows, :width]


def _call_on_gpu(
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    indices: Tensor | None,
    out: Tensor | None,
    with_gradient: bool,
) -> Tensor:
    from sinlstm_dist.lstm import triton_kernel  # takes a second, and Triton need not be there

    if indices is not None:
        windows, targets = windows[indices], targets[indices]
    return triton_kernel.predictor(
        windows, targets, piece_sizes, parameters, tolerance, with_gradient=with_gradient, out=out
    )


def _check(
    windows: Tensor, targets: Tensor, parameters: Sequence[Tensor]
) -> tuple[int, int, int, int]:
    """B, W, D, H of tensors that fit together."""
    if windows.dim() != 3 or len(parameters) != NUM_PARAMETERS:
        raise ValueError(
            f"windows have shape {tuple(windows.shape)} with {len(parameters)} parameters: "
            f"(B, W, D) and {NUM_PARAMETERS} are needed"
        )
    B, W, D = windows.shape
    H = parameters[1].shape[-1]
    found = [p.shape for p in (targets, *parameters)]
    if found != [(B, 1), (4 * H, D), (4 * H, H), (4 * H,), (4 * H,), (1, H), (1,)]:
        raise ValueError(
            f"targets and parameters have shapes {[tuple(shape) for shape in found]}: windows of "
            f"shape {(B, W, D)} need (B, 1), (4H, D), (4H, H), (4H,), (4H,), (1, H), (1,)"
        )
    return B, W, D, H


def _check_types(windows: Tensor, targets: Tensor, parameters: Sequence[Tensor]) -> None:
    for tensor in (windows, targets, *parameters):
        if tensor.dtype is not _FLOAT32 or not tensor.is_cpu:
            compiled.check_float32(windows=windows, targets=targets)
            compiled.check_float32(**{f"parameter_{i}": p for i, p in enumerate(parameters)})


def _check_indices(indices: Tensor) -> int:
    if (
        indices.dim() != 1
        or indices.dtype is not torch.int64
        or not indices.is_cpu
        or not indices.is_contiguous()
    ):
        raise ValueError(
            f"indices have shape {tuple(indices.shape)} and are {indices.dtype} on "
            f"{indices.device}: one contiguous dimension of torch.int64 on the CPU is needed"
        )
    return indices.shape[0]


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
