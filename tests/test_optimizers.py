"""Any optimizer of torch: what a checkpoint keeps of it, and the steps that it makes."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from sinlstm_dist.optimizers import (
    FULL_LR,
    Update,
    check_state,
    copied,
    group_values,
    load_group_values,
    load_optimizer_tensors,
    optimizer_tensors,
    trial_step,
)


class Net(nn.Module):
    """Two layers that are trained apart, one that is frozen, one that is tied, one never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen, self.first, self.second = (nn.Linear(3, 3) for _ in range(3))
        self.tied, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.tied(self.second(self.first(self.frozen(inputs))))


def in_two_groups(model: Net) -> torch.optim.Optimizer:
    """In another order than the model's, with a frozen parameter in one of the groups."""
    groups = [
        {"params": [model.second.bias, model.second.weight], "lr": 0.5, "weight_decay": 0.0},
        {"params": [*model.frozen.parameters(), *model.first.parameters(), model.tied.bias,
                    *model.unused.parameters()]},
    ]  # fmt: skip
    return torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95))


def of_all(model: Net) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def sgd(model: Net) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def adam(model: Net) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True)


KINDS = [in_two_groups, of_all, sgd, adam]


def train(model: Net, optimizer: torch.optim.Optimizer, seeds) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        model(inputs).square().sum().backward()
        optimizer.step()


def same_weights(model: Net, other: Net) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("new_optimizer", KINDS)
def test_a_new_process_goes_on_with_what_was_saved(new_optimizer):
    model = Net()
    optimizer = new_optimizer(model)
    train(model, optimizer, range(3))
    other = Net()
    its_optimizer = new_optimizer(other)
    other.load_state_dict(model.state_dict())
    saved = {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    groups = json.loads(json.dumps(group_values(model, optimizer)))
    load_optimizer_tensors(other, its_optimizer, saved)
    assert load_group_values(other, its_optimizer, groups) == []
    assert its_optimizer.param_groups[0].keys() == optimizer.param_groups[0].keys()
    train(model, optimizer, range(3, 6))
    train(other, its_optimizer, range(3, 6))
    assert same_weights(model, other)
    forgetful = Net()  # negative control
    forgetful.load_state_dict(other.state_dict())
    train(forgetful, new_optimizer(forgetful), [6])
    train(other, its_optimizer, [6])
    assert not same_weights(forgetful, other)


def test_state_has_the_names_of_the_parameters_that_were_used():
    model = Net()
    optimizer = in_two_groups(model)
    assert optimizer_tensors(model, optimizer) == {}
    train(model, optimizer, [0])
    tensors = optimizer_tensors(model, optimizer)
    used = ["first.weight", "first.bias", "second.weight", "second.bias", "tied.bias"]
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert set(tensors) == {f"{name}.{key}" for name in used for key in keys}
    for name, parameter in model.named_parameters():
        if name in used:
            state = optimizer.state[parameter]
            assert tensors[f"{name}.exp_avg"] is state["exp_avg"]
            assert state["exp_avg"].shape == parameter.shape


def test_state_does_not_depend_on_the_order_of_groups():
    """The numbers that torch gives to parameters do."""
    model, other = Net(), Net()
    optimizer, its_optimizer = in_two_groups(model), of_all(other)
    train(model, optimizer, range(2))
    load_optimizer_tensors(other, its_optimizer, optimizer_tensors(model, optimizer))
    ours, theirs = optimizer_tensors(model, optimizer), optimizer_tensors(other, its_optimizer)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["first.bias.exp_avg"], ours["second.bias.exp_avg"])


def test_groups_are_json_with_names():
    model = Net()
    first, second = json.loads(json.dumps(group_values(model, in_two_groups(model))))
    assert first["params"] == ["second.bias", "second.weight"]
    assert second["params"] == [
        "frozen.weight", "frozen.bias", "first.weight", "first.bias", "tied.bias",
        "unused.weight", "unused.bias",
    ]  # fmt: skip
    assert (first["lr"], second["lr"]) == (0.5, 0.1)
    assert first["betas"] == [0.8, 0.95]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (torch.tensor(0.1), "tensor(0.1000)"),
        ({"a": 1}, "{'a': 1}"),
        ([print], "[<built-in function print>]"),
        (math.inf, "inf"),
    ],
)
def test_a_value_that_json_cannot_express_is_named(value, shown):
    model = Net()
    optimizer = of_all(model)
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match="can hold only finite numbers") as raised:
        group_values(model, optimizer)
    assert str(raised.value).startswith(f"the optimizer's lr is {shown}: ")


def test_what_is_set_to_another_value_is_said():
    model = Net()
    saved = json.loads(json.dumps(group_values(model, in_two_groups(model))))
    edited = in_two_groups(model)
    edited.param_groups[1] |= {"lr": 0.2, "betas": (0.9, 0.95)}
    changes = load_group_values(model, edited, saved)
    assert sorted(changes) == [
        "betas=(0.8, 0.95) (your code now says (0.9, 0.95))",
        "lr=0.1 (your code now says 0.2)",
    ]
    assert edited.param_groups[1]["lr"] == 0.1
    assert edited.param_groups[1]["betas"] == (0.8, 0.95)
    assert load_group_values(model, edited, saved) == []
    assert load_group_values(model, edited, []) == []  # older versions saved none
    with pytest.raises(ValueError, match="other parameters than the checkpoint's"):
        load_group_values(model, of_all(model), saved)


