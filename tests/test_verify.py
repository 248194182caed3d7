"""verify passes where training is right, and each fault fails its own claim and no other.

By default each fault is injected on two processes; with `--full-verify` on one and three too.
"""

import json
import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import launching
import pages
import pytest
import shown
import torch
from nursery import Launch, Nursery

from sinlstm_dist import __main__, compiled, lstm, verify
from sinlstm_dist.config import flat, load_config
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.world import World
from sinlstm_dist.verify import (
    bench,
    claims,
    collectives,
    command,
    running,
    speed,
    verification,
    world,
)
from sinlstm_dist.verify.bench import Bench, Finding, Parts
from sinlstm_dist.verify.claims import CLAIMS, Claim
from sinlstm_dist.verify.faults import FAULTS

HOST = socket.gethostname()
NAMES = [claim.name for claim in CLAIMS]
# Of sound processes; without a compiled kernel no weights are known
SOUND = {**dict.fromkeys(NAMES, "PASS"), "Golden": "SKIP" if compiled.missing() else "PASS"}
ONE = {**SOUND, **dict.fromkeys(("World", "Collectives", "Arithmetic", "Speed"), "SKIP")}


def results(path: Path) -> dict[str, str]:
    """The verdicts in a --json file by claim."""
    return {c["claim"]: c["result"] for c in json.loads(path.read_text())["claims"]}


def red(path: Path, *, expected: str = "") -> list[str]:
    """The claims that failed. A busy machine may fail Speed, so it counts only if `expected`."""
    failed = [claim for claim, result in results(path).items() if result == "FAIL"]
    return [claim for claim in failed if claim != "Speed" or claim == expected]


def problems(path: Path) -> str:
    return "\n".join(p for c in json.loads(path.read_text())["claims"] for p in c["problems"])


def run(nursery: Nursery, cwd: Path, *arguments: str, **keywords) -> Launch:
    return nursery.run(["--json", "v.json", *arguments], cwd=cwd, module="verify", **keywords)


def one_line(printed: str) -> str:
    """The table of claims in one line: a longer host name wraps its lines elsewhere."""
    table = printed[printed.index("claim ") :].replace("\nand weights", "\n")
    return " ".join(table.split())


def check_page_shows(printed: str, *flags: str) -> None:
    """That docs/verify.md has this output below the command with these flags."""
    ending = " ".join(["sinlstm_dist.verify", *flags]) + "\n"
    blocks = pages.blocks(pages.ROOT / "docs/verify.md")
    [output] = [each.output for each in blocks if each.output and each.text.endswith(ending)]
    shown.compare(one_line(output), one_line(printed))


@pytest.fixture(scope="module", autouse=True)
def waiting(nursery, tmp_path_factory):
    """Worlds that wait half a minute for a lost process, while other tests run."""
    dying, absent = (tmp_path_factory.mktemp(name) for name in ("dying", "absent"))
    arguments = ["--inject", "dies", "--json", "v.json"]
    module = "sinlstm_dist.verify"
    started = launching.start(arguments, cwd=dying, processes=2, module=module)
    launch = nursery.start(
        ["--json", "v.json"], cwd=absent, module="verify", processes=3, absent=(2,)
    )
    fault = {"rank": 1, "of": "step", "at": 5, "do": "hang"}
    hanging = nursery.start([], cwd=absent, module="verify", processes=3, faults=[fault])
    yield SimpleNamespace(
        dying=dying, torchrun=started, absent=absent, launch=launch, hanging=hanging
    )
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
    started.communicate()  # closes its pipes, also if no test has waited for it
    nursery.kill(launch)
    nursery.kill(hanging)


def test_sound_processes_pass(nursery, tmp_path):
    launch = run(nursery, tmp_path, "--processes", "3", processes=3)
    found = results(tmp_path / "v.json")
    code = {"PASS": 0, "FAIL": 1}[found["Speed"]]
    assert found == {**SOUND, "Speed": found["Speed"]}, launch.stdout + launch.stderr
    assert launch.codes == [code] * 3
    assert launch.stderr == ""
    assert os.listdir(tmp_path) == ["v.json"]  # all other files are removed


