"""Configuration and command line: precedence, every kind of bad input, and the way back to TOML."""

import re
import tempfile
from pathlib import Path

import launching
import numpy as np
import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

import sinlstm_dist
from sinlstm_dist import __main__, config, train
from sinlstm_dist.command_line import COMMANDS, Parser, parse
from sinlstm_dist.config import load_config, to_toml
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import identity

BAD_FILES = {
    "a typo in a key": ("[data]\nnoize = 1.0", ["data.noize", "did you mean data.noise?"]),
    "a misspelt section": ("[optin]\nlr = 0.1", ["optin", "did you mean [optim]?"]),
    "a key without its section": ("noise = 0.1", ["noise", "did you mean data.noise?"]),
    "a value for a section": ("data = 3", ["data is a section", "[data]"]),
    "text for a number": ('[train]\nepochs = "3"', ['train.epochs="3"', "integer"]),
    "a fraction for a count": ("[train]\nepochs = 1.5", ["train.epochs=1.5", "integer"]),
    "a claim for a number": ("[train]\nepochs = true", ["train.epochs=true", "integer"]),
    "a number for text": ("[output]\ndir = 3", ["output.dir=3", "string"]),
    "text for a list": ('[output]\ntrackers = "x"', ['output.trackers="x"', "list"]),
    "no windows": ("[data]\ntrain_size = 0", ["data.train_size=0", "1"]),
    "no test windows": ("[data]\ntest_size = 0", ["data.test_size=0", "1"]),
    "fewer than none": ("[data]\ntrain_size = -3", ["data.train_size=-3", "1"]),
    "no steps in": ("[data]\nwindow = 0", ["data.window=0", "1"]),
    "an empty batch": ("[train]\nglobal_batch_size = 0", ["train.global_batch_size=0", "1"]),
    "no pieces": ("[train]\nvirtual_shards = 0", ["train.virtual_shards=0", "1"]),
    "no hidden state": ("[model]\nhidden_size = -5", ["model.hidden_size=-5", "1"]),
    "a cycle of nothing": ("[data]\nperiod = 0.0", ["data.period=0.0", "greater than 0"]),
    "negative noise": ("[data]\nnoise = -0.1", ["data.noise=-0.1", "0"]),
    "a rate of zero": ("[optim]\nlr = 0.0", ["optim.lr=0.0", "greater than 0"]),
    "not a number": ("[optim]\nlr = nan", ["optim.lr=nan", "finite"]),
    "infinite": ("[optim]\nlr = inf", ["optim.lr=inf", "finite"]),
    "infinite phase": ("[data]\ntest_phase = -inf", ["data.test_phase=-inf", "finite"]),
    "nan noise": ("[data]\nnoise = nan", ["data.noise=nan", "finite"]),
    "an unknown choice": ('[train]\nsampling = "all"', ['train.sampling="all"', "'permutation'"]),
    "a seed of no seed": ("[train]\nseed = -1", ["train.seed=-1", "0"]),
    "one checkpoint only": ("[checkpoint]\nkeep = 1", ["checkpoint.keep=1", "2"]),
    "too long a window": ("[data]\nwindow = 1000000", ["data.window=1000000", "10000"]),
    "no such series": ('[data]\nsource = "s.csv"', ["data.source=s.csv", "No such file"]),
    "a column of no file": ('[data]\ncolumn = "y"', ["data.column=y", "set data.source"]),
    "broken TOML": ("[data\nnoise = 1", ["is not valid TOML", "line 1"]),
    "not even text": ("\udcff\udcfe", ["is not valid TOML"]),
}

