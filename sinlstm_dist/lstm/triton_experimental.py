"""The predictor's rows on a GPU: each block of samples is one program's work for all time steps.

A program keeps weights, states and gradients' sums in registers, writes the states before each
step to a tape of its own, and goes back over it, computing the gates again rather than reading
them. Blocks' sums go to memory and are added in order by a second kernel: nothing is atomic, and
which program computes a block changes nothing.

Hidden sizes above 32 need 144 KB of shared memory, as A100 and H100 have it.

Never run on a GPU so far: compiled for some, and run by Triton's interpreter on the CPU, as here:

    TRITON_INTERPRET=1 python -c "import torch; from sinlstm_dist.lstm import triton_kernel
    print(triton_kernel.predictor(torch.ones(3, 4, 1), torch.ones(3, 1), [2, 1], [torch.ones(s)
    for s in ((8, 1), (8, 2), (8,), (8,), (1, 2), (1,))], 0.1, with_gradient=False))"

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

NUM_TOTALS = 3  # sum of squared errors, correct predictions, samples
LEAST = 16  # rows and columns of the smallest matrices that tl.dot multiplies
BLOCK = LEAST  # samples
COLUMNS = 256  # of a row, added by one program
# By padded hidden size: so many have the registers for a program's matrices (for 64, most of them).
NUM_WARPS = {16: 2, 32: 8, 64: 16}
NUM_STAGES = 1  # reading ahead would take registers that there are not
WARPS_PER_PROCESSOR = 8  # with all the registers that they may have


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
    """The rows of `lstm.predictor_rows`, or only their last three columns; see there.

    Args:
        windows: (B, W, D) float32, any strides, W at least 1.
        targets: (B, 1) float32.
        piece_sizes: samples of each piece; they add up to B.
        parameters: the six, of hidden size 64 at most.
        tolerance: a prediction is correct if |prediction - target| is below it in float32.
        with_gradient: whether the gradient's columns are wanted.
        out: (at least the pieces, at least the columns) float32; None: a new tensor.

    Returns:
        (len(piece_sizes), G + 3 or 3) float32 on the device of `windows`.

    Raises:
        ValueError: `piece_sizes` do not add up, a size is out of range, or a tensor is not float32
            on the device of `windows`.
    """
    _check(windows, targets, parameters, out)
    (B, W, D), H = windows.shape, parameters[1].shape[1]
    weights = [p.contiguous() for p in parameters]
    width = NUM_TOTALS + (sum(w.numel() for w in weights) if with_gradient else 0)
    blocks, piece_blocks = _blocks(tuple(piece_sizes), B, windows.device)
    features, units = _padded(D + 1), _padded(H)
    num_programs = min(len(blocks), _most_programs(windows.device, NUM_WARPS[units]))
    tape = windows.new_empty(num_programs * W * 2 * BLOCK * units if with_gradient else 0)
    partials = windows.new_empty(len(blocks), width)
    num_pieces = len(piece_sizes)
    if out is None:
        out = windows.new_empty(num_pieces, width)
    with torch.cuda.device_of(windows):
        if num_programs:
            _block_rows[(num_programs,)](
                windows, *windows.stride(), targets, targets.stride(0), blocks, len(blocks),
                *weights, tape, partials, width, W, D, H, tolerance, int(with_gradient),
                BLOCK, features, units, num_warps=NUM_WARPS[units], num_stages=NUM_STAGES,
            )  # fmt: skip
        if num_pieces:
            _piece_rows[(num_pieces, triton.cdiv(width, COLUMNS))](
                partials, piece_blocks, out, out.stride(0), width, COLUMNS
            )
    return out[:num_pieces, :width]


def _check(
    windows: Tensor, targets: Tensor, parameters: Sequence[Tensor], out: Tensor | None
) -> None:
    for tensor in (windows, targets, *parameters, *([] if out is None else [out])):
        if tensor.dtype is not torch.float32 or tensor.device != windows.device:
            raise ValueError(
                f"a tensor is {tensor.dtype} on {tensor.device}: the Triton kernel needs "
                f"torch.float32 on {windows.device}, as the windows"
            )
    W, D, H = windows.shape[1], windows.shape[2], parameters[1].shape[1]
    if not (W >= 1 and D >= 1 and 1 <= H <= MAX_HIDDEN_SIZE):
        raise ValueError(
            f"window {W}, input size {D}, hidden size {H}: the Triton kernel needs at least 1 of "
            f"each and a hidden size of at most {MAX_HIDDEN_SIZE}"
        )


def _padded(size: int) -> int:
    return max(LEAST, triton.next_power_of_2(size))


@lru_cache(maxsize=16)  # an epoch's steps have two or three lists of sizes, and copies take time
def _blocks(piece_sizes: tuple[int, ...], B: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First sample and size of each block, and the blocks before each piece and before the end."""
    if min(piece_sizes, default=0) < 0 or sum(piece_sizes) != B:
        raise ValueError(f"piece_sizes {piece_sizes} do not add up to the {B} samples there are")
    blocks: list[tuple[int, int]] = []
    piece_blocks, first = [0], 0
    for size in piece_sizes:
        blocks += [(first + done, min(BLOCK, size - done)) for done in range(0, size, BLOCK)]
        piece_blocks.append(len(blocks))
        first += size
    table = torch.tensor(blocks, dtype=torch.int32, device=device).view(-1, 2)
    return table, torch.tensor(piece_blocks, dtype=torch.int32, device=device)


