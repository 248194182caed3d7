"""Processes that do not compute the same bits are refused by name, at the start and later on."""

import json
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launching
import pytest
import torch
from launching import FUSED, SMALL, check_same, content, each, flags, weights_digest
from nursery import Launch, Nursery

from sinlstm_dist import agreement, arithmetic, job
from sinlstm_dist.agreement import digest
from sinlstm_dist.arithmetic import changes
from sinlstm_dist.config import load_config
from sinlstm_dist.errors import RunError
from sinlstm_dist.piece_rows import PieceRows
from sinlstm_dist.processes.world import World

HOST = socket.gethostname()
# On one rank, each of these once gave other weights and exit code 0.
ELSEWHERE = {
    "onednn": ({"DNNL_MAX_CPU_ISA": "SSE41"}, {"model.lstm": "torch"}, "gradients"),
    "mkl": (
        {"MKL_CBWR": "COMPATIBLE"}, {"model.lstm": "torch", "model.hidden_size": 32}, "gradients"
    ),
    "mkl, pieces of one sample": (
        {"MKL_CBWR": "COMPATIBLE"},
        {"model.lstm": "torch", "model.hidden_size": 64, "train.global_batch_size": 8},
        "gradients",
    ),
}  # fmt: skip


@pytest.fixture
def start(nursery: Nursery, tmp_path: Path):
    """Train SMALL with changes on processes that each have variables of their own."""

    def run(settings: dict[str, object], variables: list[dict[str, str]]) -> Launch:
        arguments = flags({**SMALL, "output.dir": "run", **settings})
        own, processes = dict(enumerate(variables)), len(variables)
        return nursery.run(arguments, cwd=tmp_path, processes=processes, own=own)

    return run


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_code_on_one_rank_is_refused_by_name(start, tmp_path: Path, name: str) -> None:
    """Positive control: the same code on all ranks trains, to the same bits as on one process."""
    variables, settings, what = ELSEWHERE[name]
    refused = start(settings, [{}, variables])
    assert refused.codes == [2, 2]
    check_refused(refused.stderr, what, variables)
    assert list(tmp_path.iterdir()) == []
    for processes in (1, 2):
        trained = start({**settings, "output.dir": str(processes)}, [variables] * processes)
        assert trained.codes == [0] * processes, trained.stderr
    assert weights_digest(tmp_path / "1") == weights_digest(tmp_path / "2")


@pytest.mark.kernel
def test_ranks_with_other_cpus_train_together(tmp_path: Path, trained_run: Path) -> None:
    """On processes of their own: a kernel is chosen when the package is imported."""
    other = {"SINLSTM_DIST_INSTRUCTION_SET": "plain", "ATEN_CPU_CAPABILITY": "default"}
    arguments = flags({**SMALL, "model.lstm": "fused", "output.dir": "run"})
    ended = each(arguments, cwd=tmp_path, variables=[{}, other])
    assert [process.code for process in ended] == [0, 0], ended
    assert weights_digest(tmp_path / "run") == weights_digest(trained_run)


def check_refused(stderr: str, what: str, variables: dict[str, str]) -> None:
    [error] = stderr.splitlines()
    assert error.startswith(f"error: rank 1 on {HOST} has other {what} than rank 0 on {HOST} (")
    [(variable, value)] = variables.items()
    assert f"{variable} is {value} there and not set elsewhere" in error


OTHER = {"DNNL_MAX_CPU_ISA": "SSE41"}


def test_of_three_ranks_the_odd_one_is_named(start) -> None:
    [error] = start({"model.lstm": "torch"}, [OTHER, {}, {}]).stderr.splitlines()
    assert error.startswith(f"error: rank 0 on {HOST} has other gradients than the others (DNNL")


def test_ddp_may_round_gradients_differently(start) -> None:
    """Each process gets the same sum of them: no process drifts away from the others."""
    ended = start({"model.lstm": "torch", "train.reduction": "ddp"}, [{}, OTHER])
    assert ended.codes == [0, 0], ended.stderr


def test_a_refused_start_leaves_an_earlier_run_as_it_was(start, tmp_path: Path) -> None:
    assert start({"model.lstm": "torch", "train.epochs": 1}, [{}]).codes == [0]
    before = content(tmp_path)
    assert start({"model.lstm": "torch"}, [{}, OTHER]).codes == [2, 2]
    assert content(tmp_path) == before