BAD_FLAGS = {
    "a typo in a key": (["--data.noize", "1"], ["data.noize", "did you mean data.noise?"]),
    "a typo, negative": (["--data.noize", "-1e-3"], ["data.noize", "did you mean data.noise?"]),
    "a typo, joined": (["--data.noize=1"], ["data.noize", "did you mean data.noise?"]),
    "a misspelt section": (["--optin.lr", "1"], ["optin", "did you mean [optim]?"]),
    "a key without its section": (["--noise", "1"], ["noise", "did you mean data.noise?"]),
    "a typo in a flag": (["--confg", "a.toml"], ["--confg", "did you mean --config?"]),
    "a value for a section": (["--data", "3"], ["data is a section", "--data.key"]),
    "a key and no value": (["--data.noise"], ["--data.noise", "expected one argument"]),
    "a value and no key": (["fast"], ["unexpected argument fast"]),
    "text for a number": (["--train.epochs", "many"], ["train.epochs", "many", "integer"]),
    "a fraction for a count": (["--train.epochs", "1.5"], ["train.epochs", "1.5", "integer"]),
    "no claim": (["--output.plots", "maybe"], ["output.plots", "maybe", "boolean"]),
    "no windows": (["--data.train_size", "0"], ["data.train_size", "0", "1"]),
    "fewer than none": (["--data.test_size", "-3"], ["data.test_size", "-3", "1"]),
    "an empty batch": (["--train.global_batch_size=-1"], ["train.global_batch_size", "-1"]),
    "a negative rate": (["--optim.lr", "-0.5"], ["optim.lr", "-0.5", "greater than 0"]),
    "not a number": (["--optim.lr", "nan"], ["optim.lr", "nan", "finite"]),
    "infinite": (["--data.period", "inf"], ["data.period", "inf", "finite"]),
    "too long a window": (["--data.window", "1000000"], ["data.window", "10000"]),
    "no such series": (["--data.source", "s.csv"], ["data.source=s.csv", "No such file"]),
    "a column of no file": (["--data.column", "y"], ["data.column=y", "set data.source"]),
    "a missing file": (["--config", "gone.toml"], ["gone.toml", "No such file"]),
    "a folder for a file": (["--config", "."], ["cannot be read", "directory"]),
}


