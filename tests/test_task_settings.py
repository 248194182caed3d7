"""A user's own code and its settings: `[task]` in files, flags and messages; nothing is trained."""

import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import launching
import pytest
import tomli
import tomli_w

from sinlstm_dist import __main__, train, user_code
from sinlstm_dist.command_line import parse
from sinlstm_dist.config import (
    ConfigError,
    load_config,
    override,
    read_config,
    to_toml,
    unknown_keys,
)
from sinlstm_dist.run import hold, identity, resume, state
from sinlstm_dist.run.record import read_run

CODE = """
    from __future__ import annotations

    from pathlib import Path
    from typing import TYPE_CHECKING, Literal

    from pydantic import BaseModel, Field

    if TYPE_CHECKING:
        from sinlstm_dist.config import Config


    class Settings(BaseModel):
        width: int = 16
        rate: float = Field(0.1, gt=0, description="of 100% of the weights")
        layers: list[int] = [1, 2]
        pair: tuple[int, float] = (1, 2.0)
        heads: Literal[1, 2, 4] = 2
        most: int | None = None
        place: Path = Path("x/y")


    def build(settings: Settings, config: Config) -> Task:
        raise NotImplementedError
"""
FEW = """
    from pydantic import BaseModel

    class Settings(BaseModel):
        {fields}

    def build(settings: Settings, config):
        ...
"""
DEFAULTS = {
    "width": 16, "rate": 0.1, "layers": [1, 2], "pair": [1, 2.0], "heads": 2, "place": "x/y"
}  # fmt: skip
SPEC = "my_task.py:build"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder, with the user's file in it; what it leaves in Python is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    user_code.load.cache_clear()
    write("my_task.py", CODE)
    yield tmp_path
    user_code.load.cache_clear()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def write(path, text, **parts):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text).format(**parts) if parts else textwrap.dedent(text))


def problem_of(spec, **settings) -> str:
    """The one problem with these settings."""
    keys = {f"task.{key}": value for key, value in settings.items()}
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"task.build": spec, **keys})
    [problem] = str(caught.value).splitlines()
    return problem


def test_the_configuration_holds_every_setting_as_toml_has_it():
    config = load_config(None, {"task.build": SPEC})
    assert config.task.settings() == DEFAULTS
    assert tomli.loads(to_toml(config))["task"] == {"build": SPEC, **DEFAULTS}
    Path("again.toml").write_text(to_toml(config))
    again = load_config("again.toml", {"output.dir": config.output.dir})
    assert again == config == read_config("again.toml")
    settings = user_code.load(SPEC).settings(**again.task.settings())
    assert (settings.most, settings.place, settings.pair) == (None, Path("x/y"), (1, 2.0))


def test_a_list_may_begin_with_a_negative_number():
    flags = ["--task.layers", "-1", "1", "--task.pair", "-2", "-1e-3"]
    found = parse("train", ["--task.build", SPEC, *flags]).config.task.settings()
    assert found == {**DEFAULTS, "layers": [-1, 1], "pair": [-2, -0.001]}


def test_flags_win_over_the_file_and_the_file_over_defaults(capsys):
    write("mine.toml", f'[task]\nbuild = "{SPEC}"\nwidth = 3\nrate = 1\nheads = 1\n')
    flags = ["--task.layers", "5", "6", "--task.heads", "4", "--task.most", "7", "--task.rate=2e-3"]
    assert train.main(["--config", "mine.toml", *flags, "--print-config"]) == 0
    printed = tomli.loads(capsys.readouterr().out)["task"]
    changed = {"width": 3, "rate": 0.002, "layers": [5, 6], "heads": 4, "most": 7}
    assert printed == {"build": SPEC, **DEFAULTS, **changed}