def test_a_learning_rate_that_a_factor_sets_is_no_change():
    model = Net()
    optimizer = of_all(model)
    update = Update(optimizer, list(model.parameters()), lr_factor=lambda step: 1 / (step + 1))
    train(model, optimizer, [0])
    update(3)
    saved = group_values(model, optimizer)
    assert (saved[0]["lr"], saved[0][FULL_LR]) == (0.1 / 4, 0.1)
    other = of_all(model)
    update = Update(other, list(model.parameters()), lr_factor=lambda step: 1 / (step + 1))
    assert load_group_values(model, other, saved) == []
    update(4)
    assert other.param_groups[0]["lr"] == 0.1 * (1 / 5)  # and not of what the last step had
    other = torch.optim.AdamW(model.parameters(), lr=0.2)
    Update(other, list(model.parameters()), lr_factor=lambda step: 1.0)
    assert load_group_values(model, other, saved) == [f"{FULL_LR}=0.1 (your code now says 0.2)"]


# Steps


def plain(values: list[float]) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter, torch.optim.SGD([parameter], lr=0.5)


@pytest.mark.parametrize(
    ("clip_norm", "moved"), [(0.0, [1.5, 2.0]), (10.0, [1.5, 2.0]), (2.5, [0.75, 1.0])]
)
def test_the_gradient_is_shortened_to_the_norm(clip_norm, moved):
    parameter, optimizer = plain([3.0, 4.0])  # of length 5
    Update(optimizer, [parameter], clip_norm=clip_norm)(0)
    assert (-parameter.detach()).tolist() == pytest.approx(moved, rel=1e-5)


def test_the_norm_is_that_of_all_gradients_together():
    pairs = [plain([3.0]), plain([4.0])]
    parameters = [parameter for parameter, _ in pairs]
    unused = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([*parameters, unused], lr=1.0)
    Update(optimizer, [*parameters, unused], clip_norm=1.0)(0)
    assert [-p.item() for p in parameters] == pytest.approx([0.6, 0.8], rel=1e-5)
    assert unused.tolist() == [0, 0]


def test_the_learning_rate_of_each_group_is_multiplied_before_the_step():
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other], "lr": 0.1}], lr=1.0)
    asked = []
    update = Update(
        optimizer, [one, other], lr_factor=lambda step: asked.append(step) or torch.tensor(0.5)
    )
    for step in (0, 7):
        before = one.item(), other.item()
        one.grad, other.grad = torch.ones(1), torch.ones(1)
        update(step)
        assert before[0] - one.item() == 0.5
        assert before[1] - other.item() == pytest.approx(0.05)
    assert asked == [0, 7]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
    assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)


def test_without_a_factor_groups_stay_as_they_are():
    parameter, optimizer = plain([1.0])
    Update(optimizer, [parameter])(0)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert FULL_LR not in optimizer.param_groups[0]


def test_a_parameter_that_was_not_used_does_not_decay():
    model = Net()
    before = model.unused.weight.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    update = Update(optimizer, [p for p in model.parameters() if p.requires_grad], clip_norm=1.0)
    model(torch.ones(4, 3)).sum().backward()
    update(0)
    assert torch.equal(model.unused.weight, before)
    model.unused.weight.grad = torch.zeros(3, 3)  # negative control
    update(1)
    assert not torch.equal(model.unused.weight, before)


# Copies


@pytest.mark.parametrize("new_optimizer", KINDS)
def test_a_trial_step_shows_all_state_there_can_be(new_optimizer):
    model = Net()
    optimizer = new_optimizer(model)
    trial = copy.deepcopy((model, optimizer))
    trial_step(*trial)
    check_state(*trial)
    names = {name.rpartition(".")[0] for name in optimizer_tensors(*trial)}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == trained
    assert same_weights(model, Net())
    assert optimizer_tensors(model, optimizer) == {}
    again = copy.deepcopy((model, optimizer))
    trial_step(*again)
    assert same_weights(trial[0], again[0])


def test_state_that_is_no_tensor_is_refused_by_name():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
            return super().step(closure)

    model = Net()
    optimizer = Counting(model.parameters(), lr=0.1)
    trial_step(model, optimizer)
    with pytest.raises(TypeError, match="Counting has steps of frozen"):
        check_state(model, optimizer)


class Noting(nn.LSTM):
    """Counts how often its weights are laid out as cuDNN wants them; on the CPU that does nothing.

    tests/gpu looks at what torch warns of on a GPU.
    """

    times = 0

    def flatten_parameters(self) -> None:
        self.times += 1
        super().flatten_parameters()


def test_a_copy_of_a_recurrence_is_laid_out_for_cudnn():
    model = nn.Sequential(Noting(1, 3), nn.Linear(3, 1))
    optimizer = sgd(model)
    before = model[0].times
    other, its_optimizer = copied(model, optimizer)
    assert (model[0].times, other[0].times) == (before, before + 1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    its_optimizer.step()
    assert not same_weights(model, other)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_gradients_that_are_not_finite_reach_the_weights():
    """The training loop finds them there; clipping must not hide them."""
    parameter, optimizer = plain([math.inf, 1.0])
    Update(optimizer, [parameter], clip_norm=1.0)(0)
    assert not parameter.isfinite().all()
