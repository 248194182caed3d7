"""Every right task of odd_tasks.py gives the same bits on any number of processes."""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from accelerate.utils import set_seed
from launching import check_same, flags, metrics, summary
from nursery import Nursery
from safetensors.torch import load_file

from sinlstm_dist.plan import epoch_order

ODD = Path(__file__).parent / "odd_tasks.py"
EPOCHS, BATCH = 2, 20  # six steps an epoch, the last of them of one sample
RIGHT = (
    "plain", "dropout", "augmented", "cosine", "sgd", "adam", "adamw", "adagrad",
    "rmsprop", "frozen", "unused", "sometimes", "tied", "group_norm", "dicts", "regression",
    "tokens", "masked", "weighted", "remembers", "extracted",
)  # fmt: skip
WITHOUT_DRAWS = (
    "plain", "cosine", "constant", "frozen", "unused", "sometimes", "tied", "group_norm",
    "regression", "tokens", "masked", "weighted",
)  # fmt: skip
SETTINGS = {
    "train.epochs": EPOCHS, "train.global_batch_size": BATCH, "train.timeout_s": 20,
    "train.seed": 3, "output.plots": "false",
}  # fmt: skip


def settings(name: str, folder: str, **more: object) -> list[str]:
    others = {f"train.{key}": value for key, value in more.items()}
    return flags({**SETTINGS, "task.build": f"{ODD}:{name}", "output.dir": folder, **others})


