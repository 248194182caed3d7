"""SGD on one vector: torch's own results, whatever moves the parameters in the meantime."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import FUSED, environment
from safetensors.torch import load_file
from torch import nn

from sinlstm_dist import job, optim
from sinlstm_dist.config import load_config
from sinlstm_dist.model import Predictor
from sinlstm_dist.optim import SGD
from sinlstm_dist.optimizers import Update, load_optimizer_tensors, optimizer_tensors
from sinlstm_dist.run import checkpoint

LR, MOMENTUM = 0.1, 0.9
SHAPES = [(3, 2), (5,), (), (1, 4)]
# torch's own SGD may fuse a multiplication with an addition: some units in the last place.
CLOSE = {torch.float32: {"rtol": 2e-6, "atol": 2e-6}, torch.float64: {"rtol": 1e-14, "atol": 1e-14}}


class Net(nn.Module):
    """Parameters of some shapes."""

    def __init__(self, shapes=SHAPES, dtype=torch.float32, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        new = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
        self.weights = nn.ParameterList([nn.Parameter(value) for value in new])


def set_gradients(model, *, seed, in_a_row=True):
    """The same numbers in one vector or, as data-parallel training leaves them, in many tensors."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    vector = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    vector = vector.to(parameters[0])
    for parameter, part in zip(parameters, vector.split(sizes), strict=True):
        part = part.view_as(parameter)
        parameter.grad = part if in_a_row else part.clone()


def train(model, optimizer, seeds, *, in_a_row=True):
    for seed in seeds:
        set_gradients(model, seed=seed, in_a_row=in_a_row)
        optimizer.step()


def both(**options):
    """The same model twice, with this package's optimizer and with torch's."""
    models = [Net(**options), Net(**options)]
    kinds = (SGD, torch.optim.SGD)
    return [
        (model, kind(model.parameters(), lr=LR, momentum=MOMENTUM))
        for model, kind in zip(models, kinds, strict=True)
    ]


def check_close(model, other):
    for value, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, **CLOSE[value.dtype])


def check_close_states(optimizer, other):
    state, expected = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert state.keys() == expected.keys()
    for number in state:
        assert list(state[number]) == ["momentum_buffer"]
        value = state[number]["momentum_buffer"]
        torch.testing.assert_close(value, expected[number]["momentum_buffer"], **CLOSE[value.dtype])


shapes = st.lists(
    st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6
)  # fmt: skip


def test_parameters_of_several_kinds_are_refused():
    model = Net()
    model.weights[1].data = model.weights[1].data.double()
    with pytest.raises(ValueError, match="one group, dtype and device"):
        SGD(model.parameters(), lr=LR)
    with pytest.raises(ValueError, match="float32 or float64"):
        SGD(Net().bfloat16().parameters(), lr=LR)


@settings(deadline=None, max_examples=60)
@given(
    shapes=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    lr=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    in_a_row=st.booleans(),
)
def test_a_step_is_torchs(shapes, dtype, lr, momentum, in_a_row):
    model, other = Net(shapes, dtype), Net(shapes, dtype)
    optimizer = SGD(model.parameters(), lr=lr, momentum=momentum)
    expected = torch.optim.SGD(other.parameters(), lr=lr, momentum=momentum)
    assert optimizer.state_dict()["state"] == {}
    train(model, optimizer, range(4), in_a_row=in_a_row)
    train(other, expected, range(4))
    check_close(model, other)
    check_close_states(optimizer, expected)
    assert bool(optimizer.state_dict()["state"]) == bool(momentum)


@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
def test_each_operation_rounds_once_in_the_order_written_down(momentum, monkeypatch):
    model, on_gpu = Net([(1000,), (2, 3), (0,)]), Net([(1000,), (2, 3), (0,)])
    values = model.weights[0].detach().numpy().copy()
    velocity = np.zeros_like(values)
    optimizer, of_gpu = (SGD(net.parameters(), lr=LR, momentum=momentum) for net in (model, on_gpu))
    for seed in range(5):
        set_gradients(model, seed=seed)
        set_gradients(on_gpu, seed=seed)
        optimizer.step()
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cpu", False)  # as it is on a GPU
            patch.setattr(optim, "_update", None)
            of_gpu.step()
        velocity = (velocity * np.float32(momentum)) + model.weights[0].grad.numpy()
        values = values - np.float32(LR) * velocity
    assert model.weights[0].tolist() == values.tolist()
    for weights, its_weights in zip(model.weights, on_gpu.weights, strict=True):
        assert weights.tolist() == its_weights.tolist()


