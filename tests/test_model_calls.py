"""What users of torch do with a model: each call gives what nn.LSTM gives, or one clear error.

`Predictor(fused=True)` computes what the kernel can and leaves the rest to torch's own code.
"""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad
import torch.nn.utils.parametrizations
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.autograd.functional import hessian, hvp
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from sinlstm_dist import lstm
from sinlstm_dist.model import Predictor

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
Call = Callable[[nn.Module], Any]
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}  # the kernel's exponential differs in the last bits
OF_BFLOAT16 = {"atol": 1e-2, "rtol": 1e-2}  # it has 8 bits
B, W, D, H, LAYERS = 3, 8, 1, 5, 2
WINDOWS = torch.linspace(-1, 1, B * W * D).sin().reshape(B, W, D)
SHAPE = (LAYERS, B, H)
STATE = (torch.linspace(-1, 1, LAYERS * B * H).reshape(SHAPE), torch.full(SHAPE, 0.3))


class Plain(nn.Module):
    """The article's program: what a user of nn.LSTM has."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(D, H, LAYERS, batch_first=True)
        self.output_layer = nn.Linear(H, 1)

    def forward(self, inputs: Tensor, hidden0: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return self.output_layer(self.rnn(inputs, hidden0)[0][:, -1])


def models() -> dict[str, nn.Module]:
    """The same weights in the article's program and in both kinds of Predictor."""
    torch.manual_seed(0)
    made = {
        "nn.LSTM": Plain(),
        "plain": Predictor(num_layers=LAYERS),
        "fused": Predictor(num_layers=LAYERS, fused=True),
    }
    for model in made.values():
        model.load_state_dict(made["nn.LSTM"].state_dict())
    return made


def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each layer that the kernel computes."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return lstm.lstm(*arguments)

    monkeypatch.setattr("sinlstm_dist.lstm.module.lstm", counted)
    return calls


