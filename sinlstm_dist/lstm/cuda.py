"""`predictor_rows` on a GPU, with the bits of the CPU kernel.

NVRTC compiles csrc/gpu.cu when a process first needs it, in half a second. NVIDIA's cuda-bindings
call it and start the kernels; they were there with PyTorch 2.11 for CUDA.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size, G parameters.
"""

from collections.abc import Sequence
from ctypes import c_float, c_int, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinlstm_dist.lstm.choice import MAX_HIDDEN_SIZE
from sinlstm_dist.lstm.predictor import HEAD_PARAMETERS, LAYER_PARAMETERS, NUM_TOTALS
from sinlstm_dist.lstm.reference import BLOCK_SAMPLES, ITEM_BLOCKS

SOURCES = Path(__file__).parents[1] / "csrc"
KERNELS = ("pack_weights", "block_states", "item_rows", "piece_rows")
# No contraction, no approximate division, and subnormal numbers are zeros: the CPU kernel's mode.
OPTIONS = ("-std=c++17", "-fmad=false", "-prec-div=true", "-ftz=true")
FAILURES = (ImportError, OSError, RuntimeError, AssertionError)  # torch asserts that it has CUDA
ITEM_SAMPLES = BLOCK_SAMPLES * ITEM_BLOCKS
TASKS = 16  # of a block of threads in item_rows
THREADS = 256  # of a block where each has one number to compute
TAPE_ROWS = 7  # numbers that the tape keeps per unit and step of a sample
TAPE_NUMBERS = 2**28  # of all tapes at the same time: 1 GiB


def obstacle(input_size: int, hidden_size: int) -> str:
    """Why the current GPU cannot run the kernel for these sizes; empty if it can."""
    if torch.version.hip:
        return "a GPU that is not NVIDIA's"
    try:
        Program.of(input_size, hidden_size, torch.device("cuda", torch.cuda.current_device()))
    except FAILURES as error:
        return f"no GPU kernel: {str(error).splitlines()[0]}"
    return ""


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

    The arguments are those of `lstm.predictor_rows`; without `with_gradient` it computes no
    gradient.

    Returns:
        (len(piece_sizes), G + 3 or 3) float32 on the device of `windows`.

    Raises:
        ValueError: `piece_sizes` do not add up, a size is out of range, or a tensor is not float32
            on the device of `windows`.
    """
    _check(windows, targets, parameters, out)
    (B, W, D), H, num_pieces = windows.shape, parameters[1].shape[1], len(piece_sizes)
    width = NUM_TOTALS + (sum(p.numel() for p in parameters) if with_gradient else 0)
    tape_size = BLOCK_SAMPLES * (1 + H + (W * TAPE_ROWS * H if with_gradient else 0))
    cut = _cut(tuple(piece_sizes), B, windows.device, TAPE_NUMBERS // tape_size)
    if out is None:
        out = windows.new_empty(num_pieces, width)
    rows = windows.new_empty(cut.num_items, width)
    windows, targets, *weights = (t.contiguous() for t in (windows, targets, *parameters))
    with torch.cuda.device_of(windows):
        program = Program.of(D, H, windows.device)
        program.item_rows(
            cut, windows, targets, weights, rows,
            tolerance=float(tolerance), tape_size=tape_size, with_gradient=with_gradient,
        )  # fmt: skip
        program.launch(
            "piece_rows", (num_pieces, -(-width // THREADS)), (THREADS,),
            rows, cut.piece_items, out, out.stride(0), width,
        )  # fmt: skip
    return out[:num_pieces, :width]


class Program:
    """The compiled kernels for one D and H on one GPU.

    Args:
        image: what NVRTC made of csrc/gpu.cu.
    """

    def __init__(self, image: bytes, *, input_size: int, hidden_size: int) -> None:
        from cuda.bindings import driver

        self._driver, self._input_size, self._hidden_size = driver, input_size, hidden_size
        self._module = called(driver.cuModuleLoadData(image))
        self._kernels = {
            name: called(driver.cuModuleGetFunction(self._module, name.encode()))
            for name in KERNELS
        }

    @staticmethod
    @lru_cache(maxsize=16)
    def of(input_size: int, hidden_size: int, device: torch.device) -> "Program":
        """The kernels for these sizes, compiled at the first call."""
        major, minor = torch.cuda.get_device_capability(device)
        image = compiled(input_size, hidden_size, f"sm_{major}{minor}")
        return Program(image, input_size=input_size, hidden_size=hidden_size)

    def item_rows(
        self,
        cut: "Cut",
        windows: Tensor,
        targets: Tensor,
        weights: Sequence[Tensor],
        rows: Tensor,
        *,
        tolerance: float,
        tape_size: int,
        with_gradient: bool,
    ) -> None:
        """Write each item's row; `tape_size` is the number of numbers of a block's tape."""
        D, H, W = self._input_size, self._hidden_size, windows.shape[1]
        weight_hh, *head = weights[1], *weights[4:]
        units = (H + 1) // 2 * 2  # even, so that warps are whole
        num_tasks = NUM_TOTALS + (H * (D + H + 2) + H + 2 if with_gradient else 0)  # or fewer
        packed = windows.new_empty(4 * H * (1 + D + H))
        self.launch("pack_weights", (-(-len(packed) // THREADS),), (THREADS,), *weights[:4], packed)
        done = 0
        for blocks, items in cut.parts:
            tapes = windows.new_empty(len(blocks), tape_size)
            self.launch(
                "block_states", (len(blocks),), (BLOCK_SAMPLES, units), windows, targets, blocks,
                packed, weight_hh, *head, tapes, W, int(with_gradient),
                shared_bytes=4 * BLOCK_SAMPLES * 2 * (units + 4 * H),
            )  # fmt: skip
            self.launch(
                "item_rows", (len(items), -(-num_tasks // TASKS)), (BLOCK_SAMPLES, TASKS),
                windows, blocks, items, tapes, rows[done:], W, tolerance, int(with_gradient),
            )  # fmt: skip
            done += len(items)
            del tapes  # before the next ones are made

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Tensor | float,
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel on torch's current stream, unless the grid is empty.

        Args:
            grid: numbers of blocks, up to three.
            block: numbers of threads, up to three.
            arguments: the kernel's; an int must fit into 32 bits.
            shared_bytes: of a block.
        """
        if 0 in grid:
            return
        kinds = {int: c_int, float: c_float}
        values = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        types = tuple(kinds.get(type(a), c_void_p) for a in arguments)
        sizes = [*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3]]
        stream = torch.cuda.current_stream().cuda_stream
        called(
            self._driver.cuLaunchKernel(
                self._kernels[kernel], *sizes, shared_bytes, stream, (values, types), 0
            )
        )


