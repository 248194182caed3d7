"""The pages are right: their commands, outputs, links and names."""

import codeop
import doctest
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import launching
import pages
import pytest
import shown
from pages import PAGES, ROOT

from sinlstm_dist.config import load_config

README = ROOT / "README.md"
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
SHORT = "--train.epochs 1 --data.train_size 200 --data.test_size 50"
MARK = re.compile(
    r"test: (run|on a run|session)|ci: \w+|tested in: (?P<file>tests/\w+\.py)|not run: .{10,}"
)
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "sinlstm_dist").rglob("*.py")
    if ">>> " in path.read_text()
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture
def run_line(nursery, tmp_path):
    """Run a command line; `python -m` and `sinlstm-dist` in a forked process, as they would."""

    def run_it(line: str) -> str:
        program, *arguments = shlex.split(line)
        if program in ("python", "sinlstm-dist"):
            module = arguments.pop(1).partition(".")[2] if program == "python" else "__main__"
            arguments = arguments[arguments[0] == "-m" :]
            ended = nursery.run(arguments, cwd=tmp_path, module=module, is_whole=True)
            assert (ended.codes, ended.stderr) == ([0], "")
        else:
            ended = launching.run([program, *arguments], cwd=tmp_path)
            assert ended.code == 0, ended.stderr
        return ended.stdout

    return run_it


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder of programs that run this package's commands quickly."""
    commands = forked.Commands(tmp_path_factory.mktemp("commands"), pages.environment_of_a_reader())
    yield commands.folder
    commands.close()


# Commands and outputs


@each_page
def test_each_command_says_how_it_is_tested(page):
    for block in pages.blocks(page):
        if block.language in ("bash", "console", "sh"):
            mark = MARK.fullmatch(block.mark)
            assert mark, f"{block.mark!r} above\n{block.text}"
            assert mark["file"] is None or (ROOT / mark["file"]).exists()


@pytest.mark.parametrize(("page", "line"), pages.lines("test: run"))
def test_commands_run_as_printed(page, line, run_line, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    printed = run_line(f"{line} {SHORT}")
    assert "completed: 1 epoch\n" in printed or "--print-config" in line


@pytest.mark.parametrize(("page", "line"), pages.lines("test: on a run"))
def test_commands_on_a_run_work_as_printed(page, line, run_line, trained_run, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("default", "early", "article", "noisy", "faster"):
        shutil.copytree(trained_run, tmp_path / "runs" / name)
    run_line(line)


@each_page
def test_a_page_reads_as_it_runs(page, tmp_path, commands):
    reader = pages.Reader(tmp_path, None if page == README else commands)
    try:
        for block in pages.blocks(page):
            reader.read(block)
    finally:
        reader.close()


@each_page
def test_python_can_be_typed_line_by_line(page):
    """An unindented line directly after a loop's body is an error at Python's prompt."""
    for block in pages.blocks(page):
        if block.language == "python":
            typed: list[str] = []
            for line in [*block.text.splitlines(), ""]:
                typed.append(line)
                if codeop.compile_command("\n".join(typed), symbol="single"):
                    typed = []
            assert "".join(typed) == "", typed


def test_pages_use_folders_of_their_own():
    """A reader who follows one page after the other is not refused another run's folder."""
    users: dict[str, str] = {}
    for page in PAGES:
        sessions = [b.text for b in pages.blocks(page) if b.mark == "test: session"]
        for folder in set(re.findall(r"--output.dir (\S+)", "\n".join(sessions))):
            assert users.setdefault(folder, page.name) == page.name, folder


@each_page
def test_each_output_is_compared(page):
    for block in pages.blocks(page):
        file = (MARK.fullmatch(block.mark) or {"file": None})["file"]
        is_run = block.mark == "test: session" or block.language == "python"
        if block.output is not None and not is_run:
            assert file, f"not compared below\n{block.text}"
            assert f"docs/{page.name}" in (ROOT / file).read_text()
        if block.language == "text" and block.mark:
            assert re.fullmatch("not compared: .{10,}", block.mark)


@each_page
def test_a_test_that_is_named_has_the_flags_of_the_command(page):
    helpers = "".join((ROOT / "tests" / name).read_text() for name in ("launching.py", "slurm.py"))
    for block in pages.blocks(page):
        mark = MARK.fullmatch(block.mark)
        if mark and mark["file"]:
            source = (ROOT / mark["file"]).read_text() + helpers
            for flag in set(re.findall(r"(?<= --)[\w.-]+", block.text)) - {"local-addr"}:
                assert flag in source, f"{flag} in {mark['file']}"


DIGEST, OTHER = "a1" * 32, "b2" * 32


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("loss 0.25", "loss 0.25\nand more"),
        ("loss 0.25\nend", "loss 0.25"),
        ("loss 0.25", "gain 0.25"),
        ("loss 0.25", "loss 0.52"),
        ("166 parameters", "999 parameters"),
        ("completed: 100 epochs", "completed: 3 epochs"),
        ("a\n...\nb\n...\nc", "a x c"),
        ("...\nb", "b\nc"),
        (f"{DIGEST} x\n{DIGEST} y", f"{OTHER} x\n{DIGEST} y"),
        (f"{DIGEST} x\n{OTHER} y", f"{DIGEST} x\n{DIGEST} y"),
    ],
)
def test_another_output_is_found(text, printed):
    with pytest.raises(AssertionError):
        shown.compare(text, printed)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("epoch 1  loss 2.5e-01 █▅▁\n...\nend", "epoch 1 loss 0.26 █▁\nmore\nand\nend"),
        (f"{DIGEST} x\n{DIGEST} y", f"{OTHER} x\n{OTHER} y"),
        (
            "...\ncontinues in epoch 11, after step 1000 of",
            "a\ncontinues in epoch 3, after step 9 of",
        ),
        ("verified in 7 s: 2 threads each, AVX-512\n...", "verified in 70 s: 1 thread each, AVX2"),
        ("it wraps\nhere", "it\nwraps here"),
    ],
)
def test_what_may_differ_is_no_other_output(text, printed):
    shown.compare(text, printed)


