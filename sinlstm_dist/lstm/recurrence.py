"""The LSTM recurrence as one differentiable operation on the compiled kernel.

Shapes: B samples, W window (time steps), D features of a time step, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor

from sinlstm_dist import compiled

State = tuple[Tensor, Tensor]  # hidden and cell, each (1, B, H)


def lstm(
    inputs: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    hidden0: State | None = None,
    *,
    num_threads: int = 1,
) -> tuple[Tensor, State]:
    """Compute `nn.LSTM(D, H, batch_first=True)` with these parameters; differentiable once.

    A sample's result depends only on that sample and the weights. The gradients of the weights do
    not depend on the number of threads.

    Args:
        inputs: (B, W, D) float32 on the CPU, any strides; B may be 0.
        weight_ih: (4H, D), gates in the order i, f, g, o.
        weight_hh: (4H, H).
        bias_ih: (4H,).
        bias_hh: (4H,).
        hidden0: hidden and cell state before the first step, each (1, B, H); None for zeros.
        num_threads: at most this many threads, including the caller's.

    Returns:
        outputs (B, W, H) and the last hidden and cell state, each (1, B, H).

    Raises:
        ValueError: a tensor has another shape, is not float32 or is not on the CPU.
        RuntimeError: there is no compiled kernel.
    """
    _check(inputs, (weight_ih, weight_hh, bias_ih, bias_hh), hidden0)
    state0 = hidden0 if hidden0 is not None else (None, None)
    outputs, hidden, cell = _Lstm.apply(
        inputs, weight_ih, weight_hh, bias_ih, bias_hh, *state0, num_threads
    )
    return outputs, (hidden, cell)


def _check(inputs: Tensor, weights: tuple[Tensor, ...], hidden0: State | None) -> None:
    if inputs.dim() != 3 or inputs.shape[1] == 0:
        raise ValueError(
            f"inputs have shape {tuple(inputs.shape)}: they need (B, W, D) with W at least 1"
        )
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    check_float32(
        inputs=inputs, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh
    )
    B, D, H = inputs.shape[0], inputs.shape[2], weight_hh.shape[-1]
    shapes = tuple(tuple(weight.shape) for weight in weights)
    if shapes != ((4 * H, D), (4 * H, H), (4 * H,), (4 * H,)):
        raise ValueError(
            f"weights have shapes {shapes}: inputs with D={D} need (4H, D), (4H, H), (4H,), (4H,)"
        )
    if hidden0 is not None:
        check_float32(hidden0=hidden0[0], cell0=hidden0[1])
        for state in hidden0:
            if state.shape != (1, B, H):
                raise ValueError(
                    f"hidden0 has a state of shape {tuple(state.shape)}: it needs {(1, B, H)}"
                )


class _Lstm(torch.autograd.Function):
    """Keeps the tapes of all blocks between the passes; csrc/layout.h describes a tape."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        hidden0: Tensor | None,
        cell0: Tensor | None,
        num_threads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernel = compiled.kernel()
        (B, W, D), H = inputs.shape, weight_hh.shape[1]
        weights = [w.contiguous() for w in (weight_ih, weight_hh, bias_ih, bias_hh)]
        hidden_before, cell_before = _contiguous(hidden0), _contiguous(cell0)
        outputs = inputs.new_empty(B, W, H)
        hidden, cell = inputs.new_empty(1, B, H), inputs.new_empty(1, B, H)
        tapes = None
        if any(ctx.needs_input_grad):
            num_blocks = -(-B // kernel.BLOCK_SAMPLES)
            tape_size = kernel.tape_size(window=W, input_size=D, hidden_size=H)
            tapes = inputs.new_empty(num_blocks * tape_size)
        sample, step, feature = inputs.stride()
        kernel.lstm_forward(
            inputs=inputs.data_ptr(), inputs_sample_stride=sample, inputs_step_stride=step,
            inputs_feature_stride=feature,
            hidden0=_address(hidden_before), cell0=_address(cell_before),
            weight_ih=weights[0].data_ptr(), weight_hh=weights[1].data_ptr(),
            bias_ih=weights[2].data_ptr(), bias_hh=weights[3].data_ptr(), num_samples=B,
            window=W, input_size=D, hidden_size=H, num_threads=num_threads,
            outputs=outputs.data_ptr(), hidden=hidden.data_ptr(), cell=cell.data_ptr(),
            tapes=_address(tapes),
        )  # fmt: skip
        ctx.save_for_backward(tapes, inputs, weight_ih, weight_hh, bias_ih, bias_hh, hidden0, cell0)
        ctx.shape, ctx.num_threads = (B, W, D, H), num_threads
        ctx.set_materialize_grads(False)
        return outputs, hidden, cell

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tapes, *sources = ctx.saved_tensors
        with torch.no_grad():
            found = _gradients(ctx, tapes, *sources[1:3], *gradients)
        if torch.is_grad_enabled():  # create_graph=True
            found = _FirstDerivatives.apply(found, *sources, *gradients)
        return (*found, None)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            "the fused LSTM has no forward-mode derivatives: torch.nn.LSTM has them within "
            "torch.backends.mkldnn.flags(enabled=False)"
        )


