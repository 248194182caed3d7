"""A checkpoint is whole or not used: bits there and back, and every damage recognised."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sinlstm_dist.config import load_config
from sinlstm_dist.run import checkpoint, files
from sinlstm_dist.run.checkpoint import Checkpoint, DamagedCheckpoint
from sinlstm_dist.run.folder import RunFolder
from sinlstm_dist.run.layout import Layout, check_layout, not_finite, shapes

CONFIG = load_config(overrides={"optim.momentum": 0.9}).model_dump(mode="json")
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def example(step: int = 3) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"w": torch.randn(5, 3, generator=generator), "b": torch.tensor([0.0, -0.0, 1e-45])}
    state = {
        "step": step,
        "epoch": step // 3,
        "step_in_epoch": 0,
        "totals": {"loss_sum": 0.0, "correct": 0, "samples": 0, "divisor": None},
        "config": CONFIG,
        "data": "ab" * 32,
        "tracker_id": "",
        "optimizer": [{"lr": 0.5, "betas": [0.9, 0.99], "fused": None, "params": ["w", "b"]}],
    }
    return Checkpoint(state, weights, {"w.momentum_buffer": torch.randn(5, 3, generator=generator)})


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.int32), other[name].view(torch.int32)) for name in one
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path / "checkpoints", example(), keep=2)
    found = checkpoint.read(folder)
    assert folder.name == "step-00000003"
    assert found.state == {"arithmetic": {}, **example().state}
    assert same_bits(found.weights, example().weights)
    assert same_bits(found.optimizer, example().optimizer)


def test_same_state_makes_same_bytes(tmp_path: Path) -> None:
    one = checkpoint.write(tmp_path / "one", example(), keep=2)
    other = checkpoint.write(tmp_path / "other", example(), keep=2)
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def damaged_copies(content: bytes) -> list[tuple[str, bytes]]:
    """Shorter ones and ones with a single bit flipped, all over the file."""
    size = len(content)
    shorter = [(f"cut to {length}", content[:length]) for length in (0, 1, size // 2, size - 1)]
    flipped = []
    for at in sorted({*range(0, size, max(1, size // 40)), size - 1}):
        altered = bytearray(content)
        altered[at] ^= 1 << (at % 8)
        flipped.append((f"bit {at % 8} of byte {at} flipped", bytes(altered)))
    longer = [("a byte longer", content + b"\n"), ("zeros", bytes(size))]
    return shorter + flipped + longer


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_recognised_and_named(tmp_path: Path, name: str) -> None:
    folder = checkpoint.write(tmp_path, example(), keep=2)
    content = (folder / name).read_bytes()
    copies = damaged_copies(content)
    assert len(copies) > 40
    for what, altered in copies:
        (folder / name).write_bytes(altered)
        with pytest.raises(DamagedCheckpoint, match=name):
            pytest.fail(f"{name} {what} was read: {checkpoint.read(folder)}")
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{folder / name}: No such file"):
        checkpoint.read(folder)
    (folder / name).mkdir()
    with pytest.raises(DamagedCheckpoint, match=str(folder / name)):
        checkpoint.read(folder)
    (folder / name).rmdir()
    (folder / name).write_bytes(content)
    checkpoint.read(folder)  # negative control: it was the damage


def test_a_file_of_another_program_is_no_damage(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, example(), keep=2)
    (folder / "notes.txt").write_bytes(b"mine")
    assert same_bits(checkpoint.read(folder).weights, example().weights)


def test_files_of_two_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    one = checkpoint.write(tmp_path, example(3), keep=2)
    other = checkpoint.write(tmp_path, example(6), keep=2)
    os.replace(other / "model.safetensors", one / "model.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors: is damaged"):
        checkpoint.read(one)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    """Even under a manifest that vouches for it."""

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "was here",))  # type: ignore[return-value]

    folder = checkpoint.write(tmp_path, example(), keep=2)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Hostile()))
    files = {name: (folder / name).read_bytes() for name in FILES[:3]}
    (folder / "manifest.json").write_bytes(checkpoint._manifest(files))
    with pytest.raises(DamagedCheckpoint, match="was not written by this program"):
        checkpoint.read(folder)
    assert not (tmp_path / "was here").exists()


def test_only_safetensors_and_json(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, example(), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in FILES[2:]:
        json.loads((folder / name).read_text())
    source = Path(checkpoint.__file__).parent
    for path in source.rglob("*.py"):
        text = path.read_text()
        for refusal in ("no pickle", "allow_pickle=False"):
            text = text.replace(refusal, "")
        assert "pickle" not in text, path
        assert "torch.load(" not in text, path


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.write(tmp_path, example(step), keep=3)
    assert [path.name for path in checkpoint.find(tmp_path)] == [
        "step-00000005",
        "step-00000004",
        "step-00000003",
    ]
    assert len(list(tmp_path.iterdir())) == 3


def test_steps_are_numbers_and_not_text(tmp_path: Path) -> None:
    """A hundred million steps are more than the eight digits of a name."""
    for step in (99_999_998, 99_999_999, 100_000_000, 100_000_001):
        checkpoint.write(tmp_path, example(step=step), keep=2)
    (tmp_path / "step-00000009.bak").mkdir()
    names = [folder.name for folder in checkpoint.find(tmp_path)]
    assert names == ["step-100000001", "step-100000000"]


def test_nothing_is_removed_before_the_new_one_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, example(step), keep=2)
    for fails in ("write_synced", "sync"):
        with monkeypatch.context() as patch:
            patch.setattr(files, fails, fail)
            with pytest.raises(OSError, match="full"):
                checkpoint.write(tmp_path, example(3), keep=2)
        for folder in checkpoint.find(tmp_path):
            checkpoint.read(folder)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "step-00000001",
            "step-00000002",
        ]


def fail(*_: object) -> None:
    raise OSError(28, "the disk is full")


def test_the_order_of_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, their folder, the new name, the folder of names; and only then the removal."""
    root = tmp_path / "checkpoints"
    checkpoint.write(root, example(1), keep=2)
    checkpoint.write(root, example(2), keep=2)
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def logged_fsync(descriptor: int) -> None:
        happened.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def logged_rename(path: Path, target: Path) -> Path:
        happened.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    checkpoint.write(root, example(3), keep=2)
    assert happened == [
        *(f"sync {name}" for name in FILES),
        "sync .unfinished-step-00000003",
        "rename to step-00000003",
        "sync checkpoints",
        "rename to .removed-step-00000001",
    ]