@pytest.fixture(scope="module")
def odd() -> Iterator[Any]:
    """The module, for a plain loop of torch's."""
    spec = importlib.util.spec_from_file_location("odd_tasks", ODD)
    sys.modules["odd_tasks"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["odd_tasks"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def alone(nursery: Nursery, root: Path) -> Any:
    """The folder of a task's run on one process with one thread and no workers."""

    def run(name: str) -> Path:
        folder = root / f"{name}-alone"
        if not folder.exists():
            ended = nursery.run(settings(name, str(folder)), cwd=root)
            assert ended.codes == [0], ended.stderr
        return folder

    return run


@pytest.mark.parametrize("name", RIGHT)
def test_the_same_bits_on_any_number_of_processes_threads_and_workers(name, nursery, root, alone):
    started = {
        "two": nursery.start(settings(name, f"{name}-2"), cwd=root, processes=2),
        "three": nursery.start(
            settings(name, f"{name}-3", num_workers=1), cwd=root, processes=3
        ),
        "threads": nursery.start(
            settings(name, f"{name}-t", num_workers=2),
            cwd=root,
            variables={"OMP_NUM_THREADS": "3"},
        ),
    }  # fmt: skip
    for launch in started.values():
        assert not any(nursery.wait(launch).codes), launch.stderr
    for folder in (f"{name}-2", f"{name}-3", f"{name}-t"):
        check_same(root / folder, alone(name))


@pytest.mark.parametrize("processes", [4, 8])
def test_the_same_bits_on_many_processes(processes, nursery, root, alone):
    folder = f"augmented-{processes}"
    ended = nursery.run(settings("augmented", folder), cwd=root, processes=processes)
    assert ended.codes == [0] * processes, ended.stderr
    check_same(root / folder, alone("augmented"))


def test_the_same_bits_when_torchrun_starts_it(root, alone):
    arguments = settings("dropout", "torchrun", num_workers=1)
    ended = launching.train(arguments, cwd=root, processes=2, OMP_NUM_THREADS="2")
    assert ended.code == 0, ended.stderr
    check_same(root / "torchrun", alone("dropout"))


def batches(data: Any, *, seed: int, epoch: int) -> Iterator[Any]:
    """Whole batches as torch's own loader would make them, in the order of a run's epoch."""
    order = epoch_order(seed=seed, epoch=epoch, size=len(data), sampling="permutation")
    for start in range(0, len(data), BATCH):
        samples = [data[int(index)] for index in order[start : start + BATCH]]
        yield torch.utils.data.default_collate(samples)


def mean(task: Any, all_sums: list[Any], num_samples: int) -> tuple[float, float | None]:
    """Loss and accuracy of what `totals` returned for the batches of a data set."""
    loss, correct, *divisor = (
        None if None in values else float(sum(torch.as_tensor(v).detach() for v in values))
        for values in zip(*all_sums, strict=True)
    )
    by = divisor[0] if divisor else num_samples
    return loss / by, None if correct is None else correct / by


def plain_training(odd: Any, name: str) -> tuple[dict[str, torch.Tensor], list[Any], Counter]:
    """What a user would write without this package: the weights, each epoch's numbers, and how
    often each parameter had a gradient."""
    set_seed(SETTINGS["train.seed"])
    task = getattr(odd, name)(odd.Settings(), None)
    rates = [group["lr"] for group in task.optimizer.param_groups]
    num_steps = EPOCHS * -(-len(task.train_data) // BATCH)
    step, results, used = 0, [], Counter()
    for epoch in range(EPOCHS):
        trained = []
        for batch in batches(task.train_data, seed=SETTINGS["train.seed"], epoch=epoch):
            loss, correct, *divisor = task.totals(task.model, batch)
            task.optimizer.zero_grad(set_to_none=True)
            (loss / (divisor[0] if divisor else len(batch[0]))).backward()
            if task.clip_norm:
                torch.nn.utils.clip_grad_norm_(task.model.parameters(), task.clip_norm)
            for group, rate in zip(task.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (task.lr_factor(step, num_steps) if task.lr_factor else 1)
            used.update(n for n, p in task.model.named_parameters() if p.grad is not None)
            task.optimizer.step()
            trained.append([loss, correct, *divisor])
            step += 1
        tested = [task.totals(task.model, torch.utils.data.default_collate(list(task.test_data)))]
        results.append((
            mean(task, trained, len(task.train_data)), mean(task, tested, len(task.test_data))
        ))  # fmt: skip
    return task.model.state_dict(), results, used


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_weights_losses_and_accuracies_are_those_of_a_plain_loop(name, odd, alone):
    weights, results, used = plain_training(odd, name)
    if name == "sometimes":  # or the comparison would show nothing
        assert 0 < used["seldom.0.weight"] < used["often.0.weight"] == 2 * 6
    saved = load_file(alone(name) / "model.safetensors")
    for key in saved:  # a tied weight is saved once
        torch.testing.assert_close(saved[key], weights[key], rtol=1e-4, atol=1e-5)
    assert saved.keys() <= weights.keys()
    for record, (trained, tested) in zip(metrics(alone(name)), results, strict=True):
        for kind, (loss, accuracy) in {"train": trained, "test": tested}.items():
            assert record[f"{kind}_loss"] == pytest.approx(loss, rel=1e-4)
            assert record.get(f"{kind}_accuracy") == pytest.approx(accuracy)


def test_a_run_goes_on_whose_sum_of_correct_predictions_is_a_fraction(nursery, tmp_path, alone):
    fault = {"rank": 0, "of": "step", "at": 4, "do": "signal 15"}
    stopped = nursery.run(settings("weighted", "run"), cwd=tmp_path, faults=[fault])
    assert stopped.codes == [75], stopped.stderr
    (state,) = map(json.loads, (p.read_text() for p in tmp_path.rglob("state.json")))
    assert state["totals"]["correct"] % 1
    ended = nursery.run(settings("weighted", "run"), cwd=tmp_path, processes=2)
    assert ended.codes == [0, 0], ended.stderr
    check_same(tmp_path / "run", alone("weighted"))


def test_tied_weights_come_back(odd, alone, root, nursery):
    model = odd.tied(odd.Settings(), None).model
    saved = load_file(alone("tied") / "model.safetensors")
    model.load_state_dict(saved, strict=len(saved) == len(model.state_dict()))
    assert model.outputs.weight is model.inputs.weight


def test_a_task_without_correct_predictions_has_no_accuracies(nursery, root, alone):
    run = alone("regression")
    assert not any("accuracy" in key for record in metrics(run) for key in record)
    assert "accuracy" not in json.dumps(summary(run)["metrics"])
    shown = nursery.run(settings("regression", "shown"), cwd=root)
    assert shown.codes == [0]
    assert "loss" in shown.stdout
    assert "accuracy" not in shown.stdout
    with_one = nursery.run(settings("plain", "with"), cwd=root)
    assert "accuracy" in with_one.stdout