def test_on_a_gpu_a_parameter_without_a_gradient_stays_as_it_is(monkeypatch):
    model, other = Net(), Net()
    optimizer, of_gpu = (SGD(net.parameters(), lr=LR, momentum=MOMENTUM) for net in (model, other))
    for seed in range(3):
        for net in (model, other):
            set_gradients(net, seed=seed)
            net.weights[1].grad = None
        optimizer.step()
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cpu", False)
            of_gpu.step()
    assert torch.equal(other.weights[1], Net().weights[1])
    for weights, its_weights in zip(model.weights, other.weights, strict=True):
        assert torch.equal(weights, its_weights)


def apply(model, optimizer):
    """As `Module.to(device)` and `Module.cuda` do."""
    model._apply(lambda tensor: tensor.clone())
    return model, optimizer


def flatten(model, optimizer):
    """As cuDNN's `flatten_parameters` does: views of a vector of its own."""
    parameters = list(model.parameters())[::-1]
    vector = torch.cat([parameter.detach().flatten() for parameter in parameters])
    parts = vector.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return model, optimizer


def move_one(model, optimizer):
    model.weights[2].data = model.weights[2].data.clone()
    return model, optimizer


def double_velocities(model, optimizer):
    for parameter in model.parameters():
        velocity = optimizer.state[parameter]["momentum_buffer"]
        optimizer.state[parameter]["momentum_buffer"] = 2 * velocity
    return model, optimizer


def forget_velocities(model, optimizer):
    optimizer.state.clear()
    return model, optimizer


def load_other_state(model, optimizer):
    other = Net()
    source = type(optimizer)(other.parameters(), lr=LR / 2, momentum=MOMENTUM)
    train(other, source, [7])
    optimizer.load_state_dict(source.state_dict())
    return model, optimizer


def unpickle(model, optimizer):
    return pickle.loads(pickle.dumps((model, optimizer)))


def change_group(model, optimizer):
    optimizer.param_groups[0] |= {"lr": LR / 4, "momentum": 0.5}
    return model, optimizer


def begin_with_momentum(model, optimizer):
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.state.clear()
    train(model, optimizer, [4])
    optimizer.param_groups[0]["momentum"] = MOMENTUM
    return model, optimizer


MOVES = [apply, flatten, move_one, double_velocities, forget_velocities]
HARMLESS = [load_other_state, unpickle, change_group, begin_with_momentum]


def moved_and_trained(move):
    pairs = []
    for model, optimizer in both():
        train(model, optimizer, [0, 1])
        moved, optimizer = move(model, optimizer)
        train(moved, optimizer, [2, 3])
        pairs.append((moved, optimizer))
    return pairs


@pytest.mark.parametrize("move", [*MOVES, *HARMLESS, lambda *pair: copy.deepcopy(pair)])
def test_training_goes_on_after(move):
    (model, optimizer), (other, expected) = moved_and_trained(move)
    check_close(model, other)
    check_close_states(optimizer, expected)


def test_a_model_that_became_float64_goes_on_in_float64():
    pairs = both()
    for model, optimizer in pairs:
        train(model, optimizer, [0, 1])
        for parameter in model.double().parameters():
            parameter.grad = None
        train(model, optimizer, [2, 3])
    for value, expected in zip(*(model.parameters() for model, _ in pairs), strict=True):
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected, **CLOSE[torch.float32])  # what it began with