def test_one_process_passes_and_skips_what_it_cannot_show(nursery, tmp_path):
    launch = run(nursery, tmp_path)
    content = json.loads((tmp_path / "v.json").read_text())
    assert results(tmp_path / "v.json") == ONE, launch.stdout
    assert (launch.codes, launch.stderr, content["passed"]) == ([0], "", True)
    assert {c["claim"]: c["applies"] for c in content["claims"]} == {
        name: result == "PASS" for name, result in ONE.items()
    }
    num_skipped = list(ONE.values()).count("SKIP")
    assert launch.stdout.endswith(
        f": this process trains correctly; {num_skipped} claims skipped\n"
    )
    measured = " ".join(c["measured"] for c in content["claims"])
    assert "processes" not in measured
    assert "one alone" not in measured


def test_one_process_that_is_meant_to_be_one(nursery, tmp_path):
    launch = run(nursery, tmp_path, "--processes", "1")
    assert results(tmp_path / "v.json") == {**ONE, "World": "PASS"}
    assert launch.codes == [0]
    assert launch.stdout.startswith("claim ")
    if not compiled.missing():
        page = pages.blocks(pages.ROOT / "docs/verify.md")
        [shows] = [each.output for each in page if each.text.endswith("--processes 1\n")]
        shown.compare(shows, launch.stdout)


@pytest.mark.parametrize(("started", "meant"), [(1, 2), (2, 1), (2, 4)])
def test_another_number_of_processes_than_meant_is_red(nursery, tmp_path, started, meant):
    launch = run(nursery, tmp_path, "--processes", str(meant), processes=started)
    assert launch.codes == [1] * started
    found = results(tmp_path / "v.json")
    assert found == {"World": "FAIL", **dict.fromkeys(NAMES[1:], "SKIP")}
    content = json.loads((tmp_path / "v.json").read_text())
    assert {c["measured"] for c in content["claims"][1:]} == {"depends on World"}
    there = {1: "there is 1 process", 2: "there are 2 processes"}[started]
    assert problems(tmp_path / "v.json") == (
        f"{there}, and --processes {meant} asks for another number: start them with torchrun "
        f"--nproc-per-node {meant} --local-addr 127.0.0.1 -m sinlstm_dist.verify on one machine, "
        "with your cluster's launcher on several"
    )
    assert launch.stdout.startswith("claim ")
    assert launch.stdout.endswith(": World failed\n")


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_an_impossible_number_of_processes_is_an_error(capsys, number):
    assert verify.main(["--processes", number]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert "--processes" in errors


def test_one_process_where_more_have_room_says_so_first(monkeypatch, capsys):
    """In a file too, and once."""
    monkeypatch.setattr(claims, "CLAIMS", CLAIMS[:1])
    monkeypatch.setattr(launcher, "num_cores", lambda: 16)
    assert verify.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "one process was started, on a machine with 16 cores: if more were meant, start them with "
        "torchrun --nproc-per-node N --local-addr 127.0.0.1 -m sinlstm_dist.verify; if not, say "
        "--processes 1\n\nclaim "
    )
    assert printed.count("one process was started") == 1
    for alone, arguments in ((16, ["--processes", "1"]), (1, [])):
        monkeypatch.setattr(launcher, "num_cores", lambda cores=alone: cores)
        assert verify.main(arguments) == 0
        assert capsys.readouterr().out.startswith("claim ")


def test_one_process_on_a_machine_with_several_gpus_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    gpu = SimpleNamespace(device=torch.device("cuda"))
    assert "on a machine with 8 GPUs: if more were meant" in world.note_on_one(gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert world.note_on_one(gpu) == ""


def test_what_was_not_reached_is_not_passed(monkeypatch, capsys, tmp_path):
    """A SKIP does no harm only where there is nothing to check."""
    asked = Claim("Asked", lambda bench: os.kill(os.getpid(), signal.SIGTERM) or Finding("."), "")
    monkeypatch.setattr(claims, "CLAIMS", (replace(asked, needs=()), *CLAIMS[-2:]))
    assert verify.main(["--json", str(tmp_path / "v.json")]) == 1
    assert list(results(tmp_path / "v.json").values()) == ["PASS", "SKIP", "SKIP"]
    assert json.loads((tmp_path / "v.json").read_text())["passed"] is False
    assert capsys.readouterr().out.endswith("it was stopped\n")


def test_under_torchrun(tmp_path):
    """One process prints one table of 80 columns."""
    started = launching.start(
        ["--json", "v.json"], cwd=tmp_path, processes=2, module="sinlstm_dist.verify"
    )
    ended = launching.finish(started)
    path = tmp_path / "v.json"
    assert red(path) == [], ended.stdout + ended.stderr
    is_slow = results(path)["Speed"] == "FAIL"
    assert ended.code == int(is_slow)
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines if re.search(r" (PASS|FAIL) ", line)] == [
        name.split()[0] for name in NAMES
    ]
    assert max(len(line.rstrip()) for line in lines[lines.index("") :]) <= 80
    assert lines[-1].startswith("NOT verified, in " if is_slow else "verified in ")
    if not is_slow:
        check_page_shows(ended.stdout)
    content = json.loads(path.read_text())
    assert content["passed"] is not is_slow
    assert content["world_size"] == 2
    assert content["hosts"] == [HOST, HOST]
    sizes = [row["bytes"] for claim in content["claims"] for row in claim["figures"]]
    assert sizes == [4, 4 << 10, 256 << 10, 4 << 20, 64 << 20]