# Steps of SMALL: three an epoch, a checkpoint after each
FAULTS = {
    "rows": ({"of": "step", "at": 5, "do": "spoil"}, "gradients"),
    "flip": ({"of": "step", "at": 5, "do": "flip"}, "weights"),
}


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", FAULTS)
def test_a_rank_that_fails_ends_the_run_at_the_next_checkpoint(
    nursery: Nursery, tmp_path: Path, trained_run: Path, name: str, processes: int
) -> None:
    fault, what = FAULTS[name]
    arguments = flags({**SMALL, "output.dir": "run"})
    faults = [{**fault, "rank": processes - 1}]
    launch = nursery.run(arguments, cwd=tmp_path, processes=processes, faults=faults)
    assert launch.codes == [1] * processes, launch.stderr
    [error] = launch.stderr.splitlines()
    others = "the others" if processes > 2 else f"rank 0 on {HOST}"
    assert error == (
        f"error: rank {processes - 1} on {HOST} has other {what} than {others} after step 6, as "
        "with failing memory or a faulty processor; no checkpoint was written; the same command "
        "continues after step 3"
    )
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert launching.summary(run)["outcome"] == "failed"
    assert not (run / "model.safetensors").exists()
    again = nursery.run(arguments, cwd=tmp_path, processes=processes)
    assert again.codes == [0] * processes, again.stderr
    check_same(run, trained_run)


def test_a_rank_that_fails_before_the_first_checkpoint(nursery: Nursery, tmp_path: Path) -> None:
    arguments = flags({**SMALL, "checkpoint.resume": "never", "output.dir": "run"})
    faults = [{"rank": 0, "of": "step", "at": 2, "do": "flip"}]
    launch = nursery.run(arguments, cwd=tmp_path, processes=3, faults=faults)
    assert launch.codes == [1, 1, 1], launch.stderr
    how = "the same command with checkpoint.resume=auto starts from the beginning\n"
    assert f"rank 0 on {HOST} has other weights" in launch.stderr
    assert launch.stderr.endswith(how)


def test_ddp_weights_are_compared_too(nursery: Nursery, tmp_path: Path) -> None:
    arguments = flags({**SMALL, "train.reduction": "ddp", "output.dir": "run"})
    faults = [{"rank": 1, "of": "step", "at": 5, "do": "flip"}]
    launch = nursery.run(arguments, cwd=tmp_path, processes=2, faults=faults)
    assert launch.codes == [1, 1]
    assert f"rank 1 on {HOST} has other weights than rank 0 on {HOST} after" in launch.stderr


def test_a_run_that_continues_with_another_arithmetic_says_so(start, tmp_path: Path) -> None:
    def told(epochs: int, lstm: str = "torch", **variables: str) -> str:
        settings = {"train.epochs": epochs, "model.lstm": lstm, "output.dir": lstm}
        ended = start(settings, [variables])
        assert ended.codes == [0], ended.stderr
        return "\n".join(line for line in ended.stdout.splitlines() if "arithmetic" in line)

    other = {"ATEN_CPU_CAPABILITY": "default"}
    if FUSED == "fused":  # its bits are the same on any CPU
        assert told(1, "fused") == told(2, "fused", **other) == ""
    assert told(1) == told(2) == ""
    [line] = told(3, **other).splitlines()
    assert line.startswith("continues with another arithmetic: torch's CPU code was ")
    assert "ATEN_CPU_CAPABILITY was not set and is default" in line
    assert told(4, **other) == ""
    starts = (tmp_path / "torch" / "starts.jsonl").read_text().splitlines()
    recorded = [json.loads(line)["arithmetic"] for line in starts]
    chosen = [found.get("ATEN_CPU_CAPABILITY") for found in recorded]
    assert chosen == [None, None, "default", "default"]
    assert recorded[0]["torch"] == torch.__version__


def test_what_changed_between_two_arithmetics() -> None:
    before = {"torch": "2.12.0", "device": "cpu", "MKL_CBWR": "AVX2"}
    after = {"torch": "2.13.0", "device": "cpu"}
    assert changes(before, before) == {}
    assert changes(before, after) == {
        "torch": "torch was 2.12.0 and is 2.13.0", "MKL_CBWR": "MKL_CBWR was AVX2 and is not set"
    }  # fmt: skip
    fixed = {arithmetic.BITS: arithmetic.FIXED}
    assert changes({**before, **fixed}, {**after, **fixed}) == {}
    assert list(changes({**before, **fixed}, after)) == ["torch", "MKL_CBWR", "bits"]