def test_ci_runs_the_commands_of_the_readme():
    for name in ("install", "test"):
        assert f"<!-- ci: {name} -->" in README.read_text()
        assert f"readme_command {name}" in (ROOT / ".ci" / "run").read_text()


# The site


def test_the_site_is_built_without_a_warning(tmp_path):
    ended = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, env=launching.environment(NO_MKDOCS_2_WARNING="1"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    for page in PAGES[1:]:
        name = page.stem
        assert (tmp_path / ("index.html" if name == "index" else f"{name}/index.html")).exists()


def anchors(page: Path) -> set[str]:
    """What a link to this page may name after the #, as GitHub makes it from headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *PAGES[1:]], ids=lambda page: page.name
)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


# What pages say about the repository


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.kernel
@pytest.mark.parametrize("flags", ["", f" --config {ROOT / 'configs/smoke.toml'}"])
def test_readme_has_the_digits_that_a_reader_gets(flags, run_line):
    weights = run_line(f"python -m sinlstm_dist.train{flags}").splitlines()[-1]
    assert weights.removeprefix("weights ") in README.read_text()


def test_readme_has_the_figures_of_the_performance_page():
    ours, theirs = (
        re.search(r"^\| \| batch 100 .*\n(\|.*\n)+", page.read_text(), flags=re.MULTILINE)[0]
        for page in (README, ROOT / "docs" / "performance.md")
    )
    assert ours == theirs


@each_page
def test_files_that_a_page_names_exist(page):
    named = re.findall(
        r"`((?:tests|examples|configs|launch|benchmarks|docs)/[\w./-]+\.\w+)", page.read_text()
    )
    assert all((ROOT / path).exists() for path in named), named


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_valid_and_listed(path):
    load_config(path)
    assert f"`{path.name}`" in (ROOT / "docs" / "configuration.md").read_text()


def test_smoke_configuration_reaches_its_target(run_line):
    run_line(f"python -m sinlstm_dist.train --config {ROOT / 'configs/smoke.toml'}")


def test_the_configuration_page_has_todays_keys():
    """`python docs/configuration.py` writes them."""
    page = ROOT / "docs" / "configuration.md"
    with_tables = runpy.run_path(str(page.with_suffix(".py")))["with_tables"]
    assert with_tables(page.read_text()) == page.read_text(), "run python docs/configuration.py"


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_in_docstrings_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)