def defined(input_size: int, hidden_size: int) -> tuple[str, ...]:
    """What the compiler is told to define."""
    sizes = {"INPUT_SIZE": input_size, "HIDDEN_SIZE": hidden_size, "TAPE_ROWS": TAPE_ROWS}
    return tuple(f"-D{name}={value}" for name, value in sizes.items())


def compiled(input_size: int, hidden_size: int, architecture: str) -> bytes:
    """Compile csrc/gpu.cu.

    Args:
        architecture: such as "sm_90".

    Returns:
        the machine code.

    Raises:
        RuntimeError: with the compiler's words.
    """
    from cuda.bindings import nvrtc

    source = (SOURCES / "gpu.cu").read_bytes()
    sizes = defined(input_size, hidden_size)
    options = (f"-arch={architecture}", f"-I{SOURCES}", *sizes, *OPTIONS)
    program = called(nvrtc.nvrtcCreateProgram(source, b"gpu.cu", 0, None, None))
    words = [option.encode() for option in options]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(words), words)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * called(nvrtc.nvrtcGetProgramLogSize(program))
        called(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"csrc/gpu.cu for {architecture}: {log.decode().rstrip(chr(0)).strip()}")
    image = b" " * called(nvrtc.nvrtcGetCUBINSize(program))
    called(nvrtc.nvrtcGetCUBIN(program, image))
    return image


def called(answer: tuple[Any, ...]) -> Any:
    """The result of a call of cuda-bindings.

    Raises:
        RuntimeError: it failed.
    """
    code, *results = answer
    if code.value:
        raise RuntimeError(f"the GPU's kernel: {code.name}")
    return results[0] if results else None


def _check(
    windows: Tensor, targets: Tensor, parameters: Sequence[Tensor], out: Tensor | None
) -> None:
    for tensor in (windows, targets, *parameters, *([] if out is None else [out])):
        if tensor.dtype is not torch.float32 or tensor.device != windows.device:
            raise ValueError(
                f"a tensor is {tensor.dtype} on {tensor.device}: the GPU's kernel needs "
                f"torch.float32 on {windows.device}, where the windows are"
            )
    if len(parameters) != LAYER_PARAMETERS + HEAD_PARAMETERS:
        raise ValueError(f"{len(parameters)} parameters: the GPU's kernel has one layer")
    W, D, H = windows.shape[1], windows.shape[2], parameters[1].shape[1]
    if not (W >= 1 and D >= 1 and 1 <= H <= MAX_HIDDEN_SIZE):
        raise ValueError(
            f"window {W}, input size {D}, hidden size {H}: the GPU's kernel needs at least 1 of "
            f"each and a hidden size of at most {MAX_HIDDEN_SIZE}"
        )


@dataclass(frozen=True)
class Cut:
    """A batch as blocks and items.

    Args:
        parts: the first sample and the size of each block, and the first block and the number of
            blocks of each item: (N, 2) int32. The blocks of a part have their tapes in memory at
            the same time.
        piece_items: the first item of each piece, and the end.
        num_items: in all parts.
    """

    parts: Sequence[tuple[Tensor, Tensor]]
    piece_items: Tensor
    num_items: int


@cache  # without a limit: CUDA graphs read these tables, and there are few lists of sizes in a run
def _cut(piece_sizes: tuple[int, ...], B: int, device: torch.device, most_blocks: int) -> Cut:
    """Cut pieces into items and blocks; a part has at most `most_blocks` blocks, or one item.

    Raises:
        ValueError: the sizes do not add up to B.
    """
    if min(piece_sizes, default=0) < 0 or sum(piece_sizes) != B:
        raise ValueError(f"piece_sizes {piece_sizes} do not add up to the {B} samples there are")
    parts: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
    bounds, first, num_items = [0], 0, 0
    for size in piece_sizes:
        for begin in range(first, first + size, ITEM_SAMPLES):
            end = min(begin + ITEM_SAMPLES, first + size)
            blocks = [(i, min(BLOCK_SAMPLES, end - i)) for i in range(begin, end, BLOCK_SAMPLES)]
            if not parts or len(parts[-1][0]) + len(blocks) > most_blocks:
                parts.append(([], []))
            parts[-1][1].append((len(parts[-1][0]), len(blocks)))
            parts[-1][0].extend(blocks)
            num_items += 1
        bounds.append(num_items)
        first += size

    def table(numbers: Sequence[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    return Cut([(table(b), table(i)) for b, i in parts], table(bounds), num_items)