@pytest.mark.parametrize("move", MOVES)
def test_without_the_look_at_addresses_training_goes_wrong_in_silence(move, monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(SGD, "_places", lambda self, parameters: [1])
    (model, _), (other, _) = moved_and_trained(move)
    with pytest.raises(AssertionError):
        check_close(model, other)


def test_new_gradients_are_seen_at_every_step(monkeypatch):
    def trained():
        (model, optimizer), (other, expected) = both()
        for in_a_row, seed in [(True, 0), (True, 1), (False, 2), (False, 3), (True, 4)]:
            train(model, optimizer, [seed], in_a_row=in_a_row)
            train(other, expected, [seed])
        for pair in ((model, optimizer), (other, expected)):  # in place, as after zero_grad(False)
            train(*pair, [5], in_a_row=False)
            for parameter in pair[0].parameters():
                parameter.grad.mul_(2)
            pair[1].step()
        check_close(model, other)

    trained()
    monkeypatch.setattr(SGD, "_places", lambda self, parameters: [1])
    with pytest.raises(AssertionError):
        trained()


@pytest.mark.parametrize("how", ["two storages", "transposed", "in another order"])
def test_gradients_that_only_look_like_one_vector_are_joined(how):
    pairs = both(shapes=[(2, 3), (2, 3)])
    for model, optimizer in pairs:
        numbers = np.arange(12, dtype=np.float32)
        parts = [torch.from_numpy(part) for part in np.split(numbers, 2)]  # of two storages
        if how == "transposed":
            parts = [part.view(3, 2).T for part in torch.from_numpy(numbers).split(6)]
        elif how == "in another order":
            parts = torch.from_numpy(numbers).split(6)[::-1]
        for parameter, part in zip(model.parameters(), parts, strict=True):
            parameter.grad = part if how == "transposed" else part.view(2, 3)
        optimizer.step()
    check_close(pairs[0][0], pairs[1][0])


def test_a_copy_and_its_original_share_nothing():
    (model, optimizer), _ = both()
    train(model, optimizer, [0, 1])
    copied, its_optimizer = copy.deepcopy((model, optimizer))
    before = [value.clone() for value in model.parameters()]
    velocities = [value.clone() for value in optimizer_tensors(model, optimizer).values()]
    train(copied, its_optimizer, [2, 3])
    assert all(map(torch.equal, model.parameters(), before))
    assert all(map(torch.equal, optimizer_tensors(model, optimizer).values(), velocities))
    assert not any(map(torch.equal, copied.parameters(), before))


def test_a_parameter_without_a_gradient_stays_as_it_is():
    pairs = both()
    for model, optimizer in pairs:
        for seed, left_out in enumerate([2, 2, 0, None, 3]):
            set_gradients(model, seed=seed)
            if left_out is not None:
                model.weights[left_out].grad = None
            optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None
        optimizer.step()
    (model, optimizer), (other, expected) = pairs
    check_close(model, other)
    check_close_states(optimizer, expected)


def test_backward_through_values_from_before_a_step_is_an_error_as_in_torch():
    for model, optimizer in both():
        loss = model.weights[0].square().sum()
        train(model, optimizer, [0])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_step_opens_no_profilers_record(monkeypatch):
    def refuse(*_):
        raise AssertionError("15 us")

    model = Net()
    optimizer = SGD(model.parameters(), lr=LR)
    monkeypatch.setattr(torch.autograd.profiler, "record_function", refuse)
    train(model, optimizer, [0])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)  # negative control
    with pytest.raises(AssertionError, match="15 us"):
        optimizer.step()


# In a run


def build(world, **changes):
    small = {
        "data.train_size": 60, "data.test_size": 20, "data.window": 9, "model.hidden_size": 6,
        "train.global_batch_size": 20, "optim.momentum": MOMENTUM,
    }  # fmt: skip
    return job.build(load_config(overrides={**small, **changes}), world)


def train_epoch(built):
    for step, batch in built.train.batches(whole=built.gradient.is_whole):
        built.gradient(batch, epoch=0, step=step, stop=False)
        built.update(step)


def with_torchs_sgd(built):
    """The same job with torch's optimizer."""
    optimizer = torch.optim.SGD(built.rows.parameters, lr=0.01, momentum=MOMENTUM)
    task = dataclasses.replace(built.task, optimizer=optimizer)
    update = Update(optimizer, built.rows.parameters)
    return dataclasses.replace(built, task=task, update=update)


