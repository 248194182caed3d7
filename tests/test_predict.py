"""`Predictor.predict`: in the user's units, with and without differences, arrays and tensors."""

import json
import warnings

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from sinlstm_dist.config import load_config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.initial_weights import read_weights
from sinlstm_dist.model import Predictor
from sinlstm_dist.trained import to_trained


def scaled(difference: int = 0, mean: float = 3.0, std: float = 40.0) -> Predictor:
    torch.manual_seed(4)
    model = Predictor(scaled=True, difference=difference)
    model.scaling.set(mean, std)
    return model


def test_a_model_of_values_has_the_names_that_it_had():
    assert [name for name in Predictor(scaled=True).state_dict() if "scaling" in name] == [
        "scaling.mean",
        "scaling.std",
    ]
    difference = scaled(7).state_dict()["scaling.difference"]
    assert (difference.item(), difference.dtype, difference.shape) == (7, torch.int64, ())


@pytest.mark.parametrize("lag", [1, 3])
def test_differences_are_taken_scaled_predicted_and_undone(lag):
    model = scaled(lag)
    values = np.random.default_rng(0).normal(1e6, 300, size=(5, 20 + lag, 1))
    expected = []
    for window in values[:, :, 0].tolist():
        change = [window[t] - window[t - lag] for t in range(lag, len(window))]
        inputs = torch.tensor([(number - 3.0) / 40.0 for number in change]).reshape(1, -1, 1)
        # the target comes one step after the window's last value
        expected.append(model(inputs).item() * 40.0 + 3.0 + window[len(window) - lag])
    assert model.predict(values)[:, 0].tolist() == pytest.approx(expected, rel=0, abs=1e-4)


@pytest.mark.parametrize("lag", [0, 2])
def test_a_difference_is_saved_and_read(lag, tmp_path):
    model = scaled(lag)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["difference"] == lag
    again = Predictor.from_pretrained(tmp_path)
    assert again.scaling.lag == lag
    values = torch.randn(3, 9, 1, dtype=torch.float64)
    assert torch.equal(again.predict(values), model.predict(values))


@pytest.mark.parametrize("wrong", [torch.tensor(-1), torch.tensor([1, 2])])
def test_a_damaged_difference_is_named(wrong, tmp_path):
    scaled(2).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "scaling.difference": wrong}, file)
    with pytest.raises(ConfigError, match=r"model\.safetensors: holds no weights of a Predictor"):
        Predictor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "sizes",
    [{"difference": 1}, {"scaled": True, "difference": -1},
     {"scaled": True, "difference": 1, "input_size": 2}],
)  # fmt: skip
def test_a_difference_needs_a_series(sizes):
    with pytest.raises(ValueError, match="difference="):
        Predictor(**sizes)


@pytest.mark.parametrize("model", [Predictor(), scaled(), scaled(2)])
def test_an_array_is_predicted_as_a_tensor_is(model):
    values = np.random.default_rng(0).normal(10, 9, size=(4, 30, 1))
    windows = torch.from_numpy(values.copy())
    expected = model.predict(windows.float() if model.scaling is None else windows).numpy()
    read_only = values.copy()
    read_only.setflags(write=False)
    backwards = np.ascontiguousarray(values[::-1])[::-1]  # negative strides
    kinds = [values, backwards, np.asfortranarray(values), values.astype(">f8"), read_only]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in kinds:
            found = model.predict(given)
            assert isinstance(found, np.ndarray)
            assert found.dtype == (np.float32 if model.scaling is None else np.float64)
            np.testing.assert_array_equal(found, expected)
    whole = np.rint(values).astype(np.int64)
    np.testing.assert_array_equal(model.predict(whole), model.predict(whole.astype(float)))


