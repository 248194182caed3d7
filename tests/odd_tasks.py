"""Tasks as users write them, right and wrong: each function is one, named by what is odd in it."""

from __future__ import annotations  # as many users do: Settings is then a string

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from sinlstm_dist.data.sine import SineDataset
from sinlstm_dist.task import Task

SIZE, TEST_SIZE, NUM_INPUTS, NUM_CLASSES = 101, 37, 6, 3


class Settings(BaseModel):
    """What a user may set."""

    width: int = 8
    lr: float = 0.01


def points(size: int, seed: int) -> TensorDataset:
    """Inputs (NUM_INPUTS,) and a class that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, NUM_INPUTS, generator=generator)
    return TensorDataset(inputs, inputs[:, :NUM_CLASSES].argmax(1))


def net(width: int, *middle: nn.Module) -> nn.Sequential:
    """A perceptron with some layers in its middle."""
    return nn.Sequential(
        nn.Linear(NUM_INPUTS, width), nn.ReLU(), *middle, nn.Linear(width, NUM_CLASSES)
    )


def totals(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Sums of cross entropy and of correct predictions."""
    inputs, classes = batch
    logits = model(inputs)
    return F.cross_entropy(logits, classes, reduction="sum"), (logits.argmax(1) == classes).sum()


def task(model: nn.Module, **other: Any) -> Task:
    """A task with this model; `other` replaces its other parts."""
    parts = {
        "train_data": points(SIZE, 1), "test_data": points(TEST_SIZE, 2), "totals": totals,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01),
    }  # fmt: skip
    return Task(model=model, **{**parts, **other})