# One process, and what its rehearsal sees


def build(world: World, **settings: object) -> job.Job:
    return job.build(load_config(overrides={**SMALL, "optim.momentum": 0.9, **settings}), world)


@pytest.mark.parametrize("lstm", [FUSED, "torch"])
@pytest.mark.parametrize("reduction", ["ordered", "ddp"])
def test_a_rehearsal_leaves_no_trace(world: World, lstm: str, reduction: str) -> None:
    built = build(world, **{"model.lstm": lstm, "train.reduction": reduction})
    model = built.task.model
    gradients = [parameter.grad for parameter in model.parameters()]
    before, random = digest(model.state_dict()), torch.get_rng_state()
    facts = built.agreement._rehearse()
    assert built.agreement._rehearse() == facts
    assert digest(model.state_dict()) == before
    assert built.task.optimizer.state_dict()["state"] == {}
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or not gradient.any()
    assert torch.equal(torch.get_rng_state(), random)


def differing(one: job.Job, other: job.Job) -> list[str]:
    facts, others = one.agreement._rehearse(), other.agreement._rehearse()
    return [name for name in facts if facts[name] != others[name]]


@pytest.mark.kernel
def test_a_rehearsal_sees_what_differs(world: World) -> None:
    built = build(world)
    assert differing(built, build(world)) == []
    assert differing(built, build(world, **{"optim.lr": 0.01 * (1 + 1e-6)}))[0] == "optimizer steps"
    assert differing(built, build(world, **{"optim.momentum": 0.8}))[0] == "optimizer steps"
    assert differing(built, build(world, **{"model.lstm": "torch"})) == [
        "gradients", "test results"
    ]  # fmt: skip
    flipped = build(world)
    next(flipped.task.model.parameters()).data.view(torch.int32)[0] ^= 1
    assert differing(built, flipped)[0] == "weights"
    ddp = {"train.reduction": "ddp"}
    assert differing(build(world, **ddp), build(world, **ddp, **{"model.lstm": "torch"})) == []


@pytest.mark.parametrize(
    ("batch", "sizes"), [(100, [13, 12, 4, 3]), (5, [1]), (230, [29, 28]), (1000, [29, 28])]
)
def test_all_sizes_of_pieces_are_rehearsed(world: World, batch: int, sizes: list[int]) -> None:
    built = build(world, **{"train.global_batch_size": batch})
    assert built.train.plan.distinct_sizes() == sizes


@pytest.mark.parametrize("batch", [1, 100])
def test_as_many_samples_of_each_size_are_rehearsed(world: World, monkeypatch, batch: int) -> None:
    """Other code changes few results: of one sample, hundreds of pieces have to be seen."""
    counts: Counter[int] = Counter()
    right = PieceRows.gradients

    def gradients(self: PieceRows, batch: Any, *, sizes: list[int], **keywords: Any) -> None:
        for size in sizes:
            counts[size] += size
        right(self, batch, sizes=sizes, **keywords)

    built = build(world, **{"train.global_batch_size": batch})
    monkeypatch.setattr(PieceRows, "gradients", gradients)
    built.agreement._rehearse()
    assert sorted(counts, reverse=True) == built.train.plan.distinct_sizes()
    assert all(400 <= samples < 450 for samples in counts.values())
    counts.clear()
    monkeypatch.setattr(world, "size", 2)
    monkeypatch.setattr(world, "difference", lambda facts: None)
    built.agreement.check_now(step=1, continues="")
    assert sorted(counts, reverse=True) == built.train.plan.distinct_sizes()
    assert all(16 <= samples <= 32 for samples in counts.values())
    monkeypatch.setattr(agreement, "MOST_NUMBERS", 1)  # as in a model of many parameters
    counts.clear()
    built.agreement.check_now(step=1, continues="")
    assert all(samples == size for size, samples in counts.items())


def test_one_process_compares_and_computes_nothing(world, monkeypatch) -> None:
    built = build(world)
    monkeypatch.setattr(agreement, "digest", None)
    built.agreement.check_start()
    built.agreement.check_now(step=1, continues="")
    monkeypatch.setattr(world, "size", 2)  # negative control
    with pytest.raises(TypeError):
        built.agreement.check_start()