def test_help_lists_the_settings(capsys):
    assert train.main(["--task.build", SPEC, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--task.rate VALUE of 100% of the weights (default: 0.1)" in shown
    assert "--task.layers [VALUE ...] (default: [1, 2])" in shown
    assert "--task.heads 1|2|4 (default: 2)" in shown
    assert "--task.most VALUE (default: not set)" in shown
    assert "--task.build VALUE" in shown
    assert shown.index("task: Your own model.") < shown.index("train: The training run.")
    for key in ("data.noise", "model.lstm", "optim.lr", "train.tolerance"):  # refused with it
        assert f"--{key}" not in shown
    assert "The series and its windows" not in shown
    assert train.main(["--help"]) == 0
    assert "--optim.lr" in capsys.readouterr().out


def test_verify_and_evaluate_take_the_flag():
    assert parse("verify", ["--task.build", SPEC, "--task.width", "3"]).config.task.width == 3
    assert parse("evaluate", ["run", "--task.build", SPEC]).keys == {"task.build": SPEC}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("widht = 3", "unknown key task.widht: did you mean task.width?"),
        ("epochs = 3", "unknown key task.epochs: did you mean train.epochs?"),
        ('width = "3"', 'task.width="3": should be a valid integer'),
        ("width = 1.5", "task.width=1.5: should be a valid integer"),
        ("rate = 0", "task.rate=0: should be greater than 0"),
        ("heads = 3", "task.heads=3: should be 1, 2 or 4"),
        ("layers = [1, true]", "task.layers.1=true: should be a valid integer"),
    ],
)
def test_a_wrong_setting_in_a_file_is_one_error(table, expected):
    write("bad.toml", f'[task]\nbuild = "{SPEC}"\n{table}\n')
    with pytest.raises(ConfigError) as caught:
        load_config("bad.toml")
    [problem] = str(caught.value).splitlines()
    assert problem.startswith(f"bad.toml: {expected}")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--task.widht", "3"], ["unknown key task.widht: did you mean task.width?"]),
        (["--width", "3"], ["unknown key width: did you mean task.width?"]),
        (["--train.epohcs", "3"], ["unknown key train.epohcs: did you mean train.epochs?"]),
        (["--task.width", "x"], ['task.width="x": should be a valid integer']),
        (["--task.heads", "3"], ['task.heads="3": should be 1, 2 or 4']),
        (["--task.rate", "inf"], ["task.rate=inf: should be a finite number"]),
        (["--task.rate=0", "--train.epochs", "x"], ['train.epochs="x"', 'task.rate="0"']),
        (
            ["--optim.lr", "1"],
            [f"optim.lr=1.0 is for the built-in task, not for task.build={SPEC}"],
        ),
        (["--train.tolerance", "1"], ["train.tolerance=1.0 is for the built-in task"]),
    ],
)
def test_wrong_flags_are_one_line_each(flags, expected, capsys):
    assert __main__.main(["train", "--task.build", SPEC, *flags]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == len(expected)
    for problem, part in zip(problems, expected, strict=True):
        assert problem.startswith(f"error: {part}")


def test_the_problems_of_all_sources_are_shown_at_once():
    write(
        "bad.toml",
        f"""
        [optim]
        lr = 1
        [train]
        epochs = "3"
        [task]
        build = "{SPEC}"
        width = 1.5
        rate = 0
        """,
    )
    flags = {"task.width": "x", "task.depth": "3", "model.hidden_size": "9", "data.seed": "no"}
    with pytest.raises(ConfigError) as caught:
        load_config("bad.toml", flags)
    what = f"is for the built-in task, not for task.build={SPEC}: leave it out"
    for line, start in zip(
        str(caught.value).splitlines(),
        (
            'bad.toml: train.epochs="3": should be',
            "bad.toml: task.width=1.5: should be",
            "bad.toml: task.rate=0: should be",
            'data.seed="no": should be',
            "unknown key task.depth",
            'task.width="x": should be',
            f"model.hidden_size=9 {what}",
            f"bad.toml: optim.lr=1.0 {what}",
        ),
        strict=True,
    ):
        assert line.startswith(start)


def test_a_users_own_check_sees_the_values_of_all_sources():
    write(
        "checks.py",
        """
        from pydantic import BaseModel, field_validator

        class Settings(BaseModel):
            width: int
            heads: int = 2

            @field_validator("heads")
            @classmethod
            def _divides(cls, heads, info):
                assert info.data["width"] % heads == 0, "must divide width"
                return heads

        def build(settings: Settings, config): ...
        """,
    )
    write("a.toml", '[task]\nbuild = "checks.py:build"\nheads = 4\n')
    assert load_config("a.toml", {"task.width": "8"}).task.width == 8
    with pytest.raises(ConfigError, match=r"^a\.toml: task\.heads=4: .*must divide width$"):
        load_config("a.toml", {"task.width": "6"})


def test_settings_need_their_code(capsys):
    assert train.main(["--task.width", "3"]) == 2
    assert "unknown key task.width: set task.build" in capsys.readouterr().err
    assert train.main(["--task.biuld", SPEC]) == 2
    assert "unknown key task.biuld: did you mean task.build?" in capsys.readouterr().err
    assert "my_task" not in sys.modules
    write("a.toml", "[task]\nwidth = 3\n")
    with pytest.raises(ConfigError, match=r"^a\.toml: unknown key task\.width: set task\.build, "):
        load_config("a.toml")


def test_a_setting_without_a_default_must_be_given():
    write("needs.py", FEW, fields="width: int")
    assert problem_of("needs.py:build") == "task.width is not set: needs.py:build needs it"
    assert load_config(None, {"task.build": "needs.py:build", "task.width": "3"}).task.width == 3
    write("a.toml", '[task]\nbuild = "needs.py:build"\n')
    assert load_config("a.toml", {"task.width": 3}).task.width == 3


def test_a_check_of_several_settings_is_one_error():
    write(
        "several.py",
        """
        from pydantic import BaseModel, model_validator

        class Settings(BaseModel):
            width: int = 6
            heads: int = 2

            @model_validator(mode="after")
            def _divides(self):
                if self.width % self.heads:
                    raise ValueError("heads must divide width")
                return self

        def build(settings: Settings, config): ...
        """,
    )
    write("a.toml", '[task]\nbuild = "several.py:build"\nheads = 4\n')
    with pytest.raises(ConfigError, match=r"^task: Value error, heads must divide width$"):
        load_config("a.toml")
    assert load_config("a.toml", {"task.width": 8}).task.width == 8


BAD_CODE = {
    "a raise": ("x = 1\ny = nothing", "{file}, line 2: NameError: name 'nothing' is not defined"),
    "a syntax error": ("x = 1\ny = (", "{file}, line 2: SyntaxError: '(' was never closed"),
    "an exit": ("import sys\nsys.exit('no')", "{file}, line 2: SystemExit: no"),
    "lines": ("raise ValueError('a\\nb')", "{file}, line 1: ValueError: a b"),
    "a lack": ("import not_there", "{file}, line 1: ModuleNotFoundError: No module named"),
    "no function": ("build = 3", "build in {file} is not a function"),
    "a near name": ("def biuld(a, b): ...", "{file} has no function build: did you mean biuld?"),
    "one argument": (
        "x = 1\ndef build(settings): ...",
        "{file}, line 2: build must take two arguments: settings and config",
    ),
    "settings that are a number": (
        "def build(settings: int, config): ...",
        "{file}, line 1: settings must be annotated with a subclass of pydantic.BaseModel, or not",
    ),
    "an annotation of nothing": (
        "from __future__ import annotations\ndef build(settings: Lost, config): ...",
        "{file}, line 2: the annotation of settings: NameError: name 'Lost' is not defined",
    ),
    "a reserved name": (
        FEW.format(fields="build: int = 1"),
        "{file}, line 4: the setting build has a reserved name",
    ),
    "a level too many": (
        FEW.format(fields="sizes: dict[str, int] = {}"),
        "task.sizes: should be true or false, a number, a string or a list of them",
    ),
    "a set": (
        FEW.format(fields='names: set[str] = {"a"}'),
        "task.names={{'a'}}: cannot be written in TOML and read back",
    ),
    "a secret": (
        FEW.format(fields='key: SecretStr = SecretStr("x")').replace("import", "import SecretStr,"),
        "task.key=**********: cannot be written in TOML and read back",
    ),
    "a default of another type": (
        FEW.format(fields='rate: float = 1; width: int = "many"'),
        'task.width="many": should be a valid integer',
    ),
    "a default that is no TOML": (
        FEW.format(fields="it: object = print"),
        "task.it=<built-in function print>: cannot be written in TOML and read back",
    ),
}


@pytest.mark.parametrize("number", range(len(BAD_CODE)), ids=list(BAD_CODE))
def test_bad_code_is_one_error_with_file_and_line(number):
    text, expected = list(BAD_CODE.values())[number]
    file = f"inside/bad_code_{number}.py"
    write(file, text)
    problem = problem_of(f"{file}:build").removeprefix(f"task.build={file}:build: ")
    assert problem.startswith(expected.format(file=file))


def test_the_error_is_where_it_happens_in_the_users_files():
    write("helper.py", "def fail():\n    import json\n    json.loads('{')\n")
    write("calls.py", "import helper\n\nhelper.fail()\n")
    assert "calls.py:build: helper.py, line 3: JSONDecodeError: " in problem_of("calls.py:build")
    Path("helper_b.py").write_text("x = (")
    write("imports.py", "import helper_b\n")
    assert "imports.py:build: helper_b.py, line 1: SyntaxError" in problem_of("imports.py:build")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("my_task.py", "names no function: write FILE.py:FUNCTION or package.module:FUNCTION"),
        ("my_task.py:", "names no function"),
        ("gone.py:build", "there is no file gone.py in /"),
        ("/gone.py:build", "there is no file /gone.py"),
        ("gone:build", "there is no module gone"),
        ("my_task.gone:build", "there is no module my_task.gone"),
        ("sub/my_task:build", "sub/my_task is not a module: write FILE.py:FUNCTION"),
        ("torch.py:build", "torch.py has the name of the module torch ("),
        ("sinlstm_dist.py:build", "sinlstm_dist.py has the name of the module sinlstm_dist ("),
        ("json.py:build", "json.py has the name of the module json ("),
        ("a.b.py:build", "a.b.py cannot be imported: leave the dot out"),
        ("sys:exit", "sys is not a Python file"),
    ],
)
def test_a_wrong_name_is_one_error(spec, expected):
    for file in ("torch.py", "sinlstm_dist.py", "json.py", "a.b.py"):
        write(file, "def build(a, b): ...")
    assert problem_of(spec).startswith(f"task.build={spec}: {expected}")