def _most_programs(device: torch.device, num_warps: int) -> int:
    """As many as run at a time."""
    if device.type == "cpu":  # the interpreter, one after the other
        return 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return processors * max(1, WARPS_PER_PROCESSOR // num_warps)


def _jit(function):
    """Compiled once for all pointers and sizes: code made for an alignment, or for a size of 1,
    might add in another order."""
    names = inspect.signature(function).parameters.keys() - function.__annotations__.keys()
    return triton.jit(function, do_not_specialize=sorted(names))


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _gates(x, h, weight_x, weight_h, used, LANES: tl.constexpr, UNITS: tl.constexpr):
    """The gates i, f, g, o after their nonlinearity, each (LANES, UNITS).

    Idle lanes and units count as zeros, whatever infinite inputs and weights make of them.
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
    """Each block's sums, laid out as the rows are. The gradient is an if, not a constant, so that
    totals come from the same code with it and without."""
    lane, unit, feature = tl.arange(0, LANES), tl.arange(0, UNITS), tl.arange(0, FEATURES)
    column = tl.arange(0, 4 * UNITS)  # unit by unit, its four gates side by side
    gate = column % 4 * H + column // 4  # the weights' row
    is_unit, is_gate, is_feature, is_one = unit < H, column // 4 < H, feature < D, feature == D
    at_x = gate[None, :] * D + feature[:, None]
    at_h = gate[None, :] * H + unit[:, None]
    is_x, is_h = is_feature[:, None] & is_gate[None, :], is_unit[:, None] & is_gate[None, :]
    weight_h = tl.load(weight_hh + at_h, mask=is_h, other=0.0)  # (UNITS, 4 UNITS)
    weight_x = tl.load(weight_ih + at_x, mask=is_x, other=0.0)  # (FEATURES, 4 UNITS)
    bias = tl.load(bias_ih + gate, mask=is_gate, other=0.0)
    bias += tl.load(bias_hh + gate, mask=is_gate, other=0.0)
    weight_x = tl.where(is_one[:, None], bias[None, :], weight_x)  # of a feature that is always 1
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
            tl.debug_barrier()  # the tape's writers and readers are different threads
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
            tl.debug_barrier()  # before the next block is written over what is being read
            tl.store(row + at_x, sum_x, mask=is_x)
            tl.store(row + 4 * H * D + at_h, sum_h, mask=is_h)
            sum_bias = tl.sum(tl.where(is_one[:, None], sum_x, 0.0), axis=0)
            at_bias = row + 4 * H * (D + H) + gate
            tl.store(at_bias, sum_bias, mask=is_gate)  # both biases have the same gradient
            tl.store(at_bias + 4 * H, sum_bias, mask=is_gate)


@_jit
def _piece_rows(partials, piece_blocks, out, stride_out, width, COLUMNS: tl.constexpr):
    """Add each piece's blocks, the first one first."""
    piece = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for block in range(tl.load(piece_blocks + piece), tl.load(piece_blocks + piece + 1)):
        row = partials + tl.cast(block, tl.int64) * width
        total += tl.load(row + column, mask=is_column, other=0.0)
    tl.store(out + tl.cast(piece, tl.int64) * stride_out + column, total, mask=is_column)