class _FirstDerivatives(torch.autograd.Function):
    """Makes a second derivative an error; autograd would give zeros.

    So would torch's `once_differentiable` if the gradient of the outputs is a constant.
    """

    @staticmethod
    def forward(
        ctx: Any, gradients: tuple[Tensor | None, ...], *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """`gradients`, as a function of the tensors that follow."""
        return gradients

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            "the fused LSTM has no second derivatives: use torch.nn.LSTM, or Predictor(fused=False)"
        )


def _gradients(
    ctx: Any,
    tapes: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    grad_outputs: Tensor | None,
    grad_hidden: Tensor | None,
    grad_cell: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs, the parameters and the state before the first step."""
    B, W, D, H = ctx.shape
    weight_ih, weight_hh = weight_ih.contiguous(), weight_hh.contiguous()
    needs = ctx.needs_input_grad
    gradient = tapes.new_empty(4 * H * (D + H) + 8 * H)
    grad_inputs = tapes.new_empty(B, W, D) if needs[0] else None
    grad_hidden0 = tapes.new_empty(1, B, H) if needs[5] else None
    grad_cell0 = tapes.new_empty(1, B, H) if needs[6] else None
    grad_outputs = None if grad_outputs is None else grad_outputs.resolve_neg()
    grad_hidden, grad_cell = _contiguous(grad_hidden), _contiguous(grad_cell)
    sample, step, feature = (0, 0, 0) if grad_outputs is None else grad_outputs.stride()
    compiled.kernel().lstm_backward(
        tapes=tapes.data_ptr(), weight_ih=weight_ih.data_ptr(), weight_hh=weight_hh.data_ptr(),
        grad_outputs=_address(grad_outputs), grad_outputs_sample_stride=sample,
        grad_outputs_step_stride=step, grad_outputs_feature_stride=feature,
        grad_hidden=_address(grad_hidden), grad_cell=_address(grad_cell), num_samples=B,
        window=W, input_size=D, hidden_size=H, num_threads=ctx.num_threads,
        grad_inputs=_address(grad_inputs), grad_hidden0=_address(grad_hidden0),
        grad_cell0=_address(grad_cell0), gradient=gradient.data_ptr(),
    )  # fmt: skip
    ih, hh, bias_ih, bias_hh = gradient.split([4 * H * D, 4 * H * H, 4 * H, 4 * H])
    return (
        grad_inputs, ih.view(4 * H, D), hh.view(4 * H, H), bias_ih, bias_hh,
        grad_hidden0, grad_cell0,
    )  # fmt: skip


def check_float32(**tensors: torch.Tensor) -> None:
    """Refuse tensors that the kernel cannot read.

    Raises:
        ValueError: a tensor is not float32 or not on the CPU.
    """
    for name, tensor in tensors.items():
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}: the compiled kernel needs "
                "torch.float32 on the CPU, so convert it or use torch.nn.LSTM"
            )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_neg().contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