def test_optimizer_state_is_compared(world, monkeypatch) -> None:
    found: dict[str, str] = {}
    built = build(world)
    monkeypatch.setattr(world, "size", 2)
    monkeypatch.setattr(world, "difference", lambda facts: found.update(facts))
    states = []
    for scale in (1.0, 2.0):
        for parameter in built.task.model.parameters():
            state = built.task.optimizer.state[parameter]
            state["momentum_buffer"] = scale * torch.ones_like(parameter)
        built.agreement.check_now(step=1, continues="")
        states.append(dict(found))
    assert [name for name in found if states[0][name] != states[1][name]] == ["optimizer state"]


def test_what_is_known_to_differ_is_said_at_a_checkpoint_too(world, monkeypatch) -> None:
    built = build(world, **{"model.lstm": "torch"})
    monkeypatch.setattr(world, "size", 2)
    monkeypatch.setattr(world, "hosts", ["h0", "h1"])
    where = SimpleNamespace(fact="weights", ranks=[1], reference=0)
    monkeypatch.setattr(world, "difference", lambda facts: where)
    for there, said in (
        ({}, ", as with failing memory or a faulty processor"),
        ({"MKL_CBWR": "AVX2"}, f": {agreement.SAME}"),
    ):
        monkeypatch.setattr(world, "gather_json", lambda own, there=there: [own, {**own, **there}])
        clues = " (MKL_CBWR is AVX2 there and not set elsewhere)" if there else ""
        with pytest.raises(RunError) as raised:
            built.agreement.check_now(step=7, continues="so")
        assert str(raised.value) == (
            f"rank 1 on h1 has other weights than rank 0 on h0{clues} after step 7{said}; "
            "no checkpoint was written; so"
        )


@pytest.mark.parametrize(
    ("device", "advice"), [("cpu", agreement.NO_KERNEL), ("meta", agreement.NO_GPU_KERNEL)]
)
def test_a_rank_without_the_kernel_is_told_to_get_it(device, advice, world, monkeypatch) -> None:
    built = build(world)
    monkeypatch.setattr(world, "device", torch.device(device))
    monkeypatch.setattr(world, "size", 2)
    monkeypatch.setattr(world, "hosts", ["h0", "h1"])
    where = SimpleNamespace(fact="recurrence", ranks=[1], reference=0)
    monkeypatch.setattr(world, "difference", lambda facts: where)
    lacks = {"recurrence": "nn.LSTM", "bits": "those of what follows"}
    monkeypatch.setattr(world, "gather_json", lambda own: [own, {**own, **lacks}])
    model, kind = built.task.model, {**built.agreement.arithmetic, "recurrence": "this package's"}
    with pytest.raises(agreement.Disagreement) as raised:
        agreement.check_same_model(world, kind, model, code={"recurrence": "this package's"})
    assert str(raised.value) == (
        "rank 1 on h1 has other recurrence than rank 0 on h0 (recurrence is nn.LSTM there and this "
        "package's elsewhere): " + advice
    )


def test_a_digest_is_of_every_bit_name_and_shape() -> None:
    ones = torch.ones(2, 3)
    tensors = [
        {"a": ones}, {"b": ones}, {"a": ones.view(3, 2)}, {"a": ones.double()}, {"a": -ones},
        {"a": ones, "b": ones}, {"a": torch.tensor(1.0)}, {},
    ]  # fmt: skip
    assert len({digest(some) for some in tensors}) == len(tensors)
    assert digest({"a": ones.t().contiguous().t()}) == digest({"a": ones})


@pytest.mark.parametrize(
    ("values", "ranks", "reference"),
    [("ab", [1], 0), ("aba", [1], 0), ("baa", [0], 1), ("abab", [1, 3], 0), ("bbaaa", [0, 1], 2),
     ("abc", [1, 2], 0)],
)  # fmt: skip
def test_the_fewer_are_named_and_of_halves_the_one_without_rank_0(
    world, monkeypatch, values, ranks, reference
) -> None:
    def gather(mine: torch.Tensor) -> torch.Tensor:
        digests = {value: world_digests(value) for value in values}
        return torch.cat([digests[value] for value in values])

    def world_digests(value: str) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        monkeypatch.setattr(world, "gather", lambda mine: rows.append(mine) or mine)
        monkeypatch.setattr(world, "size", 1)
        world.difference({"same": "x", "other": value})
        monkeypatch.setattr(world, "size", len(values))
        return rows[0]

    gathered = gather(torch.empty(0))
    monkeypatch.setattr(world, "gather", lambda mine: gathered)
    found = world.difference({"same": "x", "other": values[0]})
    assert (found.fact, found.ranks, found.reference) == ("other", ranks, reference)