def test_lists_and_the_values_of_pandas_are_arrays():
    model, values = scaled(2), np.random.default_rng(0).normal(10, 9, size=9)
    expected = model.forecast(values, 3)
    for given in (values.tolist(), pandas.Series(values, index=range(50, 59)), tuple(values)):
        np.testing.assert_array_equal(model.forecast(given, 3), expected)
    next_value = model.predict(values[None, :, None])
    for given in (values[None, :, None].tolist(), [pandas.DataFrame({"load": values})]):
        np.testing.assert_array_equal(model.predict(given), next_value)
    with pytest.raises(ValueError, match=r"shape \(9, 1\): \(window \+ 2,\) or"):
        model.forecast(pandas.DataFrame({"load": values}), 3)
    with pytest.raises(ValueError, match="real numbers are needed"):
        model.forecast(pandas.Series(pandas.date_range("2024", periods=9)), 3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", [Predictor(), scaled(2)])
def test_what_is_not_finite_is_refused(model, wrong):
    """The kernels of torch and of ONNX Runtime answer it with a number."""
    values = np.linspace(0, 1, 9)
    values[3] = wrong
    for given in (values, values.tolist(), torch.tensor(values)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            model.forecast(given, 3)
    for given in (values[None, :, None], torch.tensor(values)[None, :, None]):
        with pytest.raises(ValueError, match="NaN or infinity"):
            model.predict(given)


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize(
    "shape", [(), (8,), (8, 1), (4, 8), (4, 8, 2), (4, 0, 1), (1, 4, 8, 1)], ids=str
)
def test_another_shape_is_one_error_that_names_the_shape_needed(shape, lag):
    needed = rf"\(batch, window{' [+] 2' if lag else ''}, 1\) is needed"
    for model in (scaled(lag), Predictor()) if lag == 0 else (scaled(lag),):
        for windows in (np.zeros(shape), torch.zeros(shape)):
            with pytest.raises(ValueError, match=needed):
                model.predict(windows)


def test_a_window_that_ends_before_its_first_difference_is_refused():
    model = scaled(5)
    with pytest.raises(ValueError, match=r"window \+ 5"):
        model.predict(np.zeros((2, 5, 1)))
    assert model.predict(np.zeros((2, 6, 1))).shape == (2, 1)
    assert model.predict(np.zeros((0, 6, 1))).shape == (0, 1)


@pytest.mark.parametrize("kind", [complex, bool, str, object])
def test_what_is_no_real_number_is_refused(kind):
    windows = np.zeros((1, 8, 1)).astype(kind)
    for refuse in (scaled().predict, lambda windows: scaled().forecast(windows, 2)):
        with pytest.raises(ValueError, match="real numbers are needed"):
            refuse(windows)
        if kind in (complex, bool):
            with pytest.raises(ValueError, match="real numbers are needed"):
                refuse(torch.from_numpy(windows))


def test_a_run_is_read_with_the_difference_that_it_has_learned(tmp_path):
    config = load_config(None, {"data.source": "a.csv", "data.difference": 2})
    weights = scaled(2).state_dict()
    assert to_trained(config, weights, {}, origin=tmp_path).difference == 2
    for learned, overrides in ((weights, {"data.difference": 1}), (scaled(1).state_dict(), {})):
        with pytest.raises(ConfigError, match=r"data\.difference=\d: the model in .* was trained"):
            to_trained(config, learned, overrides, origin=tmp_path)
    with pytest.raises(ConfigError, match=r"scaling\.difference' is missing"):
        to_trained(config, scaled().state_dict(), {}, origin=tmp_path)


def test_weights_of_another_difference_start_no_run(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(scaled(2).state_dict(), path)
    weights = read_weights(path, scaled(2))
    assert set(weights) == {name for name, _ in scaled(2).named_parameters()}
    for model in (scaled(), scaled(1), Predictor()):
        with pytest.raises(ConfigError, match=r"with data\.difference=2, and this run has [01]"):
            read_weights(path, model)
    save_file(Predictor().state_dict(), path)  # nothing says what they have learned
    assert read_weights(path, scaled(2)).keys() == weights.keys()