def plain(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    return task(model, optimizer=torch.optim.AdamW(model.parameters(), lr=settings.lr))


def dropout(settings: Settings, config: Any) -> Task:
    return task(net(settings.width, nn.Dropout(0.5)))


class Jitter(Dataset[Any]):
    """Points that each generator moves, another way each time they are asked for."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        noise = torch.randn(NUM_INPUTS) + random.random() + float(np.random.rand())
        return inputs + 0.1 * noise, label


def augmented(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), train_data=Jitter(points(SIZE, 1)))


class Extracted(Jitter):
    """Points that a module has changed, whose weights nobody trains or freezes."""

    extractor = nn.Linear(NUM_INPUTS, NUM_INPUTS)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        return self.extractor(inputs), label


def extracted(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), test_data=Extracted(points(TEST_SIZE, 2)))


def cosine(settings: Settings, config: Any) -> Task:
    return task(
        net(settings.width),
        lr_factor=lambda step, num_steps: (step + 1) / 5 if step < 5 else 1 - step / num_steps,
        clip_norm=0.1,
    )


def constant(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), lr_factor=lambda step, num_steps: 0.5)


def with_sgd(build: Callable[..., Task]) -> Callable[..., Task]:
    """The same task with SGD, whose steps are as long as the gradient; Adam's are not."""

    def built(settings: Settings, config: Any) -> Task:
        found = build(settings, config)
        steps = torch.optim.SGD(found.model.parameters(), lr=0.05, momentum=0.9)
        return replace(found, optimizer=steps)

    return built


def optimizer(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[..., Task]:
    """A task with this optimizer, with one group for the last layer and one for the others."""

    def build(settings: Settings, config: Any) -> Task:
        model = net(settings.width, nn.Dropout(0.2))
        groups = [
            {"params": model[-1].parameters(), "lr": 0.02},
            {"params": model[0].parameters(), "weight_decay": 0.1},
        ]
        return task(model, optimizer=make(groups))

    return build


def sgd(settings: Settings, config: Any) -> Task:
    return optimizer(lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9))(settings, 0)


def adam(settings: Settings, config: Any) -> Task:
    return optimizer(lambda groups: torch.optim.Adam(groups, amsgrad=True))(settings, config)


def adamw(settings: Settings, config: Any) -> Task:
    return optimizer(torch.optim.AdamW)(settings, config)


def adagrad(settings: Settings, config: Any) -> Task:
    return optimizer(torch.optim.Adagrad)(settings, config)


def rmsprop(settings: Settings, config: Any) -> Task:
    return optimizer(torch.optim.RMSprop)(settings, config)


def lbfgs(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    return task(model, optimizer=torch.optim.LBFGS(model.parameters()))


class CountingSGD(torch.optim.SGD):
    """Keeps a number of Python per parameter, as some optimizers elsewhere do."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1


def python_state(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    return task(model, optimizer=CountingSGD(model.parameters(), lr=0.01))


def frozen(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    model[0].requires_grad_(False)
    return task(model)


def frozen_all(settings: Settings, config: Any) -> Task:
    return task(net(settings.width).requires_grad_(False))


class Unused(nn.Module):
    """Has a layer that no forward pass uses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.unused = net(width), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


def unused(settings: Settings, config: Any) -> Task:
    return task(Unused(settings.width))


class Sometimes(nn.Module):
    """Has a layer that is used only for samples with a large first number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.often, self.seldom = net(width), net(width)

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = inputs[:, :1] > 1.8
        if chosen.any():
            return self.often(inputs) + chosen * self.seldom(inputs)
        return self.often(inputs)


def sometimes(settings: Settings, config: Any) -> Task:
    return task(Sometimes(settings.width))


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(NUM_INPUTS, width), nn.Linear(NUM_INPUTS, width)
        self.outputs.weight = self.inputs.weight
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(F.relu(self.inputs(inputs)) * self.outputs(inputs))


def tied(settings: Settings, config: Any) -> Task:
    return task(Tied(settings.width))


def batch_norm(settings: Settings, config: Any) -> Task:
    return task(net(settings.width, nn.BatchNorm1d(settings.width)))


def group_norm(settings: Settings, config: Any) -> Task:
    return task(net(settings.width, nn.GroupNorm(2, settings.width)))


class Bfloat16(nn.Module):
    """Computes in bfloat16, and holds its weights so."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width).bfloat16()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.bfloat16()).float()


def bfloat16(settings: Settings, config: Any) -> Task:
    return task(Bfloat16(settings.width))


def dict_totals(model: nn.Module, batch: dict[str, Any]) -> Any:
    logits = model(batch["parts"]["inputs"] * batch["scale"][:, None].float())
    assert isinstance(batch["name"][0], str)
    loss = F.cross_entropy(logits, batch["label"], reduction="sum")
    return loss, (logits.argmax(1) == batch["label"]).sum()


class Dicts(Jitter):
    """Samples that are nested dicts of arrays, numbers and strings."""

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        name, parts = f"sample {index}", {"inputs": inputs.numpy()}
        return {"parts": parts, "label": int(label), "scale": 1.5, "name": name}


def dicts(settings: Settings, config: Any) -> Task:
    data = {"train_data": Dicts(points(SIZE, 1)), "test_data": Dicts(points(TEST_SIZE, 2))}
    return task(net(settings.width), totals=dict_totals, **data)


def regression(settings: Settings, config: Any) -> Task:
    def squared(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0])[:, 0] - batch[0].sum(1)).square().sum(), None

    return task(net(settings.width), totals=squared)


def token_totals(model: nn.Module, batch: Any) -> Any:
    """Weights each sample by a number of its own, as tokens of a text would."""
    logits, classes = model(batch[0]), batch[1]
    tokens = 1 + 3 * classes
    losses = F.cross_entropy(logits, classes, reduction="none")
    correct = (logits.argmax(1) == classes) * tokens
    return (losses * tokens).sum(), correct.sum(), tokens.sum()


def tokens(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), totals=token_totals)


def mean_loss(settings: Settings, config: Any) -> Task:
    def mean(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1]), None

    return task(net(settings.width), totals=mean)