NAMED = (  # their problems name the process
    "other-seed", "damaged-message", "other-code", "flipped-bit", "flipped-later", "sleeps", "dies"
)  # fmt: skip
SAYS_WHERE = ("flipped-later", "dies")  # their problems say where to look


def check_red(launch: Launch, path: Path, fault: str) -> None:
    claim = FAULTS[fault].claim
    assert list(results(path)) == NAMES
    assert red(path, expected=claim) == [claim]
    last = f"rank {len(launch.children) - 1} on {HOST}"
    named = fault in NAMED and len(launch.children) > 1
    assert last in problems(path) or not named
    text = launch.stdout
    assert text.count(" FAIL ") == list(results(path).values()).count("FAIL"), text
    says_where = fault in SAYS_WHERE and len(launch.children) > 1  # alone, nobody is named
    assert ("look at:" in text) is (not says_where or "Speed" in red(path, expected="Speed"))
    assert "the same command" not in problems(path)
    assert re.search(rf"{claim}(, Speed)? failed", text.splitlines()[-1])


NEED_A_KERNEL = ("other-rounding",)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=[pytest.mark.kernel] if name in NEED_A_KERNEL else [])
        for name in FAULTS
        if name != "dies"
    ],
)
def test_a_fault_turns_its_claim_red_and_no_other(nursery, tmp_path, fault):
    launch = run(nursery, tmp_path, "--inject", fault, processes=2)
    assert launch.codes == [1, 1], launch.stdout + launch.stderr
    check_red(launch, tmp_path / "v.json", fault)
    if fault == "flipped-bit" and "Speed" not in red(tmp_path / "v.json", expected="Speed"):
        check_page_shows(launch.stdout, "--inject flipped-bit")


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        ("other-code", ["--model.lstm", "torch"]),
        ("flipped-later", ["--train.reduction", "ddp"]),
        ("dropped-gradient", ["--train.reduction", "ddp"]),
    ],
)
def test_on_the_path_of_another_configuration(nursery, tmp_path, fault, path):
    launch = run(nursery, tmp_path, "--inject", fault, *path, processes=2)
    assert launch.codes == [1, 1], launch.stdout + launch.stderr
    check_red(launch, tmp_path / "v.json", fault)


def test_a_rank_with_code_of_another_library_is_named_on_the_path_that_uses_it(tmp_path):
    """nn.LSTM calls a matrix library, the compiled kernel does not."""
    other = [{}, {"MKL_CBWR": "COMPATIBLE"}]
    arguments = ["--json", "v.json", "--model.lstm", "torch"]
    ended = launching.each(
        arguments, cwd=tmp_path, variables=other, module="sinlstm_dist.verify"
    )  # fmt: skip
    assert [process.code for process in ended] == [1, 1]
    assert red(tmp_path / "v.json") == ["Arithmetic"]
    assert problems(tmp_path / "v.json").startswith(
        f"rank 1 on {HOST} has other gradients than rank 0 on {HOST} (MKL_CBWR is COMPATIBLE there "
        "and not set elsewhere)"
    )