def errors(printed: str) -> list[str]:
    """The problems shown on standard error; nothing else may be there."""
    lines = printed.splitlines()
    assert all(line.startswith("error: ") for line in lines), printed
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working folder of a command, with nothing in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_gives_one_message_and_leaves_no_trace(name, empty_folder, capsys):
    text, expected = BAD_FILES[name]
    Path("bad.toml").write_text(text, errors="surrogateescape")
    code = train.main(["--config", "bad.toml", "--output.dir", "run"])
    [problem] = errors(capsys.readouterr().err)
    assert code == 2
    assert all(part in problem for part in expected), problem
    assert [path.name for path in empty_folder.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag_gives_one_message_and_leaves_no_trace(name, empty_folder, capsys):
    flags, expected = BAD_FLAGS[name]
    code = train.main(["--output.dir", "run", *flags])
    [problem] = errors(capsys.readouterr().err)
    assert code == 2
    assert all(part in problem for part in expected), problem
    assert list(empty_folder.iterdir()) == []


def test_bad_input_leaves_an_existing_run_folder_as_it_is(empty_folder, capsys):
    run = empty_folder / "run"
    run.mkdir()
    (run / "config.toml").write_text("kept")
    assert train.main(["--output.dir", "run", "--optim.lr", "nan"]) == 2
    assert [path.name for path in run.iterdir()] == ["config.toml"]
    assert (run / "config.toml").read_text() == "kept"
    errors(capsys.readouterr().err)


def test_all_problems_of_file_and_flags_are_in_one_report(tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text("[data]\nnoize = 1\nwindow = 0\n\n[optin]\nlr = 1")
    code = train.main(["--config", str(path), "--train.epochs", "0", "--train.sede", "1"])
    problems = errors(capsys.readouterr().err)
    assert code == 2
    named = [re.search(r"data\.noize|data\.window|optin|train\.epochs|train\.sede", p)[0]
             for p in problems]  # fmt: skip
    assert sorted(named) == ["data.noize", "data.window", "optin", "train.epochs", "train.sede"]
    assert [p.startswith(f"{path}: ") for p in problems] == [True] * 3 + [False] * 2


def test_all_unsupported_keys_are_in_one_report():
    settings = {"data.source": "s.csv", "data.noise": 0.1, "data.test_phase": 0.0}
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    assert len(str(caught.value).splitlines()) == 2


def test_errors_are_told_by_each_process_that_no_launcher_ends(nursery, tmp_path):
    """With a launcher, which ends them, they are told once: test_one_speaks.py."""
    wrong = ["--data.noize", "1", "--train.epochs", "0"]
    launch = nursery.run(wrong, cwd=tmp_path, processes=2)
    assert launch.codes == [2, 2]
    problems = [
        "unknown key data.noize: did you mean data.noise?",
        'train.epochs="0": should be greater than or equal to 1',
    ]
    told = [f"error: {line}" for line in problems]
    assert launch.stderr.splitlines() == [*told, f"error: rank 1: {problems[0]}", told[1]]
    assert list(tmp_path.iterdir()) == []


def test_config_is_shown_once_by_two_processes(nursery, tmp_path):
    asked = ["--print-config", "--optim.lr", "0.5"]
    launch = nursery.run(asked, cwd=tmp_path, processes=2)
    assert launch.codes == [0, 0]
    assert tomli.loads(launch.stdout)["optim"]["lr"] == 0.5  # twice the same table is no TOML
    assert list(tmp_path.iterdir()) == []


def test_defaults_are_those_of_the_contract():
    resolved = tomli.loads(to_toml(load_config()))
    assert resolved == {
        "data": {
            "train_size": 10000, "test_size": 1000, "window": 50, "period": 60.0, "noise": 0.0,
            "source": "sine", "column": "", "time": "", "gaps": "refuse", "encoding": "utf-8",
            "difference": 0, "test_phase": 0.5, "seed": 0,
        },
        "model": {"hidden_size": 5, "num_layers": 1, "lstm": "auto"},
        "optim": {"lr": 0.01, "momentum": 0.0},
        "train": {
            "epochs": 100, "global_batch_size": 100, "tolerance": 0.1, "seed": 0,
            "sampling": "permutation", "reduction": "ordered", "virtual_shards": 8,
            "init_from": "", "target_accuracy": 0.0, "timeout_s": 60.0,
            "num_workers": 0,
        },
        "checkpoint": {"every_epochs": 10, "every_steps": 0, "keep": 2, "resume": "auto"},
        "task": {"build": ""},
        "output": {"dir": "runs/default", "plots": False, "trackers": []},
    }  # fmt: skip


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("[optim]\nlr = 0.5\nmomentum = 0.25\n[train]\nepochs = 7")
    flags = ["--optim.lr=0.75", "--data.noise", "1", "--print-config"]
    code = train.main(["--config", str(path), *flags])
    resolved = tomli.loads(capsys.readouterr().out)
    assert code == 0
    assert resolved["optim"] == {"lr": 0.75, "momentum": 0.25}
    assert (resolved["train"]["epochs"], resolved["train"]["seed"]) == (7, 0)
    assert resolved["data"]["noise"] == 1.0


def test_the_last_of_a_repeated_flag_counts(capsys):
    assert train.main(["--train.epochs", "3", "--train.epochs", "4", "--print-config"]) == 0
    assert tomli.loads(capsys.readouterr().out)["train"]["epochs"] == 4


def test_printed_config_is_read_back_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = {
        "optim.lr": "1e-7", "data.period": "61.3", "train.init_from": 'a "b"\\c\té.safetensors',
        "output.dir": "runs/ünïcode dir", "train.epochs": "3", "data.seed": "4294967295",
        "train.timeout_s": "0.1", "data.test_phase": "-0.25", "train.sampling": "replacement",
    }  # fmt: skip
    assert train.main([*launching.flags(odd), "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.toml").write_text(printed, encoding="utf-8")
    assert train.main(["--config", "again.toml", "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert load_config("again.toml") == load_config(None, odd)
    assert [path.name for path in tmp_path.iterdir()] == ["again.toml"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(deadline=None)
@given(text=TEXT, texts=st.lists(TEXT), number=st.floats(0, 1e300))
def test_toml_holds_any_text_and_number(text, texts, number):
    odd = {"output.dir": text or "run", "data.source": text, "checkpoint.resume": text}
    config = load_config(None, {**odd, "output.trackers": texts, "train.tolerance": number or 1})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.toml"
        path.write_bytes(to_toml(config).encode())
        assert load_config(path) == config


@pytest.mark.parametrize("text", ["\udcff", "a\0b"])
@pytest.mark.parametrize("key", ["output.dir", "output.trackers"])
def test_text_that_no_file_name_can_be_is_refused(text, key):
    with pytest.raises(ConfigError, match=f"^{key}.*: should "):
        load_config(None, {key: [text] if key == "output.trackers" else text})


def test_run_folder_is_named_after_the_file(tmp_path):
    (tmp_path / "quick.toml").write_text("")
    assert load_config(tmp_path / "quick.toml").output.dir == "runs/quick"
    assert load_config(tmp_path / "quick.toml", {"output.dir": "here"}).output.dir == "here"


def test_overrides_take_values_and_the_text_of_a_command_line():
    as_values = load_config(overrides={"train.epochs": 3, "optim.lr": 0.5, "model.lstm": "torch"})
    as_text = load_config(overrides={"train.epochs": "3", "optim.lr": "0.5", "model.lstm": "torch"})
    assert as_values == as_text
    assert (as_values.train.epochs, as_values.optim.lr) == (3, 0.5)
    with pytest.raises(ConfigError, match=r"unknown key train\.epoch: did you mean train\.epochs"):
        load_config(overrides={"train.epoch": 3})


def test_a_whole_number_in_the_file_is_good_for_a_real_one(tmp_path):
    (tmp_path / "c.toml").write_text("[optim]\nlr = 1\n[data]\nperiod = 60")
    assert load_config(tmp_path / "c.toml").optim.lr == 1.0


def test_help_names_every_key_with_its_default(capsys):
    assert train.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{key} " in shown for key in config.KEYS)
    assert "(default: 10000)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data.noize", ": did you mean data.noise?"),
        ("train.noise", ": did you mean data.noise?"),  # and not train.seed, which is nearer
        ("lr", ": did you mean optim.lr?"),
        ("train_size", ": did you mean data.train_size?"),  # and not [train]
        ("seed", ": did you mean data.seed or train.seed?"),
        ("batch_size", ": did you mean train.global_batch_size?"),
        ("trian", ": did you mean [train]?"),
        ("xyz", "; sections are data, model, optim, train, checkpoint, task, output"),
    ],
)
def test_the_nearest_known_key_is_suggested(name, expected):
    assert config.suggestion(name) == expected


def test_a_resumed_run_may_change_when_and_where_but_not_what():
    before = load_config().model_dump(mode="json")
    later = {"train.epochs": 7, "output.dir": "elsewhere", "checkpoint.every_steps": 3}
    assert identity.changed_keys(before, load_config(None, later).model_dump(mode="json")) == []
    other = load_config(None, {"optim.lr": 0.5, "data.seed": 1}).model_dump(mode="json")
    assert identity.changed_keys(before, other) == [
        "data.seed was 0 and is 1",
        "optim.lr was 0.01 and is 0.5",
    ]


@pytest.mark.parametrize("value", ["-0.25", "-1e-3", "-.5", "-5.", "-1E+2", "-1_000"])
def test_negative_numbers_are_values_and_not_flags(value):
    assert parse("train", ["--data.test_phase", value]).config.data.test_phase == float(value)


@pytest.mark.parametrize("value", ["-inf", "-nan", "-Infinity"])
def test_what_is_not_finite_is_refused_as_a_value(value):
    with pytest.raises(ConfigError, match=r'data\.test_phase="-.*": should be a finite number'):
        parse("train", ["--data.test_phase", value])


@settings(deadline=None)
@given(first=st.floats(), others=st.lists(st.floats() | st.integers().map(float)))
def test_a_list_may_begin_with_any_number(first, others):
    """Also in Python's notations; flags and arguments come before and after."""
    parser = Parser("", "")
    parser.add_argument("path")
    parser.add_argument("--xs", nargs="*", type=float)
    parser.add_argument("--last")
    texts = list(map(repr, (first, *others)))
    options, unknown = parser.parse_known_args(["run", "--xs", *texts, "--last", texts[0]])
    assert (options.path, unknown, options.last) == ("run", [], texts[0])
    np.testing.assert_array_equal(options.xs, (first, *others))


@pytest.mark.parametrize("typo", ["-x", "-info", "-nano", "--", "-e5", "-.", "-_1"])
def test_other_words_with_a_dash_are_not_numbers(typo):
    with pytest.raises(ConfigError, match=r"--data\.test_phase: expected one argument"):
        parse("train", ["--data.test_phase", typo])


def test_a_flag_follows_one_without_a_value(capsys):
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit):
            parse("train", ["--print-config", flag])
        assert "usage: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unexpected argument -o"):
        parse("train", ["--print-config", "-o"])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_opens_with_a_short_usage(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert __main__.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    usage, _, rest = shown.partition("\n\n")
    assert usage.startswith(f"usage: sinlstm-dist {name} [-h] [--version]")
    assert len(usage.splitlines()) <= 3
    assert rest.startswith(f"{COMMANDS[name].does}.\n")
    assert max(map(len, shown.splitlines())) < columns


def test_help_of_the_program_has_one_line_per_command(capsys):
    assert __main__.main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line[:2] == "  " and line[2] != "-"] == [
        [name, *command.does.split()] for name, command in COMMANDS.items()
    ]
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_every_command_tells_the_version(arguments, capsys):
    assert __main__.main([*arguments, "--version"]) == 0
    assert capsys.readouterr().out == f"sinlstm-dist {sinlstm_dist.__version__}\n"


@pytest.mark.parametrize("shown", ["--help", "--version", "--print-config"])
def test_one_process_of_several_shows_it(shown, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert train.main([shown]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "run", "--data.noize", "1"], "unknown flag --data.noize: did you mean"),
        (["evaluate", "run", "--optim.lr", "1"], "unexpected argument --optim.lr: sinlstm-dist"),
        (["evaluate", "run", "--data.period", "0"], 'data.period="0": should be greater than 0'),
        (["forecast", "run", "other"], "unexpected argument other: sinlstm-dist forecast --help"),
        (["forecast", "run", "--setps", "3"], "unknown flag --setps: did you mean --steps?"),
        (["export", "run", "--outptu", "x"], "required: --output"),
        (["compare"], "required: RUN_DIR"),
        ([], "name a command: train, verify"),
        ([""], "there is no command ; the commands are train, verify"),
        (["--bogus"], "there is no command --bogus; the commands are"),
        (["trian"], "there is no command trian: did you mean train?"),
    ],
)
def test_mistakes_in_other_commands(arguments, expected, capsys):
    assert __main__.main(arguments) == 2
    [problem] = errors(capsys.readouterr().err)
    assert expected in problem


def test_a_key_that_depends_on_the_run_is_not_refused_before_it_is_read():
    """The column of a file, where only the run knows that its source is a file."""
    assert parse("evaluate", ["run", "--data.column", "y"]).keys == {"data.column": "y"}


@pytest.mark.parametrize("name", ["evaluate", "forecast"])
def test_the_keys_of_a_run_have_no_other_default(name, capsys):
    """Left out, they have the run's own values."""
    with pytest.raises(SystemExit):
        parse(name, ["--help"])
    keys = capsys.readouterr().out.partition("--data.source")[2]
    assert "default:" not in keys