def test_a_file_and_a_module_of_one_name_are_not_mixed_up():
    write("there/twin.py", "def build(a, b): ...")
    load_config(None, {"task.build": "there/twin.py:build"})
    write("here/twin.py", "def build(a, b): ...")
    assert "twin.py has the name of the module twin" in problem_of("here/twin.py:build")


def test_a_module_of_a_package():
    write("pack/__init__.py", "")
    write("pack/other.py", "")
    write("pack/inner/mine.py", "import pack.other\n\ndef build(settings, config): ...\n")
    code = user_code.load("pack.inner.mine:build")
    assert code.settings is user_code.NoSettings
    assert code.file == Path("pack/inner/mine.py").absolute()
    assert problem_of("pack.inner.mine:build", width=3) == (
        "pack/inner/mine.py, line 3: annotate build's first parameter with your settings class "
        "(a pydantic.BaseModel), so that task.width is known"
    )
    with pytest.raises(AttributeError, match="there is no setting width: annotate the first"):
        _ = code.settings().width
    before = code.digest
    write("pack/other.py", "x = 1")
    user_code.load.cache_clear()
    assert user_code.load("pack.inner.mine:build").digest != before


def test_the_digest_is_of_the_users_files_and_not_of_their_place(folder):
    texts = {"a_helper.py": "", "uses_it.py": "import a_helper\ndef build(a, b): ...\n"}
    digests = []
    for place, helper in (("one", ""), ("two", ""), ("three", "x = 1")):
        for name, text in texts.items():
            write(f"{place}/{name}", text)
        write(f"{place}/a_helper.py", helper)
        write(f"{place}/not_imported.py", place)
        program = (
            "from sinlstm_dist.user_code import load\n"
            f"print(load('{place}/uses_it.py:build').digest)"
        )
        ended = launching.run([sys.executable, "-c", program], cwd=folder)
        assert ended.code == 0, ended.stderr
        digests.append(ended.stdout)
    assert digests[0] == digests[1] != digests[2]