class Masked(nn.Module):
    """Holds a mask with -inf, and numbers that are not float32, in its state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def masked(settings: Settings, config: Any) -> Task:
    return task(Masked(settings.width))


class Stateful(nn.Module):
    """Carries a state from one batch to the next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net, self.last = net(width), torch.zeros(NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs) + self.last
        self.last = outputs.detach().mean(0)
        return outputs


def stateful(settings: Settings, config: Any) -> Task:
    return task(Stateful(settings.width))


class Average(nn.Module):
    """Keeps a moving average of a weight, which is the weight itself until the first step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width)
        self.register_buffer("mean", self.net[0].weight.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(self.net[0].weight, 0.01)
        return self.net(inputs)


def ema(settings: Settings, config: Any) -> Task:
    return task(Average(settings.width))


class MaxNorm(nn.Module):
    """Has an embedding that shortens its own weights in a forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_INPUTS, width, max_norm=1.0)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.embedding(inputs.argmax(1)))


def max_norm(settings: Settings, config: Any) -> Task:
    return task(MaxNorm(settings.width))


class Counter(nn.Module):
    """Counts its calls, and does something else after many of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net, self.calls = net(width), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.net(inputs) / (2 if self.calls > 30 else 1)


def counter(settings: Settings, config: Any) -> Task:
    return task(Counter(settings.width))


class InnerCounter(nn.Module):
    """Counts its calls in a dict, and does something else after many of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net, self.notes = net(width), {"calls": 0}

    def forward(self, inputs: Tensor) -> Tensor:
        self.notes["calls"] += 1
        return self.net(inputs) / (2 if self.notes["calls"] > 30 else 1)


def inner_counter(settings: Settings, config: Any) -> Task:
    return task(InnerCounter(settings.width))


class OwnGenerator(nn.Module):
    """Draws from a generator of its own, which nobody seeds again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net, self.generator = net(width), np.random.default_rng(0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs * float(self.generator.random()))


def own_generator(settings: Settings, config: Any) -> Task:
    return task(OwnGenerator(settings.width))


class OwnDraws(Jitter):
    """Points that a generator of their own moves."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__(data)
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        return inputs + float(self.generator.random()), label


def own_draws(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), train_data=OwnDraws(points(SIZE, 1)))


class Remembers(nn.Module):
    """Keeps its last activations as an attribute, which threads would share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width)

    def forward(self, inputs: Tensor) -> Tensor:
        self.hidden = self.net[0](inputs)
        return self.net[2](self.net[1](self.hidden))


ACTIVATIONS: dict[str, Tensor] = {}


class Keeps(nn.Module):
    """Keeps its last activations elsewhere than in an attribute."""

    def __init__(self, width: int, where: str) -> None:
        super().__init__()
        self.net, self.where = net(width), where
        self.cache, self.notes = {"a": {}}, SimpleNamespace()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.net[0](inputs)
        if self.where == "nested":
            self.cache["a"]["last"] = hidden
        elif self.where == "object":
            self.notes.hidden = hidden
        else:
            ACTIVATIONS["last"] = hidden
        return self.net[2](self.net[1](hidden))


def keeps_nested(settings: Settings, config: Any) -> Task:
    return task(Keeps(settings.width, "nested"))


def keeps_in_object(settings: Settings, config: Any) -> Task:
    return task(Keeps(settings.width, "object"))


def keeps_outside(settings: Settings, config: Any) -> Task:
    return task(Keeps(settings.width, "outside"))


class Hooked(nn.Module):
    """Keeps its last activations in a dict that a hook writes to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width)
        kept: dict[str, Tensor] = {}
        self.net[0].register_forward_hook(lambda module, _, out: kept.update(hidden=out))
        self.last = lambda: kept["hidden"]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) + 0 * self.last().sum()


def hooked(settings: Settings, config: Any) -> Task:
    return task(Hooked(settings.width))


