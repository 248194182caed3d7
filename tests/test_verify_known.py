"""verify compares weights with known ones (Golden), and with those of a record (Record)."""

import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pages
import pytest
import shown
import torch
from test_verify import ONE, red, results, run

from sinlstm_dist import compiled, verify
from sinlstm_dist.arithmetic import versions
from sinlstm_dist.golden import GOLDEN, KNOWN
from sinlstm_dist.run import files
from sinlstm_dist.verify import claims, known
from sinlstm_dist.verify.bench import Asked, Bench, Parts

HOST = socket.gethostname()
LAST = f"rank 1 on {HOST}"
OTHER = {**KNOWN, "noisy": "0" * 64}


def claim(path: Path, name: str) -> dict[str, Any]:
    """What a --json file says of a claim."""
    return next(c for c in json.loads(path.read_text())["claims"] if c["claim"] == name)


@pytest.fixture
def recorded(monkeypatch, tmp_path, capsys) -> Callable[..., Path]:
    """The file of a record of this process; changes to it; then no claims but Record are left."""

    def write(*arguments: str, **changes: object) -> Path:
        monkeypatch.setattr(claims, "CLAIMS", ())
        path = tmp_path / "r.json"
        assert verify.main(["--record", str(path), *arguments]) == 0
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        capsys.readouterr()
        return path

    return write


# Golden


@pytest.mark.kernel
def test_weights_that_are_not_known_are_red_on_one_process_too(nursery, tmp_path):
    launch = run(nursery, tmp_path, "--inject", "other-rounding")
    assert launch.codes == [1]
    assert red(tmp_path / "v.json") == ["Golden"]
    [problem] = claim(tmp_path / "v.json", "Golden")["problems"]
    assert problem.startswith("this process: other weights than the known ones (default ")
    assert f" for {GOLDEN['noisy'].digest[:8]}" in problem
    assert "look at: the compiler of the kernel; the CPU" in " ".join(launch.stdout.split())


def test_known_weights_do_not_apply_to_other_code(nursery, tmp_path):
    launch = run(nursery, tmp_path, "--model.lstm", "torch")
    assert results(tmp_path / "v.json") == {**ONE, "Golden": "SKIP"}
    reason = "the known weights are those of this package's kernel, not of nn.LSTM (asked for)"
    assert claim(tmp_path / "v.json", "Golden")["measured"] == reason
    assert (launch.codes, launch.stdout.splitlines()[-1][-18:]) == ([0], "; 5 claims skipped")


def test_known_weights_do_not_apply_without_a_kernel(monkeypatch):
    def reason(device: str) -> str:
        world = SimpleNamespace(device=torch.device(device), gather_json=lambda mine: ["", mine])
        return known._no_known_weights(Bench(world, Parts()))

    nn_lstm = "the known weights are those of this package's kernel, not of nn.LSTM"
    assert reason("cuda").startswith(f"{nn_lstm} (no GPU kernel: ")
    assert reason("cuda").endswith("): see --record and --against")
    assert reason("cpu") == ("" if not compiled.missing() else reason("cpu"))
    monkeypatch.setattr(compiled, "missing", lambda: "no compiler")
    assert reason("cpu") == (
        f'{nn_lstm} (no compiler; its bits, the same on any CPU, need it or lstm="reference")'
    )


def golden(monkeypatch, *, together: dict[str, str], alone: list[dict[str, str]]) -> Any:
    """The finding of rank 0 on processes that compute these digests."""
    texts = [known._differing(digests, KNOWN) for digests in alone]
    cpu = torch.device("cpu")
    world = SimpleNamespace(size=2, hosts=["a", "b"], device=cpu, gather_json=lambda mine: texts)
    monkeypatch.setattr(known, "_no_known_weights", lambda bench: "")
    monkeypatch.setattr(known, "_digests_together", lambda bench: together)
    monkeypatch.setattr(known, "_digests_alone", lambda bench, names: alone[0])
    return known.check_golden(Bench(world, Parts()))


def test_a_process_that_computes_wrongly_is_named(monkeypatch):
    """Together all have its error, and alone it is the only one."""
    finding = golden(monkeypatch, together=OTHER, alone=[KNOWN, OTHER])
    what = f"other weights than the known ones (noisy 00000000 for {KNOWN['noisy'][:8]})"
    assert finding.problems == [f"all processes together: {what}", f"rank 1 on b alone: {what}"]
    assert finding.look_at == known.ONE_NODE
    finding = golden(monkeypatch, together=OTHER, alone=[OTHER, OTHER])
    assert finding.problems == [f"all processes together: {what}", f"each process alone: {what}"]
    assert finding.look_at is None  # the claim's own: the compiler, the CPU, an edited package
    assert golden(monkeypatch, together=KNOWN, alone=[KNOWN] * 2).problems == []


