"""EXPERIMENTAL: `predictor_rows` on a GPU, as a Triton kernel. It has never run on a GPU.

It is used only if the user asks for lstm = "fused" on a CUDA device (see choice.py); the default
there is torch.nn.LSTM. So far it has been compiled for GPUs, and its tests run it in Triton's
interpreter on the CPU, as this command does:

    TRITON_INTERPRET=1 python -c "import torch
    from sinlstm_dist.lstm.triton_experimental import predictor
    sizes = (8, 1), (8, 2), (8,), (8,), (1, 2), (1,)
    print(predictor(torch.ones(3, 4, 1), torch.ones(3, 1), [2, 1],
                    [torch.ones(s) for s in sizes], 0.1, with_gradient=False))"

One program computes all time steps of a block of 16 samples. It keeps weights, states and sums of
gradients in registers. The forward pass writes the state before each step to a tape; the backward
pass reads the tape and computes the gates again. Each block's sums go to memory, and a second
kernel adds them in order. There are no atomics, so the result does not depend on which program
computes a block. Hidden sizes above 32 need 144 KB of shared memory (A100, H100).

Source: Hsu et al.: Liger Kernel (arXiv 2410.10989), for gradients computed in the forward pass.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size, G parameters.
"""

import inspect
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from sinlstm_dist.lstm.choice import MAX_HIDDEN_SIZE
from sinlstm_dist.lstm.predictor import NUM_TOTALS

MIN_DOT_SIZE = 16  # rows and columns of the smallest matrices that tl.dot multiplies
BLOCK_SAMPLES = MIN_DOT_SIZE
COLUMNS = 256  # of a row, added by one program
# By padded hidden size: the warps whose registers hold a program's matrices (most of them for 64).
NUM_WARPS = {16: 2, 32: 8, 64: 16}
NUM_STAGES = 1  # loading ahead would need more registers than a program has
WARPS_PER_PROCESSOR = 8  # when each warp uses as many registers as it may


