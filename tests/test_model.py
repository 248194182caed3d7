"""The predictor: the article's names and shapes, and torch's own numbers."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sinlstm_dist.model import Persistence, Predictor

SHAPES = {
    "rnn.weight_ih_l0": (20, 1),
    "rnn.weight_hh_l0": (20, 5),
    "rnn.bias_ih_l0": (20,),
    "rnn.bias_hh_l0": (20,),
    "output_layer.weight": (1, 5),
    "output_layer.bias": (1,),
}


class ArticlePredictor(nn.Module):
    """The article's program, from its description."""

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, num_layers: int = 1
    ) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.output_layer = nn.Linear(hidden_size, output_size)

    def forward(self, inputs, hidden0=None):
        output, _ = self.rnn(inputs, hidden0)
        return self.output_layer(output[:, -1, :])


def gradients(model: nn.Module, *arguments: object) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(*arguments).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_parameters_have_the_articles_names_and_shapes():
    found = {name: tuple(value.shape) for name, value in Predictor().named_parameters()}
    assert found == SHAPES
    assert list(found) == list(SHAPES)  # their order is the order of a gradient's row
    assert not list(Predictor().named_buffers())


def test_the_caller_chooses_the_sizes():
    model = Predictor(3, 7, 2, num_layers=2)
    assert model(torch.randn(4, 6, 3)).shape == (4, 2)
    assert model.rnn.weight_hh_l1.shape == (28, 7)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.kernel)])
@pytest.mark.parametrize("given", ["zeros", "state"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_the_articles_program(num_layers, fused, given, tmp_path):
    torch.manual_seed(2)
    article = ArticlePredictor(1, 5, 1, num_layers)
    save_file(article.state_dict(), tmp_path / "weights.safetensors")
    model = Predictor(num_layers=num_layers, fused=fused)
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    windows = torch.randn(17, 50, 1)
    shape = (num_layers, 17, 5)
    state = (torch.randn(shape), torch.randn(shape)) if given == "state" else None
    # The kernel's exponential differs from torch's in the last bits of float32.
    torch.testing.assert_close(model(windows, state), article(windows, state), atol=1e-6, rtol=1e-6)
    expected = gradients(article, windows, state)
    for name, gradient in gradients(model, windows, state).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def test_a_checkpoint_of_pytorch_loads(tmp_path):
    """As the article's reader has it: torch.save of a state dict."""
    article = ArticlePredictor(1, 5, 1)
    torch.save(article.state_dict(), tmp_path / "weights.pt")
    model = Predictor()
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert all(
        torch.equal(value, article.state_dict()[name]) for name, value in model.state_dict().items()
    )


@pytest.mark.kernel
def test_hidden0_none_is_zeros_and_another_state_matters():
    windows = torch.randn(3, 8, 1)
    zeros = (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))
    ones = (torch.ones(1, 3, 5), torch.ones(1, 3, 5))
    for fused in (False, True):
        model = Predictor(fused=fused)
        torch.testing.assert_close(model(windows), model(windows, zeros))
        assert not torch.allclose(model(windows), model(windows, ones), atol=1e-3)


def test_prediction_comes_from_the_last_time_step():
    model = Predictor()
    windows = torch.randn(3, 8, 1)
    expected = model.output_layer(model.rnn(windows)[1][0][-1])  # from the final hidden state
    torch.testing.assert_close(model(windows), expected)
    changed = windows.clone()
    changed[:, -1] += 1
    assert not torch.allclose(model(changed), model(windows), atol=1e-3)


def test_persistence_predicts_the_last_value_again():
    windows = torch.arange(6.0).reshape(2, 3, 1)
    assert Persistence()(windows).tolist() == [[2.0], [5.0]]