def test_the_path_of_a_configuration_is_verified(nursery, tmp_path):
    """Two layers are other functions of the kernel than one, and ddp is not ordered."""
    text = '[model]\nnum_layers = 2\n[train]\nreduction = "ddp"\n[optim]\nmomentum = 0.0\n'
    (tmp_path / "mine.toml").write_text(text)
    launch = run(nursery, tmp_path, "--config", "mine.toml", processes=2)
    found = results(tmp_path / "v.json")  # a busy machine may fail Speed
    assert found == {**SOUND, "Speed": found["Speed"]}, launch.stdout
    table = " ".join(launch.stdout.split())
    choice = lstm.choose("auto", device_type="cpu", input_size=1, hidden_size=5, num_layers=2)
    expected = f"406 parameters, recurrence: {choice.name} ({choice.reason}), ddp reduction"
    assert expected in table


def test_the_configuration_decides_the_path_and_verify_how_long_it_takes():
    def verified(processes: int = 1, **overrides: object) -> dict[str, object]:
        keys = {key.replace("__", "."): value for key, value in overrides.items()}
        world = SimpleNamespace(size=processes)
        return flat(bench.settings(load_config(overrides=keys), world, {}))

    assert verified(data__train_size=5, train__epochs=9, optim__lr=3.0) == verified()
    assert verified()["optim.momentum"] == 0.9
    assert verified(16)["train.virtual_shards"] == 16
    chosen = {"optim.momentum": 0.0, "model.hidden_size": 7, "train.virtual_shards": 2}
    found = verified(**{key.replace(".", "__"): value for key, value in chosen.items()})
    assert found == {**verified(), **chosen}
    large = verified(model__hidden_size=1024)
    assert {**verified(), **bench.FEW, "model.hidden_size": 1024} == large


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--model.hiden_size", "3"], "unknown key model.hiden_size: did you mean"),
        (["--optim.lr", "much"], 'optim.lr="much": '),
        (["--config", "missing.toml"], "missing.toml: cannot be read"),
    ],
)
def test_a_bad_configuration_is_one_error(capsys, arguments, error):
    assert verify.main(arguments) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(f"error: {error}")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ({"data.source": "nope.csv"}, "data.source=nope.csv: cannot be read"),
        ({"train.init_from": "nope.safetensors"}, "train.init_from=nope.safetensors: is not"),
    ],
)
def test_a_mistake_of_the_user_fails_no_claim(nursery, tmp_path, processes, mistake, error):
    launch = nursery.run(
        launching.flags(mistake), cwd=tmp_path, module="verify", processes=processes
    )
    assert launch.codes == [2] * processes
    assert launch.stdout == ""
    [line] = launch.stderr.splitlines()
    assert line.startswith(f"error: {error}")


def test_a_wrong_number_of_processes_fails_no_claim(nursery, tmp_path):
    mistake = launching.flags({"train.virtual_shards": 1})
    launch = nursery.run(mistake, cwd=tmp_path, module="verify", processes=2)
    assert launch.codes == [2, 2]
    assert launch.stderr.startswith("error: 2 processes cannot share train.virtual_shards=1")


def pytest_generate_tests(metafunc):
    if "elsewhere" in metafunc.fixturenames:
        every = [(fault, processes) for fault in FAULTS for processes in (1, 3)]
        quick = [("dropped-gradient", 1), ("dies", 1)]
        cases = every if metafunc.config.getoption("--full-verify") else quick
        metafunc.parametrize("elsewhere", cases, ids=str)


def test_on_other_numbers_of_processes(nursery, tmp_path, elsewhere):
    fault, processes = elsewhere
    launch = run(nursery, tmp_path, "--inject", fault, processes=processes)
    if processes < FAULTS[fault].least_processes:
        assert launch.codes == [2]
        assert launch.stderr.startswith("error: --inject needs 2 processes")
        return
    assert launch.codes[:-1] == [1] * (processes - 1)
    check_red(launch, tmp_path / "v.json", fault)


def test_a_process_that_dies_is_named_in_a_table(waiting):
    """Under torchrun, which ends the others as soon as one has died."""
    ended = launching.finish(waiting.torchrun)
    assert ended.code == 1
    path = waiting.dying / "v.json"
    found = results(path)
    assert [claim for claim in NAMES if found[claim] == "FAIL"] == [FAULTS["dies"].claim]
    assert problems(path) == f"rank 1 on {HOST} died, hangs or cannot be reached"
    assert ended.stdout.count(" FAIL ") == 1


def test_a_process_that_does_not_come_is_named(nursery, waiting):
    launch = nursery.wait(waiting.launch)
    assert launch.codes == [1, 1]
    path = waiting.absent / "v.json"
    assert results(path) == {"World": "FAIL", **dict.fromkeys(NAMES[1:], "SKIP")}
    assert "rank 2 of 3 has not started" in problems(path)
    assert launch.stdout.count(" FAIL ") == 1


