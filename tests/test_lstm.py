"""`lstm.lstm` against torch.nn.LSTM in float64, and against itself: always the same bits."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lstm_cases import (
    LAYOUTS,
    Case,
    assert_gradients_close,
    cases,
    few,
    instruction_sets,
    same_bits,
    same_on_every_instruction_set,
    using,
)
from torch import Tensor, nn

from sinlstm_dist import lstm

pytestmark = pytest.mark.kernel


@instruction_sets
@few
@given(case=cases(), with_state=st.booleans(), layout=st.sampled_from(list(LAYOUTS)))
def test_lstm_agrees_with_torch(
    instruction_set: str, case: Case, with_state: bool, layout: str
) -> None:
    with using(instruction_set):
        rnn, _ = case.oracle()
        inputs = LAYOUTS[layout](case.inputs).detach().requires_grad_()
        inputs64 = case.inputs.double().requires_grad_()
        state0 = [s.requires_grad_() for s in case.state0] if with_state else []
        state64 = [s.detach().double().requires_grad_() for s in state0]

        outputs, state = lstm.lstm(
            inputs, *case.rnn.parameters(), tuple(state0) if with_state else None
        )
        outputs64, state_64 = rnn(inputs64, tuple(state64) if with_state else None)
        for found, expected in zip((outputs, *state), (outputs64, *state_64), strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)

        factors = [torch.randn_like(t) for t in (outputs, *state)]
        for results in ((outputs, *state), (outputs64, *state_64)):
            sum((t * f).sum() for t, f in zip(results, factors, strict=True)).backward()
        ours = [inputs, *state0, *case.rnn.parameters()]
        theirs = [inputs64, *state64, *rnn.parameters()]
        assert_gradients_close([t.grad for t in ours], [t.grad for t in theirs])


@pytest.mark.parametrize("loss", ["last step", "plain sum", "cell only", "hidden only"])
def test_lstm_takes_any_gradient_of_its_results(loss: str) -> None:
    case = Case(0, 21, 12, 1, 5)
    rnn, _ = case.oracle()
    for module, inputs in ((case.rnn, case.inputs), (rnn, case.inputs.double())):
        if module is case.rnn:
            outputs, (hidden, cell) = lstm.lstm(inputs, *module.parameters())
        else:
            outputs, (hidden, cell) = module(inputs)
        results = {
            "last step": outputs[:, -1].square().sum(),
            "plain sum": outputs.sum(),
            "cell only": cell.square().sum(),
            "hidden only": hidden.square().sum(),
        }
        results[loss].backward()
    assert_gradients_close(
        [p.grad for p in case.rnn.parameters()], [p.grad for p in rnn.parameters()]
    )


def test_lstm_can_go_back_twice() -> None:
    case = Case(1, 20, 13, 2, 5)
    outputs, _ = lstm.lstm(case.inputs, *case.rnn.parameters())
    parameters = list(case.rnn.parameters())
    first = torch.autograd.grad(outputs.sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(outputs.sum(), parameters, retain_graph=True)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("loss", [Tensor.sum, lambda outputs: outputs.square().sum()])
@pytest.mark.parametrize("source", range(7))
def test_lstm_has_no_second_derivatives_and_says_so(source: int, loss: Callable) -> None:
    """Zeros would be silently wrong; the gradient of a plain sum does not depend on anything."""
    case = Case(1, 20, 13, 2, 5)
    sources = [case.inputs, *case.rnn.parameters(), *case.state0]
    leaf = sources[source].detach().requires_grad_()
    inputs, *weights, hidden0, cell0 = [t.detach() if t is not sources[source] else leaf
                                        for t in sources]  # fmt: skip
    outputs, _ = lstm.lstm(inputs, *weights, (hidden0, cell0))
    (slope,) = torch.autograd.grad(loss(outputs), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives: use torch\.nn\.LSTM"):
        torch.autograd.grad(slope.square().sum(), leaf)


def test_lstm_without_gradients_gives_the_same_bits() -> None:
    case = Case(2, 37, 20, 1, 5)
    outputs, _ = lstm.lstm(case.inputs, *case.rnn.parameters())
    with torch.no_grad():
        assert same_bits(outputs, lstm.lstm(case.inputs, *case.rnn.parameters())[0])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_lstm_does_not_depend_on_threads(num_threads: int) -> None:
    case = Case(3, 700, 30, 2, 5)

    def everything(num_threads: int) -> list[Tensor]:
        inputs = case.inputs.clone().requires_grad_()
        case.rnn.zero_grad()
        outputs, _ = lstm.lstm(inputs, *case.rnn.parameters(), num_threads=num_threads)
        outputs.square().sum().backward()
        return [outputs, inputs.grad, *(p.grad for p in case.rnn.parameters())]

    for a, b in zip(everything(1), everything(num_threads), strict=True):
        assert same_bits(a, b)


@few
@given(case=cases(), scale=st.sampled_from([1e-3, 1, 1, 20]), with_state=st.booleans())
def test_lstm_does_not_depend_on_the_instruction_set(
    case: Case, scale: float, with_state: bool
) -> None:
    for p in case.parameters:
        p.data.mul_(scale)
    factors = torch.randn(*case.inputs.shape[:2], case.rnn.hidden_size)

    def everything() -> list[Tensor]:
        inputs, *state0 = (t.clone().requires_grad_() for t in (case.inputs, *case.state0))
        case.rnn.zero_grad()
        state = tuple(state0) if with_state else None
        outputs, (hidden, cell) = lstm.lstm(inputs, *case.rnn.parameters(), state)
        ((outputs * factors).sum() + hidden.sum() + cell.square().sum()).backward()
        leaves = [inputs, *case.rnn.parameters(), *(state or ())]
        return [outputs, hidden, cell, *(leaf.grad.clone() for leaf in leaves)]

    assert same_on_every_instruction_set(everything)


def test_lstm_sample_does_not_depend_on_its_place() -> None:
    case = Case(4, 50, 20, 1, 5)
    outputs, _ = lstm.lstm(case.inputs, *case.rnn.parameters())
    for place in (0, 7, 31, 49):
        alone, _ = lstm.lstm(case.inputs[place : place + 1], *case.rnn.parameters())
        assert same_bits(outputs[place : place + 1], alone)


def test_lstm_of_no_samples() -> None:
    case = Case(5, 0, 10, 1, 5)
    outputs, (hidden, cell) = lstm.lstm(case.inputs, *case.rnn.parameters())
    assert outputs.shape == (0, 10, 5)
    assert hidden.shape == cell.shape == (1, 0, 5)
    outputs.sum().backward()
    assert all((p.grad == 0).all() for p in case.rnn.parameters())


@instruction_sets
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e30", "-300"])
def test_lstm_treats_extreme_inputs_as_torch_does(instruction_set: str, value: str) -> None:
    with using(instruction_set):
        case = Case(6, 20, 6, 2, 5)
        case.inputs[3, 2, 1] = float(value)
        rnn, _ = case.oracle()
        outputs, (_, cell) = lstm.lstm(case.inputs, *case.rnn.parameters())
        outputs64, (_, cell64) = rnn(case.inputs.double())
        for found, expected in ((outputs, outputs64), (cell, cell64)):
            torch.testing.assert_close(
                found.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True
            )
        outputs.sum().backward()
        outputs64.sum().backward()
        for ours, theirs in zip(case.rnn.parameters(), rnn.parameters(), strict=True):
            assert torch.equal(ours.grad.isnan(), theirs.grad.isnan())


@instruction_sets
def test_sigmoid_and_tanh_are_accurate(instruction_set: str) -> None:
    """One step with a gate held open makes the cell equal to the other gate."""
    grid = torch.cat([torch.linspace(-80, 80, 4001), torch.logspace(-30, 1.5, 2000)])
    x = torch.cat([grid, -grid])[:, None, None]
    gate_weights = {"sigmoid": [1.0, 0, 0, 0], "tanh": [0, 0, 1.0, 0]}
    gate_biases = {"sigmoid": [0, 0, 200.0, 0], "tanh": [200.0, 0, 0, 0]}
    with using(instruction_set):
        for name, function in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh)):
            weight, bias = torch.tensor(gate_weights[name]), torch.tensor(gate_biases[name])
            _, (_, cell) = lstm.lstm(x, weight[:, None], torch.zeros(4, 1), bias, torch.zeros(4))
            exact = function(x.double().flatten())
            error = ((cell.flatten().double() - exact) / exact).abs()
            # 2 ulp, and the rounding of the exponent itself, which nn.LSTM's sums have as well
            bound = 2.4e-7 + (1.2e-7 * x.flatten().abs() if name == "sigmoid" else 0)
            assert (error <= bound).all(), (name, error.max(), x.flatten()[error.argmax()])


def test_lstm_refuses_what_it_cannot_compute() -> None:
    case = Case(7, 3, 4, 2, 5)
    parameters = list(case.rnn.parameters())
    with pytest.raises(ValueError, match=r"inputs is torch.float64 on cpu.*needs torch.float32"):
        lstm.lstm(case.inputs.double(), *parameters)
    with pytest.raises(ValueError, match=r"weight_ih is torch.float64"):
        lstm.lstm(case.inputs, *[p.double() for p in parameters])
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        lstm.lstm(case.inputs[..., 0], *parameters)
    with pytest.raises(ValueError, match=r"W at least 1"):
        lstm.lstm(case.inputs[:, :0], *parameters)
    with pytest.raises(ValueError, match=r"inputs with D=1 need"):
        lstm.lstm(case.inputs[..., :1], *parameters)
    with pytest.raises(ValueError, match=r"state of shape \(1, 2, 5\)"):
        lstm.lstm(case.inputs[:1], *parameters, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
    big = nn.LSTM(1, 65, batch_first=True)
    with pytest.raises(ValueError, match="hidden size of at most 64"):
        lstm.lstm(torch.zeros(1, 2, 1), *big.parameters())