def test_more_processes_than_pieces_train_the_rest_alone(monkeypatch):
    trained = []
    model = SimpleNamespace(state_dict=dict)
    job = SimpleNamespace(task=SimpleNamespace(model=model))
    monkeypatch.setattr(known, "run_job", lambda bench, config, job: trained.append(config))
    monkeypatch.setattr(known, "runs_folder", lambda world: contextlib.nullcontext(Path("runs")))
    for size, names in ((8, list(GOLDEN)), (9, ["other sizes"]), (12, [])):
        parts = Parts(build=lambda config, world, adapt: job)
        bench = Bench(SimpleNamespace(size=size, device=torch.device("cpu")), parts)
        assert list(known._digests_together(bench)) == names


# Record


def test_one_process_is_compared_with_its_fleet(nursery, tmp_path):
    launch = run(nursery, tmp_path, "--record", "fleet.json", processes=2)
    assert claim(tmp_path / "v.json", "Record")["result"] == "PASS", launch.stdout
    assert sorted(os.listdir(tmp_path)) == ["fleet.json", "v.json"]
    fleet = json.loads((tmp_path / "fleet.json").read_text())
    assert (fleet["format"], fleet["device"]) == (1, "cpu")
    assert fleet["arithmetic"].items() >= versions().items()
    assert list(fleet["digests"]) == [*GOLDEN, "this configuration"]
    launch = run(nursery, tmp_path, "--processes", "1", "--against", "fleet.json")
    assert launch.codes == [0]
    found = results(tmp_path / "v.json")
    assert found == {**ONE, "World": "PASS", "Record": "PASS"}
    page = pages.blocks(pages.ROOT / "docs/verify.md")
    [shows] = [each.output for each in page if each.text.endswith("--against fleet.json\n")]
    shown.compare(re.sub(r"2026\S+ \S+ UTC", fleet["written"], shows), launch.stdout)


@pytest.mark.kernel
def test_a_process_that_differs_from_the_record_is_named(nursery, tmp_path):
    """Also where Arithmetic has failed: processes that differ do not tell who is right."""
    run(nursery, tmp_path, "--record", "r.json")
    launch = run(
        nursery, tmp_path, "--against", "r.json", "--inject", "other-code", processes=2
    )  # fmt: skip
    assert launch.codes == [1, 1]
    path = tmp_path / "v.json"
    assert red(path) == ["Arithmetic", "Record"]
    differs, who = claim(path, "Arithmetic")["problems"]
    assert differs.startswith(f"{LAST} has other gradients than rank 0")
    assert who.startswith(f"{LAST} alone: other weights than the known ones (noisy ")
    [problem] = claim(path, "Record")["problems"]
    written = json.loads((tmp_path / "r.json").read_text())["written"]
    assert problem.startswith(
        f"{LAST} alone: other weights than the record of {written} on cpu (default "
    )


def test_other_weights_than_recorded_are_red(recorded, capsys):
    """What else has changed is said where it may be the cause: nn.LSTM calls libraries."""
    other = ["--model.lstm", "torch"]
    digests = json.loads(recorded(*other).read_text())["digests"]
    arithmetic = json.loads(recorded(*other).read_text())["arithmetic"]
    path = recorded(
        *other,
        written="2026-11-19 08:00 UTC",
        digests={**digests, "noisy": "0" * 64},
        arithmetic={**arithmetic, "MKL_CBWR": "COMPATIBLE"},
    )
    assert verify.main(["--against", str(path), "--json", f"{path}.v", *other]) == 1
    [problem] = claim(Path(f"{path}.v"), "Record")["problems"]
    assert problem == (
        "this process: other weights than the record of 2026-11-19 08:00 UTC on cpu (noisy "
        f"{digests['noisy'][:8]} for 00000000; MKL_CBWR was COMPATIBLE and is not set)"
    )
    assert verify.main(["--against", str(path), "--record", str(path), *other]) == 1
    assert json.loads(path.read_text())["digests"]["noisy"] == "0" * 64  # nothing is recorded


def test_another_arithmetic_with_the_same_weights_is_no_problem(recorded):
    arithmetic = json.loads(recorded().read_text())["arithmetic"]
    path = recorded(arithmetic={**arithmetic, "torch's CPU code": "NO AVX"})
    assert verify.main(["--against", str(path)]) == 0


def test_the_configuration_that_is_verified_is_recorded(recorded, capsys):
    digests = json.loads(recorded().read_text())["digests"]
    path = recorded(digests={**digests, "this configuration": "0" * 64})
    assert verify.main(["--against", str(path)]) == 1
    assert "(this configuration " in " ".join(capsys.readouterr().out.split())