def test_a_process_that_hangs_is_named(nursery, waiting):
    launching.wait_for(lambda: len(nursery.running(waiting.hanging)) == 1)
    assert waiting.hanging.codes == [1, None, 1]
    [red] = [line for line in waiting.hanging.stdout.splitlines() if " FAIL " in line]
    assert red.startswith("Gradients")
    assert f"rank 1 on {HOST} died, hangs or" in red


def test_a_signal_to_one_process_ends_all_with_a_table(nursery, tmp_path):
    fault = {"rank": 1, "of": "step", "at": 5, "do": "signal 15"}
    launch = run(nursery, tmp_path, processes=2, faults=[fault])
    assert launch.codes == [1, 1], launch.stderr
    found = list(results(tmp_path / "v.json").values())
    assert found == ["PASS"] * 5 + ["SKIP"] * 5
    assert launch.stdout.count("not reached: stopped by SIGTERM") == 5
    assert launch.stdout.splitlines()[-1].endswith("it was stopped")


def test_a_claim_that_takes_too_long_is_given_up(monkeypatch, capsys):
    slow = Claim("Slow", lambda bench: time.sleep(60), look_at="the clock", needs=())
    monkeypatch.setattr(claims, "CLAIMS", (slow, *CLAIMS))
    monkeypatch.setattr(verification, "CLAIM_S", 0.2)
    assert verify.main([]) == 1
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "Slow         FAIL  Slow is not done after 0.2 s" in lines
    assert verify.main(["--model.hidden_size", "512"]) == 1
    table = " ".join(capsys.readouterr().out.split())
    assert "Slow is not done after 0.2 s: the model is large for this machine" in table


def test_a_check_that_raises_ends_in_a_table_too(monkeypatch, capsys):
    broken = Claim("Broken", lambda bench: [][0], look_at="the check", needs=())
    monkeypatch.setattr(claims, "CLAIMS", (broken, *CLAIMS))
    with pytest.raises(IndexError):
        verify.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if " FAIL " in line] == [["Broken", "FAIL"]]


def test_world_names_those_that_are_not_as_rank_0_or_come_twice():
    bench = SimpleNamespace(name=lambda rank: f"rank {rank} on h{rank}")
    facts = {
        "rank": 0, "process": "h0 process 1", "gpu": "GPU-1", "versions": {"torch": "2"},
        "source": "a", "configuration": flat(load_config()),
    }  # fmt: skip
    other = {**facts, "rank": 1, "process": "h1 process 1", "gpu": "GPU-2"}
    assert world._counted_twice(bench, [facts, other]) == []
    assert world._differing(bench, [facts, other]) == []
    assert world._counted_twice(bench, [facts, {**other, "gpu": "GPU-1"}]) == [
        "rank 0 on h0 and rank 1 on h1 are both gpu GPU-1"
    ]
    for key, value, problem in (
        ("versions", {"torch": "3"}, "torch 3, but rank 0 has 2"),
        ("source", "b", "another source of sinlstm_dist than rank 0"),
        ("configuration", {"train.seed": 1}, "train.seed=1, but rank 0 has 0"),
    ):
        changed = {**other, key: value}
        assert world._differing(bench, [facts, changed]) == [f"rank 1 on h1 has {problem}"]


class TwoInOne:
    """A world of two in one process, which knows what the other sends; one value may be wrong."""

    def __init__(self, broken: str) -> None:
        self.size, self.rank, self.device = 2, 0, torch.device("cpu")
        self.hosts, self._broken = ["h", "h"], broken

    def wait_for_everyone(self) -> None:
        pass

    def _both(self, values: torch.Tensor) -> torch.Tensor:
        other = collectives._pattern(1, values.dtype)
        return torch.stack((values, collectives._tiled(other, len(values))))

    def _end(self, name: str, values: torch.Tensor) -> torch.Tensor:
        values[-1] += name == self._broken and len(values) > 1
        return values

    def sum(self, values):
        return self._end("all-reduce", self._both(values).sum(dim=0, dtype=values.dtype))

    def gather(self, values):
        return self._end("all-gather", self._both(values).flatten())

    def exchange(self, rows, counts):
        assert counts == [1, 1]
        return self._end("all-to-all", self._both(rows[0, 0]))

    def broadcast(self, values):
        return self._end("broadcast", values)

    def gather_json(self, times):
        came, left = times
        return [[came, left], [left + (self._broken == "barrier"), left + 2]]


