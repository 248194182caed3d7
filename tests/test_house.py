"""The plan of the house: who imports whom, and what each room must not know.

Each rule is a function of source text, so it is also shown to find what it forbids.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sinlstm_dist"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PLACES = (ROOT, PACKAGE)  # to which names on that page are relative
# Imports point only from a later name to an earlier one; a folder is one name.
ORDER = [
    "status", "early", "__init__", "words", "errors", "problems", "sections", "blame", "user_code",
    "config", "compiled", "philox", "differences", "plan", "randomness", "data", "lstm", "metrics",
    "run", "horizons", "rollout", "card", "hub", "model", "golden", "optim", "seen", "trained",
    "initial_weights", "task", "sine", "optimizers", "processes", "arithmetic", "tree",
    "piece_rows", "graphed_rows", "reduction", "gradient", "agreement", "screen", "gallery",
    "flags", "command_line", "command", "splits", "snapshot", "probe", "new_task", "job",
    "stepping", "logbook", "train", "quality", "evaluate", "forecast", "plot", "export", "compare",
    "verify", "__main__",
]  # fmt: skip
ROOMS = {"data", "lstm", "processes", "run", "screen", "verify"}
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}

# What a fresh process loads, directly or not.
NO_TORCH = [
    "status", "early", "words", "errors", "problems", "sections", "blame", "user_code", "config",
    "compiled", "philox", "differences", "plan", "metrics", "horizons", "rollout", "card", "hub",
    "flags", "command_line", "command", "compare", "__main__", "processes.launcher",
    "processes.stop", "processes.alive", "run.record", "run.files", "run.state",
    *(path.removesuffix(".py").replace("/", ".") for path in SOURCES if path.startswith("screen/")),
]  # fmt: skip
NO_ACCELERATE = ["forecast", "plot", "export"]
KNOW_ACCELERATE = {
    "processes/accelerator.py", "processes/world.py", "new_task.py", "run/trackers.py"
}  # fmt: skip
# The only ones that print; screen/report.py draws by rich, through the console.
PRINT = {"screen/stream.py", "screen/console.py", "screen/report.py", "screen/live.py"}
READ_ENVIRONMENT = {
    "status.py",
    "processes/launcher.py",
    "processes/accelerator.py",
    "compiled.py",
}


def imported(source: str) -> set[str]:
    """Every module that `source` imports; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their direction"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def place(path: str) -> int:
    """Where a file of the package stands in ORDER: one in a folder, where its folder does."""
    return ORDER.index(Path(path).parts[0].removesuffix(".py"))


def inside(*names: str) -> list[str]:
    """The files of these rooms, and those of these names on the shelf."""
    return [path for path in SOURCES if Path(path).parts[0].removesuffix(".py") in names]


def siblings(source: str) -> set[str]:
    """The rooms, and the files on the shelf, that `source` imports."""
    parts = [name.split(".") for name in imported(source)]
    return {part[1] for part in parts if part[0] == "sinlstm_dist" and part[1:2]} & set(ORDER)


def imports_package(source: str, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imported(source))


def dotted_names(source: str) -> set[str]:
    """Names and attributes such as `print`, `sys.stdout` and `torch.load`."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Name, ast.Attribute)))
    return {ast.unparse(node) for node in nodes}


def prints(source: str) -> bool:
    forbidden = {"print", "sys.stdout", "sys.stderr", "warnings.warn"}
    return bool(forbidden & dotted_names(source)) or any(
        imports_package(source, package) for package in ("rich", "logging")
    )


def trusts_code_in_files(source: str) -> bool:
    forbidden = {"torch.load", "torch.save", "eval", "exec", "compile", "__import__"}
    return bool(forbidden & dotted_names(source)) or any(
        imports_package(source, package) for package in ("pickle", "shelve", "marshal", "dill")
    )


def first_that_loads(package: str, modules: Sequence[str]) -> str:
    """The first of our `modules` after whose import a fresh process has loaded `package`; or ""."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(f'sinlstm_dist.{name}')\n"
        "    if sys.argv[1] in sys.modules: raise SystemExit(name)\n"
    )
    words = [sys.executable, "-c", program, package, *modules]
    return subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=60).stderr.strip()


def undocumented(source: str) -> list[str]:
    """Public functions, methods and classes without a docstring."""
    found = []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, kinds) and not child.name.startswith("_"):
                if not ast.get_docstring(child):
                    found.append(child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child)

    visit(ast.parse(source))
    return found


def long_functions(source: str, most: int = 45) -> list[str]:
    """Functions of more lines than `most`."""
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= most]


def test_the_plan_names_every_file():
    assert {Path(path).parts[0].removesuffix(".py") for path in SOURCES} == set(ORDER)
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == ROOMS