def gradient(model: nn.Module, *arguments: Any) -> dict[str, Tensor]:
    model(*arguments).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def of_inputs(model: nn.Module, make: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = WINDOWS.clone().requires_grad_()
    model(make(leaf)).square().sum().backward()
    return leaf.grad


def negated() -> Tensor:
    """WINDOWS as torch keeps the imaginary part of a conjugate: negative, with a mark."""
    marked = torch.complex(WINDOWS, -WINDOWS).conj().imag
    assert marked.is_neg()
    return marked


def negated_gradient(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of the outputs comes with such a mark."""
    outputs, _ = model.rnn(WINDOWS)
    outputs.backward(torch.complex(torch.zeros(B, W, H), torch.ones(B, W, H)).conj().imag)
    return {name: p.grad for name, p in model.rnn.named_parameters()}


def of_parameters(model: nn.Module, *arguments: Any) -> Tensor:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, arguments).square().sum()

    return torch.func.grad(loss)(dict(model.named_parameters()))


def by_sample(model: nn.Module) -> Tensor:
    def loss(parameters: dict[str, Tensor], window: Tensor) -> Tensor:
        return functional_call(model, parameters, (window[None],)).sum()

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, WINDOWS)


def in_double(model: nn.Module) -> Tensor:
    parameters = {name: p.detach().double() for name, p in model.named_parameters()}
    return functional_call(model, parameters, (WINDOWS.double(),))


def autocast(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(WINDOWS)


def compiled(model: nn.Module, backend: str) -> dict[str, Tensor]:
    torch._dynamo.reset()
    return gradient(torch.compile(model, backend=backend), WINDOWS)


def exported(model: nn.Module) -> Tensor:
    return torch.export.export(model, (WINDOWS,)).module()(WINDOWS + 1)


def traced(model: nn.Module) -> Tensor:
    return torch.jit.trace(model, (WINDOWS,))(torch.full((4, 9, D), 0.3))


def scripted(model: nn.Module, *arguments: Any) -> dict[str, Tensor]:
    script = torch.jit.script(model)
    with torch.no_grad():
        next(model.parameters()).mul_(2)  # it has the model's own parameters
    return gradient(script, *arguments)


def in_fake_mode(model: nn.Module) -> list[int]:
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return list(model(mode.from_tensor(WINDOWS)).shape)


def pruned(model: nn.Module) -> Tensor:
    nn.utils.prune.l1_unstructured(model.rnn, "weight_hh_l0", 0.5)
    with torch.no_grad():
        model.rnn.weight_hh_l0_orig.add_(1)  # as an optimizer's step
    return model(WINDOWS)


def normed(model: nn.Module) -> Tensor:
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l1")
    with torch.no_grad():
        model.rnn.parametrizations.weight_hh_l1.original0.mul_(2)
    return model(WINDOWS)


def hooked(model: nn.Module) -> Tensor:
    model.rnn.register_forward_hook(lambda _, __, found: (found[0] * 2, found[1]))
    return model(WINDOWS)


def with_dropout(model: nn.Module) -> Tensor:
    model.rnn.dropout = 0.9
    torch.manual_seed(0)
    return model.train()(WINDOWS)


def replaced(model: nn.Module) -> Tensor:
    torch.manual_seed(0)
    model.rnn = nn.LSTM(D, H, bidirectional=True, batch_first=True, bias=False)
    model.output_layer = nn.Linear(2 * H, 1)
    return model(WINDOWS)


def moved_weights(model: nn.Module) -> Tensor:
    """Weights that are views of others, with strides of their own."""
    for name, parameter in model.rnn.named_parameters():
        if parameter.dim() == 2:
            setattr(model.rnn, name, nn.Parameter(parameter.detach().t().contiguous().t()))
    return model(WINDOWS)


def again(model: nn.Module) -> Tensor:
    return pickle.loads(pickle.dumps(copy.deepcopy(copy.copy(model))))(WINDOWS)


def checkpointed(model: nn.Module) -> Tensor:
    return of_inputs(model, lambda leaf: torch.utils.checkpoint.checkpoint(
        lambda x: x * 2, leaf, use_reentrant=False))  # fmt: skip


# What both give, and whether the kernel computes it in the fused one.
SAME: dict[str, tuple[Call, bool]] = {
    "windows": (lambda model: gradient(model, WINDOWS), True),
    "state": (lambda model: gradient(model, WINDOWS, STATE), True),
    "state in a list": (lambda model: model(WINDOWS, list(STATE)), True),
    "gradient of the windows": (lambda model: of_inputs(model, lambda leaf: leaf), True),
    "gradient of a view": (lambda model: of_inputs(model, lambda leaf: leaf.flip(0)[1:]), True),
    "a checkpointed part": (checkpointed, True),
    "no windows": (lambda model: gradient(model, WINDOWS[:0]), True),
    "one window": (lambda model: model(WINDOWS[:1]), True),
    "one step": (lambda model: gradient(model, WINDOWS[:, :1]), True),
    "strides": (lambda model: model(WINDOWS.transpose(0, 1).contiguous().transpose(0, 1)), True),
    "expanded": (lambda model: model(WINDOWS[:1].expand(B, W, D)), True),
    "every other step": (lambda model: model(WINDOWS[:, ::2]), True),
    "weights of other strides": (moved_weights, True),
    "nan": (lambda model: model(WINDOWS * float("nan")), True),
    "infinite": (lambda model: model(WINDOWS * float("inf")), True),
    "huge": (lambda model: model(WINDOWS * 1e30), True),
    "negated": (lambda model: model(negated()), False),
    "negated gradient": (negated_gradient, True),
    "copied and pickled": (again, True),
    "data parallel": (lambda model: nn.DataParallel(model)(WINDOWS), True),
    "frozen": (lambda model: model.requires_grad_(False)(WINDOWS), True),
    "hooked": (hooked, True),
    "pruned": (pruned, True),
    "normed": (normed, True),
    "with dropout": (with_dropout, False),
    "another LSTM": (replaced, False),
    "double": (lambda model: gradient(model.double(), WINDOWS.double()), False),
    "parameters in double": (in_double, False),
    "to meta": (lambda model: model.to("meta")(WINDOWS.to("meta")).shape, False),
    "half": (lambda model: model.half()(WINDOWS.half()), False),
    "bfloat16": (lambda model: model.bfloat16()(WINDOWS.bfloat16()), False),
    "autocast": (autocast, True),
    "torch.func.grad": (lambda model: of_parameters(model, WINDOWS, STATE), False),
    "by sample": (by_sample, False),
    "compiled": (functools.partial(compiled, backend="eager"), False),
    "compiled with its gradient": (functools.partial(compiled, backend="aot_eager"), False),
    "exported": (exported, False),
    "traced": (traced, True),  # torch compares the trace with a call of the model
    "scripted": (lambda model: scripted(model, WINDOWS), False),
    "scripted with a state": (lambda model: scripted(model, WINDOWS, STATE), False),
    "fake tensors": (in_fake_mode, False),
    "make_fx": (lambda model: make_fx(model)(WINDOWS)(WINDOWS + 1), False),
}
# Errors of nn.LSTM, which both kinds of Predictor raise too.
ERRORS: dict[str, tuple[Call, str]] = {
    "double windows": (lambda model: model(WINDOWS.double()), "does not match weight dtype"),
    "half windows": (lambda model: model(WINDOWS.half()), "does not match weight dtype"),
    "complex windows": (lambda model: model(WINDOWS.cfloat()), "does not match weight dtype"),
    "whole windows": (lambda model: model(WINDOWS.long()), "does not match weight dtype"),
    "two features": (lambda model: model(WINDOWS.repeat(1, 1, 2)), "Expected 1, got 2"),
    "windows on meta": (lambda model: model(WINDOWS.to("meta")), "not at the same device"),
    "state of one layer": (lambda model: model(WINDOWS, [s[:1] for s in STATE]), "Expected hidden"),
    "state of no batch": (lambda model: model(WINDOWS, [s[:, 0] for s in STATE]), "hidden|hx"),
    "state of one sample": (
        lambda model: model(WINDOWS, [s[:, :1] for s in STATE]), "Expected hidden"
    ),
    "state of other units": (
        lambda model: model(WINDOWS, [s[..., :2] for s in STATE]), "Expected hidden"
    ),
    "cell of one layer": (lambda model: model(WINDOWS, (STATE[0], STATE[1][:1])), "hidden.1."),
    "three states": (lambda model: model(WINDOWS, (*STATE, STATE[0])), "two hidden states"),
    "vmap": (lambda model: torch.func.vmap(model)(WINDOWS[None]), "Batching rule"),
    "jvp": (lambda model: torch.func.jvp(model, (WINDOWS,), (WINDOWS,)), "forward AD"),
}  # fmt: skip
# Windows of a shape that a Predictor does not take: it would read them wrongly, as nn.LSTM does.
SHAPES = [(W, D), (H, D), (B, W), (W,), (1, B, W, D), (B, 0, D), (0, 0, D)]


def dual(model: nn.Module) -> Tensor:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(WINDOWS, WINDOWS))).tangent


def penalty(model: nn.Module) -> Tensor:
    """A term of the loss that torch would leave out of the gradient without a word."""
    leaf = WINDOWS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
    (model(leaf).sum() + slope.square().sum()).backward()
    return model.rnn.weight_hh_l0.grad


SECOND: dict[str, Call] = {
    "hessian": lambda model: hessian(lambda x: model(x).sum(), WINDOWS),
    "hessian of squares": lambda model: hessian(lambda x: model(x).square().sum(), WINDOWS),
    "product": lambda model: hvp(lambda x: model(x).sum(), WINDOWS, WINDOWS)[1],
    "penalty": penalty,
}


@pytest.mark.parametrize("name", SAME)
def test_a_call_gives_what_nn_lstm_gives(name, monkeypatch):
    call, by_kernel = SAME[name]
    made = models()
    expected, found = call(made["nn.LSTM"]), call(made["plain"])
    calls = kernel_calls(monkeypatch)
    fused = call(made["fused"])
    assert bool(calls) == by_kernel
    torch.testing.assert_close(found, expected, equal_nan=True)
    is_short = isinstance(fused, Tensor) and fused.dtype in (torch.bfloat16, torch.float16)
    tolerance = OF_BFLOAT16 if is_short else TOLERANCE
    torch.testing.assert_close(fused, expected, equal_nan=True, **tolerance)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_nn_lstm_is_one_here(name):
    call, words = ERRORS[name]
    for model in models().values():
        with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=words):
            call(model)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_no_batch_of_windows_is_refused(shape):
    for kind in ("plain", "fused"):
        with pytest.raises(ValueError, match=r"\(batch, window, 1\) is needed"):
            models()[kind](torch.zeros(shape))


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_right_or_refused(name):
    made = models()
    expected = SECOND[name](made["nn.LSTM"])
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(SECOND[name](made["plain"]), expected)
    with pytest.raises(RuntimeError, match=r"no second derivatives: .*Predictor\(fused=False\)"):
        SECOND[name](made["fused"])


def test_a_graph_of_the_gradient_gives_the_gradient():
    """create_graph=True alone is no second derivative."""
    made = models()
    slopes = []
    for model in made.values():
        leaf = WINDOWS.clone().requires_grad_()
        slopes += torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
    for slope in slopes[1:]:
        torch.testing.assert_close(slope, slopes[0], **TOLERANCE)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_forward_mode_is_refused_with_what_has_it():
    made = models()
    with pytest.raises(NotImplementedError, match=r"within torch\.backends\.mkldnn\.flags"):
        dual(made["fused"])
    with torch.backends.mkldnn.flags(enabled=False):
        assert dual(made["plain"]).abs().max() > 1e-5


def test_the_fused_lstm_returns_the_state_of_all_layers():
    made = models()
    for arguments in ((WINDOWS,), (WINDOWS, STATE)):
        expected = made["plain"].rnn(*arguments)
        torch.testing.assert_close(made["fused"].rnn(*arguments), expected, **TOLERANCE)


def test_units_stay_exact_in_another_dtype():
    model = Predictor(scaled=True)
    model.scaling.set(101_325.5, 70_000.0)
    values = 101_325.5 + 70_000 * WINDOWS.double()
    expected = model.predict(values)
    for dtype, share in ((torch.float64, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 2e-2)):
        changed = copy.deepcopy(model).to(dtype)
        assert (changed.scaling.mean.item(), changed.scaling.std.item()) == (101_325.5, 70_000.0)
        torch.testing.assert_close(changed.predict(values), expected, rtol=0, atol=share * 70_000)
    assert model.to("meta").scaling.mean.is_meta
    assert not model.to_empty(device="cpu").scaling.mean.is_meta