def places(model):
    return [parameter.data_ptr() for parameter in model.parameters()]


@pytest.mark.parametrize("lstm", [FUSED, "torch"])
def test_the_first_step_moves_no_weights(world, lstm):
    """A matrix library may choose its code by alignment: so a run that continues gets other bits
    where its first step moves them."""
    built = build(world, **{"model.lstm": lstm})
    trained, optimizer = built.task.model, built.task.optimizer
    before = places(trained)
    train_epoch(built)
    assert places(trained) == before
    load_optimizer_tensors(trained, optimizer, optimizer_tensors(trained, optimizer))
    train_epoch(built)
    assert places(trained) == before
    model, _ = copy.deepcopy((trained, optimizer))
    alone = copy.deepcopy(trained)
    SGD(alone.parameters(), lr=LR)
    for other in (model, alone):  # which are compared with the one that is trained
        assert [place % 64 for place in places(other)] == [place % 64 for place in before]


@pytest.mark.parametrize("lstm", [FUSED, "torch"])
@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_a_run_learns_what_torchs_sgd_learns(world, reduction, lstm):
    settings = {"train.reduction": reduction, "model.lstm": lstm}
    built, other = build(world, **settings), with_torchs_sgd(build(world, **settings))
    for _ in range(3):
        train_epoch(built)
        train_epoch(other)
    expected = other.task.model.state_dict()
    for name, value in built.task.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_files_hold_each_tensor_alone(world, tmp_path):
    built = build(world)
    train_epoch(built)
    model = built.task.model
    tensors = optimizer_tensors(model, built.task.optimizer)
    fresh = Predictor(hidden_size=6)
    fresh.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path / "model")
    fresh.save_pretrained(tmp_path / "fresh")
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "fresh")]
    assert saved[0] == saved[1]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.save(fresh.state_dict(), tmp_path / "fresh.pt")
    assert (tmp_path / "model.pt").stat().st_size <= (tmp_path / "fresh.pt").stat().st_size
    state = {"step": 3}
    folder = checkpoint.write(
        tmp_path, checkpoint.Checkpoint(state, model.state_dict(), tensors), keep=1
    )
    for name, expected in (("model", model.state_dict()), ("optimizer", tensors)):
        path = folder / f"{name}.safetensors"
        found = load_file(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
        assert path.stat().st_size < sum(value.nbytes for value in found.values()) + 1000


def test_the_tensors_of_torchs_sgd_are_read_from_a_checkpoint(world):
    """Which is what the version before wrote."""
    built, other = build(world), with_torchs_sgd(build(world))
    train_epoch(other)
    model, optimizer, older = built.task.model, built.task.optimizer, other.task.model
    tensors = optimizer_tensors(older, other.task.optimizer)
    assert {name.rpartition(".")[2] for name in tensors} == {"momentum_buffer"}
    model.load_state_dict(older.state_dict())
    load_optimizer_tensors(model, optimizer, tensors)
    assert optimizer_tensors(model, optimizer).keys() == tensors.keys()
    train_epoch(built)
    train_epoch(other)
    for value, expected in zip(model.parameters(), older.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_step_does_not_depend_on_torchs_cpu_code():
    program = (
        "import sys, numpy, torch\n"
        "from sinlstm_dist.optim import SGD\n"
        "numbers = numpy.random.default_rng(0).standard_normal((2, 1000), dtype='float32')\n"
        "value = torch.nn.Parameter(torch.from_numpy(numbers[0]))\n"
        "value.grad = torch.from_numpy(numbers[1])\n"
        "for kind in (SGD, torch.optim.SGD):\n"
        "    optimizer = kind([value], lr=0.1, momentum=0.9)\n"
        "    for _ in range(3):\n"
        "        optimizer.step()\n"
        "    print(value.tolist())\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment(ATEN_CPU_CAPABILITY=name),
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout.splitlines()
        for name in ("default", "avx2")
    ]  # fmt: skip
    assert found[0][0] == found[1][0]
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # negative control: torch's own
        assert found[0][1] != found[1][1]