def test_the_page_about_the_house_names_every_file():
    modules = {path.name for path in PACKAGE.glob("*.py")}
    named = re.findall(r"`(\w+\.py)`", ARCHITECTURE.read_text())
    assert modules - set(named) == {"__init__.py", "__main__.py"}


def test_the_page_about_the_house_has_the_order_of_imports():
    """It promises that a file imports only from rows above it."""
    page = ARCHITECTURE.read_text()
    table = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    named = re.findall(r"`(\w+)(?:\.py|/)`", " ".join(table))
    assert named == [name for name in ORDER if not name.startswith("__")]
    files = re.findall(r"`((?:\w+/)?\w+\.py)`", page)
    assert [file for file in files if not any((at / file).exists() for at in PLACES)] == []


@pytest.mark.parametrize("path", SOURCES)
def test_imports_point_to_earlier_files(path):
    """Files of one folder may know each other."""
    assert not {name for name in siblings(SOURCES[path]) if ORDER.index(name) > place(path)}


def test_the_recurrence_knows_nothing_of_the_rest():
    for path, source in SOURCES.items():
        if path.startswith("lstm/"):
            assert siblings(source) <= {"lstm", "compiled"}, path


@pytest.mark.parametrize(
    ("package", "modules"), [("torch", NO_TORCH), ("accelerate", NO_ACCELERATE)]
)
def test_does_not_load(package, modules):
    assert first_that_loads(package, modules) == ""


@pytest.mark.parametrize("path", SOURCES)
def test_few_files_know_accelerate(path):
    assert imports_package(SOURCES[path], "accelerate") == (path in KNOW_ACCELERATE)


@pytest.mark.parametrize("path", inside("data", "model", "metrics", "plan", "run", "screen"))
def test_knows_nothing_of_processes(path):
    names = imported(SOURCES[path]) | dotted_names(SOURCES[path])
    assert not any(known.startswith("torch.distributed") for known in names)
    assert "processes" not in siblings(SOURCES[path])


@pytest.mark.parametrize("path", inside("data", "model", "train"))
def test_knows_nothing_of_devices(path):
    names = dotted_names(SOURCES[path])
    assert not [n for n in names if n.endswith((".to", ".cuda", ".cpu")) or "torch.cuda" in n]


def test_the_story_of_training_has_no_ranks():
    assert not [name for name in dotted_names(SOURCES["train.py"]) if name.split(".")[-1] == "rank"]


@pytest.mark.parametrize("path", SOURCES)
def test_few_files_print(path):
    assert prints(SOURCES[path]) == (path in PRINT)


@pytest.mark.parametrize("path", SOURCES)
def test_no_file_is_trusted_to_be_code(path):
    assert not trusts_code_in_files(SOURCES[path])


@pytest.mark.parametrize("path", SOURCES)
def test_public_names_have_docstrings(path):
    assert ast.get_docstring(ast.parse(SOURCES[path]))
    assert undocumented(SOURCES[path]) == []


@pytest.mark.parametrize("path", SOURCES)
def test_the_environment_is_read_in_few_places(path):
    names = dotted_names(SOURCES[path])
    reads = any(name.startswith(("os.environ", "os.getenv")) for name in names)
    assert reads == (path in READ_ENVIRONMENT)


@pytest.mark.parametrize("path", SOURCES)
def test_files_and_functions_stay_small(path):
    assert len(SOURCES[path].splitlines()) <= 300
    assert long_functions(SOURCES[path]) == []


def test_the_rules_find_what_they_forbid():
    assert siblings("from sinlstm_dist import train, data") == {"train", "data"}
    assert siblings("def f():\n    import sinlstm_dist.screen.report as r") == {"screen"}
    assert siblings("from sinlstm_dist.lstm.choice import choose") == {"lstm"}
    assert place("lstm/choice.py") == place("lstm/__init__.py") == ORDER.index("lstm")
    assert place("__init__.py") < place("data/sine.py") < place("verify/speed.py")
    assert imports_package("from torch import nn", "torch")
    assert imports_package("import torch.nn as t", "torch")
    assert not imports_package("import torchvision", "torch")
    for bad in ("print(1)", "import sys\nsys.stdout.write('a')", "from rich import box"):
        assert prints(bad)
    for bad in ("torch.load('a')", "from pickle import loads", "exec('a')", "eval('a')"):
        assert trusts_code_in_files(bad)
    assert not trusts_code_in_files("model.eval()")
    assert long_functions("def f():\n" + "    1\n" * 44) == []
    assert long_functions("def f():\n" + "    1\n" * 45) == ["f"]
    assert first_that_loads("torch", ["config", "optim", "plan"]) == "optim"
    assert undocumented("class A:\n    def b(self): ...\n    def _c(self): ...") == ["A", "b"]