def begin(path: Path) -> dict[str, object]:
    """What a start of a run whose checkpoints are like `example` continues from."""
    layout = Layout(
        weights=shapes(example().weights), optimizer=shapes(example().optimizer),
        num_steps=3, samples_per_step=100,
    )  # fmt: skip
    folder = RunFolder(path)
    folder.claim()
    try:
        found = folder.find(config=CONFIG, layout=layout, fingerprint="ab" * 32)
        folder.begin(toml="", arithmetic={})
        return found
    finally:
        folder.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "empty"])
def test_the_newest_good_one_is_used(tmp_path: Path, name: str, damage: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").touch()
    for step in (3, 6):
        checkpoint.write(run / "checkpoints", example(step), keep=2)
    path = run / "checkpoints" / "step-00000006" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(
        {"cut": path.read_bytes()[:-7], "bit": content, "missing": b"", "empty": b""}[damage]
    )
    if damage == "missing":
        path.unlink()
    found = begin(run)
    assert found["state"] == {"arithmetic": {}, **example(3).state}
    (note,) = (note for note in found["notes"] if "set aside" in note)
    assert name in note
    assert "damaged-step-00000006" in note
    names = sorted(folder.name for folder in (run / "checkpoints").iterdir())
    assert names == ["damaged-step-00000006", "step-00000003"]


def test_all_damaged_means_a_fresh_start_that_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").touch()
    for step in (3, 6):
        folder = checkpoint.write(run / "checkpoints", example(step), keep=2)
        (folder / "state.json").write_bytes(b"")
    found = begin(run)
    assert found["state"] is None
    assert len([note for note in found["notes"] if "set aside" in note]) == 2
    assert "starts from step 0" in found["notes"][-1]
    assert not checkpoint.find(run / "checkpoints")


# What a task of the user's own may need

ADAM = {"w.exp_avg": "float32 [5, 3]", "w.step": "float32 []", "b.exp_avg": "float32 [3]",
        "b.step": "float32 []"}  # fmt: skip
OF_W = {"w.exp_avg": torch.ones(5, 3), "w.step": torch.tensor(3.0)}
OF_B = {"b.exp_avg": torch.ones(3), "b.step": torch.tensor(3.0)}


def problem_of(content: Checkpoint, **layout: object) -> str:
    """Why a run of this layout could not have written a checkpoint; "" if it could."""
    settings = {"weights": shapes(content.weights), "optimizer": ADAM, "num_steps": 3}
    try:
        check_layout(content, Layout(**settings, samples_per_step=100, **layout), Path("x"))
    except DamagedCheckpoint as damage:
        return str(damage)
    return ""


def test_an_optimizer_may_have_tensors_before_the_first_step() -> None:
    """As Adagrad does."""
    at_first = replace(example(0), optimizer={"w.sum": torch.zeros(5, 3)})
    assert problem_of(at_first, optimizer_at_first=shapes(at_first.optimizer)) == ""
    assert "'w.sum' is missing" in problem_of(
        replace(at_first, optimizer={}), optimizer_at_first=shapes(at_first.optimizer)
    )
    assert "'w.sum' is float32 [5, 3], needed not" in problem_of(at_first)


def test_a_parameter_that_was_never_used_may_lack_all_of_its_state() -> None:
    whole, of_w, torn = (
        replace(example(), optimizer=tensors)
        for tensors in (OF_W | OF_B, OF_W, OF_W | {"b.step": torch.tensor(3.0)})
    )
    assert problem_of(whole) == problem_of(whole, may_lack_state=True) == ""
    assert "'b.exp_avg' is missing" in problem_of(of_w)
    assert problem_of(of_w, may_lack_state=True) == ""
    assert "'b.exp_avg' is missing" in problem_of(torn, may_lack_state=True)
    more = replace(example(), optimizer=OF_W | {"c.step": torch.tensor(3.0)})
    assert "'c.step' is float32 [], needed not" in problem_of(more, may_lack_state=True)
    at_first = {"b.step": "float32 []"}  # what was there from the first is not missing later
    lacking = problem_of(of_w, may_lack_state=True, optimizer_at_first=at_first)
    assert "'b.exp_avg' is missing" in lacking


def test_a_mask_may_be_infinite_and_a_weight_may_not() -> None:
    masked = {"w": torch.zeros(2), "mask": torch.tensor([0.0, -torch.inf])}
    content = replace(example(), weights=masked, optimizer=OF_W | OF_B)
    assert problem_of(content, buffers={"mask"}) == ""
    assert "mask has values that are not finite" in problem_of(content)
    assert not_finite(masked) == ["mask"]
    assert not_finite(masked, buffers={"mask"}) == []
    broken = replace(content, weights=masked | {"w": torch.tensor([0.0, torch.nan])})
    assert "w has values that are not finite" in problem_of(broken, buffers={"mask"})
    assert not_finite(broken.weights, buffers={"mask"}) == ["w"]


@pytest.mark.parametrize(
    "changed", [{"correct": None}, {"divisor": 1.0}, {"loss_sum": -1.0}], ids=str
)
def test_totals_of_another_loss_are_damage_in_the_built_in_task(changed: dict[str, object]) -> None:
    content = replace(example(4), optimizer=OF_W | OF_B)
    totals = {"loss_sum": 1.0, "correct": 7, "samples": 100, "divisor": None}
    state = {**content.state, "step_in_epoch": 1, "totals": totals}
    assert problem_of(replace(content, state=state)) == ""
    state["totals"] = {**totals, **changed}
    assert "totals are not of squared errors" in problem_of(replace(content, state=state))
    state["config"] = {**CONFIG, "task": {"build": "mine.py:build"}}
    assert problem_of(replace(content, state=state)) == ""


class Tied(nn.Module):
    """Weights that share memory, one that is transposed, and buffers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.output.weight = self.embedding.weight
        self.turned = nn.Parameter(torch.randn(3, 5).T)
        self.register_buffer("view", self.embedding.weight.detach()[2:4])
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool).tril())
        self.register_buffer("few", torch.tensor([1, 2], dtype=torch.int8))


def test_tied_and_transposed_weights_come_back(tmp_path: Path) -> None:
    model = Tied()
    weights = model.state_dict()
    optimizer = {"turned.exp_avg": torch.randn(3, 5).T, "turned.step": torch.tensor(3)}
    folder = checkpoint.write(tmp_path, replace(example(), weights=weights, optimizer=optimizer),
                              keep=2)  # fmt: skip
    found = checkpoint.read(folder)
    for written, read in ((weights, found.weights), (optimizer, found.optimizer)):
        assert shapes(written) == shapes(read)
        assert all(torch.equal(written[name], read[name]) for name in written)
    other = Tied()
    other.load_state_dict(found.weights)
    assert other.output.weight is other.embedding.weight
    assert all(map(torch.equal, other.state_dict().values(), weights.values()))
    check_layout(
        found, Layout(shapes(weights), shapes(optimizer), num_steps=3, samples_per_step=1), folder
    )


@pytest.mark.parametrize(
    "groups",
    [
        [{"lr": 0.1, "betas": [0.9, 0.99], "fused": None, "name": "é", "params": []}],
        [{"params": ["w"]}, {"params": ["b"], "amsgrad": True}],
    ],
)
def test_the_settings_of_an_optimizers_groups_come_back(tmp_path: Path, groups: list) -> None:
    state = {**example().state, "optimizer": groups}
    folder = checkpoint.write(tmp_path, replace(example(), state=state), keep=2)
    assert checkpoint.read(folder).state["optimizer"] == groups


@pytest.mark.parametrize("groups", [None, {}, [1], [{"lr": 0.1}], [{"params": [1]}]])
def test_other_groups_are_damage(tmp_path: Path, groups: object) -> None:
    state = {**example().state, "optimizer": groups}
    folder = checkpoint.write(tmp_path, replace(example(), state=state), keep=2)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: was not written .*optimizer"):
        checkpoint.read(folder)