def test_a_spawned_process_can_import_the_users_module(folder):
    """As the workers of a DataLoader do, to unpickle its data set."""
    write("deep/spawned.py", "def build(a, b): ...\n\ndef answer():\n    print(42)\n")
    program = """
        import multiprocessing
        from sinlstm_dist.user_code import load

        if __name__ == "__main__":
            code = load("deep/spawned.py:build")
            worker = multiprocessing.get_context("spawn").Process(
                target=code.function.__globals__["answer"]
            )
            worker.start()
            worker.join()
    """
    write("main.py", program)
    ended = launching.run([sys.executable, "main.py"], cwd=folder)
    assert (ended.code, ended.stdout) == (0, "42\n"), ended.stderr


@pytest.fixture(scope="module")
def sine_run(tmp_path_factory):
    """A run of the built-in task."""
    run = tmp_path_factory.mktemp("runs") / "sine"
    assert train.main(launching.flags({**launching.SMALL, "output.dir": run})) == 0
    return run


@pytest.fixture
def task_run(sine_run, folder):
    """A copy whose config.toml names code with a side effect, as a run of it would."""
    write("effect.py", "from pathlib import Path\nPath('loaded').touch()\n" + textwrap.dedent(CODE))
    return as_run(sine_run, folder / "run", width=3)