class Listed(nn.Module):
    """Appends its outputs to a list, in evaluation mode only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net, self.seen = net(width), []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs)
        if not self.training:
            self.seen.append(outputs)
        return outputs


def listed(settings: Settings, config: Any) -> Task:
    return task(Listed(settings.width))


def remembers(settings: Settings, config: Any) -> Task:
    return task(Remembers(settings.width))


def foreign_parameter(settings: Settings, config: Any) -> Task:
    model, centre = net(settings.width), nn.Parameter(torch.zeros(3))
    return task(model, optimizer=torch.optim.SGD([*model.parameters(), centre], lr=0.1))


def other_weights(settings: Settings, config: Any) -> Task:
    """Weights that follow the process and not the seed."""
    model = net(settings.width)
    with torch.no_grad():
        model[0].bias[0] = random.SystemRandom().random()
    return task(model)


def other_data(settings: Settings, config: Any) -> Task:
    """Samples that follow the process and not the seed."""
    return task(net(settings.width), train_data=points(SIZE, random.SystemRandom().getrandbits(32)))


def other_test_data(settings: Settings, config: Any) -> Task:
    """One number of the test samples does."""
    data = points(TEST_SIZE, 2)
    data.tensors[0][-1, -1] = random.SystemRandom().random()
    return task(net(settings.width), test_data=data)


def raises(settings: Settings, config: Any) -> Task:
    raise KeyError("no such thing")


class OneByOne(SineDataset):
    """Takes no array of indices, as the class that it extends does."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(int(index))


def one_by_one(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), train_data=OneByOne(size=SIZE))


def raises_in_totals(settings: Settings, config: Any) -> Task:
    def wrong(model: nn.Module, batch: Any) -> Any:
        return model(batch[0][:, :2]).sum(), None

    return task(net(settings.width), totals=wrong)


def nan_targets(settings: Settings, config: Any) -> Task:
    """Numbers to predict, one of which is missing."""
    inputs = points(SIZE, 1).tensors[0]
    targets = inputs.sum(1)
    targets[1] = torch.nan

    def squared(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0])[:, 0] - batch[1]).square().sum(), None

    data = TensorDataset(inputs, targets)
    return task(net(settings.width), train_data=data, test_data=data, totals=squared)


def scheduler(settings: Settings, config: Any) -> Task:
    """Has a scheduler of torch's, which nothing here would step."""
    model = net(settings.width)
    steps = torch.optim.AdamW(model.parameters())
    torch.optim.lr_scheduler.StepLR(steps, 10)
    return task(model, optimizer=steps)


def nan_schedule(settings: Settings, config: Any) -> Task:
    factors = {3: float("nan")}
    return task(net(settings.width), lr_factor=lambda step, num_steps: factors.get(step, 1.0))


def negative_schedule(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), lr_factor=lambda step, num_steps: 1 - step / 2)


class SharedStateSGD(torch.optim.SGD):
    """Keeps a tensor that belongs to no parameter."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        shared = self.state["shared"]
        shared["steps"] = shared.get("steps", torch.tensor(0.0)) + 1


def shared_state(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    return task(model, optimizer=SharedStateSGD(model.parameters(), lr=0.01))


def of_closure(settings: Settings, config: Any) -> Task:
    """Does not use the model that its totals get, but the one it has made."""
    own = net(settings.width)
    return task(own, totals=lambda model, batch: totals(own, batch))


class Encoder(nn.Module):
    """Is used by a method of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def encodes(settings: Settings, config: Any) -> Task:
    def encoded(model: nn.Module, batch: Any) -> Any:
        return totals(model.encode, batch)

    return task(Encoder(settings.width), totals=encoded)


def wrong_schedule(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), lr_factor=lambda step: 1.0)  # type: ignore[misc,arg-type]


def returns_none(settings: Settings, config: Any) -> None:
    task(net(settings.width))


def no_tensors(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), totals=lambda model, batch: 1.0)


def empty(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), train_data=points(0, 1))