def test_with_ddp_the_own_configuration_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "CLAIMS", ())
    path = str(tmp_path / "r.json")
    ddp = ["--train.reduction", "ddp"]
    assert verify.main(["--record", path, *ddp]) == 0
    assert list(json.loads(Path(path).read_text())["digests"]) == list(GOLDEN)
    assert verify.main(["--against", path, *ddp]) == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 2}, " has format 2, and this version reads 1"),
        ({"device": "NVIDIA H100"}, " is of NVIDIA H100, and here is cpu: write another"),
        (
            {"arithmetic": {**versions(), "torch": "2.0"}},
            " is of other versions: torch was 2.0 and",
        ),
        (
            {"digests": {**KNOWN, "noisy": "0" * 63 + "G"}},
            " is not a file that verify --record has written: digests.noisy: must be 64 hexa",
        ),
        (
            {"digests": {name: KNOWN[name] for name in KNOWN if name != "momentum"}},
            " is not a file that verify --record has written: digests: there is no momentum",
        ),
        ({"digests": 3}, " is not a file that verify --record has written: digests: "),
        ({"more": 3}, " is not a file that verify --record has written: more: "),
    ],
)
def test_a_record_that_cannot_be_compared_is_an_error(recorded, capsys, change, error):
    path = recorded(**change)
    assert verify.main(["--against", str(path)]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    [line] = errors.splitlines()
    assert f"{path}{error}" in line


def test_a_record_of_another_configuration_is_an_error(recorded, capsys):
    path = recorded()
    assert verify.main(["--against", str(path), "--model.hidden_size", "7"]) == 2
    assert (
        "is of another configuration: model.hidden_size was 5 and is 7" in capsys.readouterr().err
    )
    assert verify.main(["--against", str(path), "--train.timeout_s", "7"]) == 0


def test_a_file_that_is_no_record_is_an_error_once(nursery, tmp_path):
    (tmp_path / "r.json").write_text("[1")
    for name, error in (
        ("r.json", "r.json is not a file that verify --record has written: Expecting"),
        ("missing.json", "missing.json cannot be read: No such file"),
        (".", ". cannot be read: is a folder"),
    ):
        launch = nursery.run(["--against", name], cwd=tmp_path, module="verify", processes=2)
        assert launch.codes == [2, 2]
        assert launch.stdout == ""
        [line] = launch.stderr.splitlines()
        assert line.startswith(f"error: {error}")


@pytest.mark.kernel
def test_processes_that_fail_are_not_recorded(nursery, tmp_path):
    launch = run(nursery, tmp_path, "--record", "r.json", "--inject", "other-rounding")
    assert launch.codes == [1]
    assert claim(tmp_path / "v.json", "Record")["measured"] == "depends on Golden"
    assert os.listdir(tmp_path) == ["v.json"]


def test_a_record_that_cannot_be_written_is_refused_first(tmp_path, capsys):
    assert verify.main(["--record", str(tmp_path / "missing" / "r.json")]) == 2
    assert "--record" in capsys.readouterr().err
    assert verify.main(["--record", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"error: --record {tmp_path} is a folder: name a file\n")
    pipe = tmp_path / "pipe"  # as /dev/null is; but a test that fails replaces it
    os.mkfifo(pipe)
    assert verify.main(["--record", str(pipe)]) == 2
    assert capsys.readouterr().err == f"error: --record {pipe} is no regular file: name another\n"
    assert verify.main(["--record", "/proc/x.json"]) == 2  # where root has permission to write
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("error: --record /proc/x.json cannot be written: ")


@pytest.mark.parametrize("flag", ["--record", "--against", "--json"])
def test_an_empty_name_is_an_error(capsys, flag):
    assert verify.main([flag, ""]) == 2
    assert capsys.readouterr() == (
        "", f"error: argument {flag}: the name of the file is empty\n"
    )  # fmt: skip


def test_a_record_that_a_full_disk_loses_blames_no_device(monkeypatch, tmp_path, capsys):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), ".unfinished-r.json")

    monkeypatch.setattr(claims, "CLAIMS", ())
    monkeypatch.setattr(files, "replace_synced", full)
    path, found = tmp_path / "r.json", tmp_path / "v.json"
    assert verify.main(["--record", str(path), "--json", str(found)]) == 1
    recorded = claim(found, "Record")
    assert recorded["problems"] == [f"--record {path} cannot be written: No space left on device"]
    assert recorded["look_at"] == ""


def test_processes_that_differ_are_not_recorded(monkeypatch, tmp_path):
    """They would be no reference."""
    here = known.Record(
        written="now", device="cpu", arithmetic={}, configuration={}, digests=OTHER
    )  # fmt: skip
    world = SimpleNamespace(
        size=2,
        hosts=["a", "b"],
        on_main=lambda get: KNOWN,
        gather_json=lambda mine: ["", mine],
    )
    monkeypatch.setattr(known, "_new_record", lambda bench: here)
    finding = known.check_record(Bench(world, Parts(), asked=Asked(record=tmp_path / "r")))
    [problem] = finding.problems
    assert problem.startswith("rank 1 on b alone: other weights than rank 0 (noisy 00000000 for ")