def as_run(sine_run, path, **settings):
    shutil.copytree(sine_run, path)
    config = read_config(path / "config.toml").model_dump()
    config |= {"task": {"build": "effect.py:build", **settings}}
    defaults = load_config().model_dump()
    config |= {section: defaults[section] for section in ("data", "model", "optim")}
    config["train"]["tolerance"] = defaults["train"]["tolerance"]
    (path / "config.toml").write_text(to_toml(type(load_config()).model_validate(config)))
    for file in path.glob("checkpoints/*/state.json"):
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"config": config}))
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare", "run"], ""),
        (["plot", "run", "--output", "curves.png"], ""),
        (["evaluate", "run"], "name its code with --task.build FILE.py:FUNCTION"),
        (["forecast", "run"], "only the built-in task has a forecast"),
        (["export", "run", "--output", "a.onnx"], "only the built-in task has an ONNX graph"),
    ],
)
def test_a_run_folder_never_loads_code(task_run, arguments, expected, capsys):
    assert __main__.main(arguments) == (2 if expected else 0)
    shown = capsys.readouterr()
    assert expected in shown.err
    assert len(shown.err.splitlines()) == bool(expected)
    assert not expected or "task.build=effect.py:build" in shown.err
    config = read_run(task_run).config
    assert override(config, {"train.seed": 1}).task == config.task
    assert not Path("loaded").exists()


def test_plot_data_is_of_the_built_in_task(capsys):
    write("mine.toml", f'[task]\nbuild = "{SPEC}"\n')
    assert __main__.main(["plot", "data", "--config", "mine.toml"]) == 2
    assert f"task.build={SPEC}: only the built-in task has windows" in capsys.readouterr().err