def predictor(
    windows: Tensor,
    targets: Tensor,
    piece_sizes: Sequence[int],
    parameters: Sequence[Tensor],
    tolerance: float,
    *,
    with_gradient: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Compute the rows of `lstm.predictor_rows`, or only their last three columns.

    Args:
        with_gradient: whether to compute the gradient's columns.

    All other arguments are those of `lstm.predictor_rows`; `parameters` have a hidden size of at
    most 64.

    Returns:
        (len(piece_sizes), G + 3 or 3) float32 on the device of `windows`.

    Raises:
        ValueError: `piece_sizes` do not add up, a size is out of range, or a tensor is not float32
            on the device of `windows`.
    """
    _check(windows, targets, parameters, out)
    blocks, piece_blocks = _blocks(tuple(piece_sizes), windows.shape[0], windows.device)
    width = NUM_TOTALS + (sum(p.numel() for p in parameters) if with_gradient else 0)
    num_pieces = len(piece_sizes)
    if out is None:
        out = windows.new_empty(num_pieces, width)
    with torch.cuda.device_of(windows):
        partials = _partials(windows, targets, blocks, parameters, tolerance, width)
        if num_pieces:
            _piece_rows[(num_pieces, triton.cdiv(width, COLUMNS))](
                partials, piece_blocks, out, out.stride(0), width, COLUMNS
            )
    return out[:num_pieces, :width]


def _partials(
    windows: Tensor,
    targets: Tensor,
    blocks: Tensor,
    parameters: Sequence[Tensor],
    tolerance: float,
    width: int,
) -> Tensor:
    """The blocks' sums: (blocks, width)."""
    (_, W, D), H = windows.shape, parameters[1].shape[1]
    with_gradient = width > NUM_TOTALS
    features, units = _padded(D + 1), _padded(H)
    num_programs = min(len(blocks), _max_programs(windows.device, NUM_WARPS[units]))
    tape = windows.new_empty(num_programs * W * 2 * BLOCK_SAMPLES * units if with_gradient else 0)
    partials = windows.new_empty(len(blocks), width)
    if num_programs:
        _block_rows[(num_programs,)](
            windows, *windows.stride(), targets, targets.stride(0), blocks, len(blocks),
            *[p.contiguous() for p in parameters], tape, partials, width, W, D, H, tolerance,
            int(with_gradient), BLOCK_SAMPLES, features, units, num_warps=NUM_WARPS[units],
            num_stages=NUM_STAGES,
        )  # fmt: skip
    return partials


def _check(
    windows: Tensor, targets: Tensor, parameters: Sequence[Tensor], out: Tensor | None
) -> None:
    for tensor in (windows, targets, *parameters, *([] if out is None else [out])):
        if tensor.dtype is not torch.float32 or tensor.device != windows.device:
            raise ValueError(
                f"a tensor is {tensor.dtype} on {tensor.device}: the Triton kernel needs "
                f"torch.float32 on {windows.device}, where the windows are"
            )
    W, D, H = windows.shape[1], windows.shape[2], parameters[1].shape[1]
    if not (W >= 1 and D >= 1 and 1 <= H <= MAX_HIDDEN_SIZE):
        raise ValueError(
            f"window {W}, input size {D}, hidden size {H}: the Triton kernel needs at least 1 of "
            f"each and a hidden size of at most {MAX_HIDDEN_SIZE}"
        )


def _padded(size: int) -> int:
    return max(MIN_DOT_SIZE, triton.next_power_of_2(size))


@lru_cache(maxsize=16)  # an epoch's steps have two or three lists of sizes, and copying takes time
def _blocks(piece_sizes: tuple[int, ...], B: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First sample and size of each block; and each piece's first block, with the end."""
    if min(piece_sizes, default=0) < 0 or sum(piece_sizes) != B:
        raise ValueError(f"piece_sizes {piece_sizes} do not add up to the {B} samples there are")
    blocks: list[tuple[int, int]] = []
    piece_blocks, first = [0], 0
    for size in piece_sizes:
        for done in range(0, size, BLOCK_SAMPLES):
            blocks.append((first + done, min(BLOCK_SAMPLES, size - done)))
        piece_blocks.append(len(blocks))
        first += size
    table = torch.tensor(blocks, dtype=torch.int32, device=device).view(-1, 2)
    return table, torch.tensor(piece_blocks, dtype=torch.int32, device=device)


def _max_programs(device: torch.device, num_warps: int) -> int:
    """The number of programs that run at the same time."""
    if device.type == "cpu":  # the interpreter, one after the other
        return 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return processors * max(1, WARPS_PER_PROCESSOR // num_warps)


def _jit(function):
    """Compile once for all pointers and sizes.

    Code specialised for an alignment, or for a size of 1, might add in another order.
    """
    names = inspect.signature(function).parameters.keys() - function.__annotations__.keys()
    return triton.jit(function, do_not_specialize=sorted(names))


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _gates(x, h, weight_x, weight_h, used, LANES: tl.constexpr, UNITS: tl.constexpr):
    """The gates i, f, g, o after their nonlinearity, each (LANES, UNITS).

    Sums of idle lanes and units are set to zero: with infinite inputs or weights they are NaN.
    """
    sums = tl.dot(x, weight_x, input_precision="ieee")
    sums = tl.dot(h, weight_h, sums, input_precision="ieee")
    sums = tl.where(used, sums, 0.0)  # (LANES, 4 UNITS)
    i_g, f_o = tl.split(tl.reshape(sums, (LANES, UNITS, 2, 2)))
    i, g = tl.split(i_g)
    f, o = tl.split(f_o)
    return tl.sigmoid(i), tl.sigmoid(f), _tanh(g), tl.sigmoid(o)


@_jit
def _block_rows(
    windows, stride_sample, stride_step, stride_feature, targets, stride_target, blocks, num_blocks,
    weight_ih, weight_hh, bias_ih, bias_hh, head_weight, head_bias, tape, partials, width,
    W, D, H, tolerance, with_gradient,
    LANES: tl.constexpr, FEATURES: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Each block's sums, in the layout of the rows.

    `with_gradient` is no constant, so that the totals come from the same code in both cases.
    """
    lane, unit, feature = tl.arange(0, LANES), tl.arange(0, UNITS), tl.arange(0, FEATURES)
    column = tl.arange(0, 4 * UNITS)  # the four gates of unit 0, then those of unit 1, ...
    gate = column % 4 * H + column // 4  # row of the weights
    is_unit, is_gate, is_feature, is_one = unit < H, column // 4 < H, feature < D, feature == D
    at_x = gate[None, :] * D + feature[:, None]
    at_h = gate[None, :] * H + unit[:, None]
    is_x, is_h = is_feature[:, None] & is_gate[None, :], is_unit[:, None] & is_gate[None, :]
    weight_h = tl.load(weight_hh + at_h, mask=is_h, other=0.0)  # (UNITS, 4 UNITS)
    weight_x = tl.load(weight_ih + at_x, mask=is_x, other=0.0)  # (FEATURES, 4 UNITS)
    bias = tl.load(bias_ih + gate, mask=is_gate, other=0.0)
    bias += tl.load(bias_hh + gate, mask=is_gate, other=0.0)
    weight_x = tl.where(is_one[:, None], bias[None, :], weight_x)  # bias: a feature that is 1
    head = tl.load(head_weight + unit, mask=is_unit, other=0.0)

    program = tl.program_id(0).to(tl.int64)
    state = lane[:, None] * UNITS + unit[None, :]
    states = tape + program * W * (2 * LANES * UNITS) + state
    for block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
        num_samples = tl.load(blocks + 2 * block + 1)
        sample = tl.load(blocks + 2 * block).to(tl.int64) + lane
        is_sample = lane < num_samples
        used = is_sample[:, None] & is_gate[None, :]
        at_window = windows + sample[:, None] * stride_sample + feature[None, :] * stride_feature
        is_value = is_sample[:, None] & is_feature[None, :]
        idle = tl.where(is_sample[:, None] & is_one[None, :], 1.0, 0.0)

        h = tl.zeros((LANES, UNITS), tl.float32)
        c = tl.zeros((LANES, UNITS), tl.float32)
        for t in range(W):
            before = states + t * (2 * LANES * UNITS)
            tl.store(before, h, mask=with_gradient != 0)
            tl.store(before + LANES * UNITS, c, mask=with_gradient != 0)
            x = tl.load(at_window + t * stride_step, mask=is_value, other=idle)
            i, f, g, o = _gates(x, h, weight_x, weight_h, used, LANES, UNITS)
            c = f * c + i * g
            h = o * _tanh(c)

        target = tl.load(targets + sample * stride_target, mask=is_sample, other=0.0)
        prediction = tl.sum(h * head[None, :], axis=1) + tl.load(head_bias)
        error = tl.where(is_sample, prediction - target, 0.0)
        correct = is_sample & (tl.abs(error) < tolerance)
        row = partials + tl.cast(block, tl.int64) * width
        tl.store(row + width - 3, tl.sum(error * error))
        tl.store(row + width - 2, tl.sum(correct.to(tl.float32)))
        tl.store(row + width - 1, num_samples.to(tl.float32))

        if with_gradient != 0:
            slope = (2 * error)[:, None]  # zero in idle lanes
            at_head = row + 4 * H * (D + H + 2)
            tl.store(at_head + unit, tl.sum(slope * h, axis=0), mask=is_unit)
            tl.store(at_head + H, tl.sum(2 * error))
            dh = slope * head[None, :]
            dc = tl.zeros((LANES, UNITS), tl.float32)
            sum_x = tl.zeros((FEATURES, 4 * UNITS), tl.float32)
            sum_h = tl.zeros((UNITS, 4 * UNITS), tl.float32)
            tl.debug_barrier()  # different threads write and read the tape
            for back in range(W):
                t = W - 1 - back
                before = states + t * (2 * LANES * UNITS)
                h = tl.load(before)
                c = tl.load(before + LANES * UNITS)
                x = tl.load(at_window + t * stride_step, mask=is_value, other=idle)
                i, f, g, o = _gates(x, h, weight_x, weight_h, used, LANES, UNITS)
                tanh_c = _tanh(f * c + i * g)
                dc += dh * o * (1 - tanh_c * tanh_c)
                i_g = tl.join(dc * g * i * (1 - i), dc * i * (1 - g * g))
                f_o = tl.join(dc * c * f * (1 - f), dh * tanh_c * o * (1 - o))
                dgates = tl.reshape(tl.join(i_g, f_o), (LANES, 4 * UNITS))
                sum_x = tl.dot(tl.trans(x), dgates, sum_x, input_precision="ieee")
                sum_h = tl.dot(tl.trans(h), dgates, sum_h, input_precision="ieee")
                dh = tl.dot(dgates, tl.trans(weight_h), input_precision="ieee")
                dc *= f
            tl.debug_barrier()  # read the tape before the next block overwrites it
            tl.store(row + at_x, sum_x, mask=is_x)
            tl.store(row + 4 * H * D + at_h, sum_h, mask=is_h)
            sum_bias = tl.sum(tl.where(is_one[:, None], sum_x, 0.0), axis=0)
            at_bias = row + 4 * H * (D + H) + gate
            tl.store(at_bias, sum_bias, mask=is_gate)  # both biases have the same gradient
            tl.store(at_bias + 4 * H, sum_bias, mask=is_gate)


@_jit
def _piece_rows(partials, piece_blocks, out, stride_out, width, COLUMNS: tl.constexpr):
    """Add each piece's blocks, in their order."""
    piece = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for block in range(tl.load(piece_blocks + piece), tl.load(piece_blocks + piece + 1)):
        row = partials + tl.cast(block, tl.int64) * width
        total += tl.load(row + column, mask=is_column, other=0.0)
    tl.store(out + tl.cast(piece, tl.int64) * stride_out + column, total, mask=is_column)