def too_many_correct(settings: Settings, config: Any) -> Task:
    def twice(model: nn.Module, batch: Any) -> Any:
        return model(batch[0]).square().sum(), 2 * len(batch[0])

    return task(net(settings.width), totals=twice)


class Stream(IterableDataset[Any]):
    """Can be walked through, and has no indices."""

    def __iter__(self) -> Iterator[Any]:
        return iter(points(SIZE, 1))


def iterable(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), train_data=Stream())


class Sparse(nn.Module):
    """Has an embedding whose gradients are sparse."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_INPUTS, NUM_CLASSES, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.embedding(inputs.argmax(1))


def sparse(settings: Settings, config: Any) -> Task:
    model = Sparse(settings.width)
    return task(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def no_gradient(settings: Settings, config: Any) -> Task:
    def detached(model: nn.Module, batch: Any) -> Any:
        return model(batch[0]).square().sum().detach(), None

    return task(net(settings.width), totals=detached)


class ExtraState(nn.Module):
    """Keeps something in its state that is no tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = net(width)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def get_extra_state(self) -> Any:
        return {"seen": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def extra_state(settings: Settings, config: Any) -> Task:
    return task(ExtraState(settings.width))


class Hole(Jitter):
    """Has a sample that cannot be read, and no look at the task reads it."""

    def __getitem__(self, index: int) -> Any:
        if index == 89:
            raise ValueError("sample 89 is damaged")
        return self.data[index]


def hole(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), train_data=Hole(points(SIZE, 1)))


def diverges(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    return task(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e30))


plain_sgd, tokens_sgd, unused_sgd, tied_sgd = map(with_sgd, (plain, tokens, unused, tied))


MISSING = float("nan")


def weighted_totals(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Sums in which each sample counts as often as its weight says: fractions, all three."""
    inputs, classes = batch
    logits = torch.nan_to_num(model(inputs), nan=MISSING)
    losses = F.cross_entropy(logits, classes, reduction="none")
    weights = 0.01 + inputs[:, 0].abs()
    return (losses * weights).sum(), ((logits.argmax(1) == classes) * weights).sum(), weights.sum()


def weighted(settings: Settings, config: Any) -> Task:
    return task(net(settings.width), totals=weighted_totals)


def masked_totals(model: nn.Module, batch: Any) -> tuple[Tensor, None, Tensor]:
    """The mean loss over samples whose first input is below 100."""
    inputs, classes = batch
    counted = inputs[:, 0] < 100
    losses = F.cross_entropy(model(inputs), classes, reduction="none")
    return (losses * counted).sum(), None, counted.sum()


def without_divisor(settings: Settings, config: Any) -> Task:
    data = points(SIZE, 1)
    data.tensors[0][:] = 100.0
    return task(net(settings.width), totals=masked_totals, train_data=data)


def without_test_divisor(settings: Settings, config: Any) -> Task:
    data = points(TEST_SIZE, 2)
    data.tensors[0][:] = 100.0
    return task(net(settings.width), totals=masked_totals, test_data=data)


def nan_correct(settings: Settings, config: Any) -> Task:
    def counting(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        loss, correct = totals(model, batch)
        return loss, correct * (MISSING if model.training and len(batch[0]) == 1 else 1)

    return task(net(settings.width), totals=counting)


def leaves(settings: Settings, config: Any) -> Task:
    """Ends the program, as scripts do, at sample 89."""
    last = points(SIZE, 1).tensors[0][89]

    def leaving(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        if (batch[0] == last).all(1).any():
            sys.exit(0)
        return totals(model, batch)

    return task(net(settings.width), totals=leaving)


def lazy(settings: Settings, config: Any) -> Task:
    return task(net(settings.width, nn.LazyLinear(settings.width)))


def expanded(settings: Settings, config: Any) -> Task:
    model = net(settings.width)
    model.register_buffer("zeros", torch.zeros(1).expand(5))
    return task(model)