@pytest.mark.parametrize(
    "broken", ["", "all-reduce", "all-gather", "all-to-all", "broadcast", "barrier"]
)
def test_collectives_name_what_is_not_exact(monkeypatch, broken):
    monkeypatch.setattr(collectives, "SIZES", (4096, 262_144))
    problems = collectives.check_collectives(Bench(TwoInOne(broken), Parts())).problems
    if broken == "barrier":
        assert problems == ["rank 0 on h left a barrier before rank 1 on h reached it"]
        return
    types = sum(len(o.dtypes) for o in collectives.OPERATIONS if o.name == broken)
    assert len(problems) == 2 * types
    assert all(problem.startswith(f"{broken} of ") for problem in problems)


def test_speed_measures_the_wait_for_the_end_of_a_collective(monkeypatch):
    """NCCL's collectives return at once. What the GPU still computes before them is no wait."""
    now, owed = [0.0], [100.0]  # seconds: the clock, and what the GPU has still to do

    def wait_for_device() -> None:
        now[0] += owed.pop() if owed else 0.0

    accelerator = SimpleNamespace(
        num_processes=2, process_index=0, is_main_process=True, device=torch.device("cpu"),
        gather=lambda rows: owed.append(sum(owed) + 1.0) or rows,
    )  # fmt: skip
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    watch = speed.Stopwatch(World(accelerator, hosts=["h", "h"], wait_for_device=wait_for_device))
    watch.gather(torch.zeros(1))
    assert watch.waited_s == 1.0


def test_a_run_folder_that_is_not_shared_is_named_as_such(tmp_path):
    def problems(hosts: list[str]) -> list[str]:
        both = SimpleNamespace(hosts=hosts, gather_json=lambda mine: ["weights", running.NOTHING])
        return running._unreadable(Bench(both, Parts()), tmp_path, step=1)

    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    [problem] = problems(["h0", "h1"])
    assert "runs is not shared between nodes: rank 1 on h1 does not see it" in problem
    assert problems(["h", "h"]) == ["rank 1 on h reads nothing, rank 0 weights"]


def test_an_unknown_fault_is_answered_with_the_known_ones(capsys):
    assert __main__.main(["verify", "--inject", "gremlins"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert all(fault in error for fault in FAULTS)
    assert __main__.main(["verify", "--inject", "flipedbit"]) == 2
    assert capsys.readouterr().err == "error: --inject flipedbit: did you mean flipped-bit?\n"


def test_a_json_file_that_cannot_be_is_refused_first(tmp_path, capsys):
    assert verify.main(["--json", str(tmp_path / "missing" / "v.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert verify.main(["--json", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"error: --json {tmp_path} is a folder: name a file\n")


def test_a_json_file_without_permission_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    file = tmp_path / "v.json"
    assert verify.main(["--json", str(file)]) == 2
    assert capsys.readouterr() == (
        "", f"error: --json {file} cannot be written: permission denied\n"
    )  # fmt: skip


def test_a_full_disk_does_not_prevent_the_table(monkeypatch, capsys):
    monkeypatch.setattr(claims, "CLAIMS", CLAIMS[:1])
    assert verify.main(["--json", "/dev/full"]) == 2
    printed, errors = capsys.readouterr()
    assert "World" in printed
    assert "this process trains correctly" in printed
    assert errors == "error: --json /dev/full cannot be written: No space left on device\n"


def test_a_signal_does_not_prevent_the_table(monkeypatch, capsys):
    """torchrun sends SIGTERM to the process that prints, after another one has died."""

    def stopped(number: int, frame: object) -> None:
        raise AssertionError("the signal ended the process")

    def interrupted(*rows: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        show_table(*rows, **options)

    previous, show_table = signal.signal(signal.SIGTERM, stopped), command.show_table
    monkeypatch.setattr(claims, "CLAIMS", CLAIMS[:1])
    monkeypatch.setattr(command, "show_table", interrupted)
    try:
        assert verify.main([]) == 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert "this process trains correctly" in capsys.readouterr().out


def test_each_claim_can_be_seen_red():
    assert {fault.claim for fault in FAULTS.values()} == set(NAMES)