def test_code_that_the_command_line_names_is_checked_against_the_runs_settings(task_run):
    config = read_run(task_run).config
    assert override(config, {"task.build": SPEC}).task.settings() == {**DEFAULTS, "width": 3}
    write("other.py", FEW, fields="height: int = 3")
    with pytest.raises(ConfigError, match=r"^unknown key task\.width"):
        override(config, {"task.build": "other.py:build"})


def test_compare_shows_the_settings_that_differ(sine_run, task_run, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    as_run(sine_run, folder / "deep", width=3, depth=2, kind="a", wide=True)
    as_run(sine_run, folder / "wide", width=4, kind="b", wide=False)

    def settings(*runs) -> list[str]:
        assert __main__.main(["compare", *runs]) == 0
        return re.findall(r"\S+=\S+", capsys.readouterr().out)

    deep = ["task.depth=2", 'task.kind="a"', "task.wide=true"]
    assert settings("run", "deep") == deep
    assert settings("deep", "wide") == [
        "task.width=3", *deep, "task.width=4", 'task.kind="b"', "task.wide=false"
    ]  # fmt: skip
    build = 'task.build="effect.py:build"'
    with_sine = settings(str(sine_run), "run")  # each has its own keys
    assert with_sine[-2:] == [build, "task.width=3"]
    assert all(line.startswith(("data.", "model.", "optim.")) for line in with_sine[:-2])


def test_evaluate_says_that_other_code_has_other_settings(task_run, capsys):
    write("other.py", FEW, fields="height: int")
    assert __main__.main(["evaluate", "run", "--task.build", "other.py:build"]) == 2
    assert capsys.readouterr().err == (
        "error: run is a run of effect.py:build; other.py:build has other settings (task.width, "
        "task.height)\n"
    )


def test_changed_settings_make_another_run():
    def dump(**settings):
        keys = {f"task.{key}": value for key, value in settings.items()}
        return load_config(None, keys).model_dump(mode="json")

    before = dump(build=SPEC, width=3, most=2)
    assert identity.changed_keys(before, dump(build=SPEC, width=4)) == [
        "task.width was 3 and is 4",
        "task.most was 2 and is not set",
    ]
    shutil.move("my_task.py", "moved.py")
    assert identity.changed_keys(before, dump(build="moved.py:build", width=3, most=2)) == []
    assert identity.changed_keys(before, dump(build="moved.py:build", width=4, most=2)) == [
        'task.build was "my_task.py:build" and is "moved.py:build"',
        "task.width was 3 and is 4",
    ]
    first, *_ = identity.changed_keys(before, dump())
    assert first == 'task.build was "my_task.py:build" and is ""'
    old = dump()
    del old["task"], old["train"]["num_workers"]  # an older version's
    assert identity.changed_keys(old, dump()) == []
    more = load_config(None, {"train.num_workers": 3}).model_dump(mode="json")
    assert identity.changed_keys(old, more) == []


def test_a_launcher_shows_the_error_once(folder):
    words = [*launching.torchrun(2), "-m", "sinlstm_dist.train", "--task.build", "my_task.py:lost"]
    ended = launching.run(words, cwd=folder)
    assert ended.code != 0
    assert ended.stderr.count("error: task.build=my_task.py:lost: my_task.py has no function") == 1


def test_no_version_is_needed_to_know_the_users_keys(task_run):
    config = read_run(task_run).config.model_dump(mode="json")
    assert unknown_keys(config) == []
    assert resume.ended_summary(task_run, config) is not None
    for file in task_run.glob("checkpoints/*/state.json"):
        assert state.parse(file.read_bytes())["config"]["task"] == config["task"]
    assert not Path("loaded").exists()


def test_a_run_of_an_older_version_without_the_section_is_known_as_one(sine_run, folder):
    values = tomli.loads((sine_run / "config.toml").read_text())
    del values["task"]
    write("old/config.toml", tomli_w.dumps(values))
    write("old/metrics.jsonl", "")
    assert hold.is_run(folder / "old")
