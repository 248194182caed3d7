"""The project's Markdown pages, cut into code blocks, and run as a reader would run them.

An HTML comment above a `bash` block says how it is tested:

    <!-- test: run -->         each line is a training command; the test adds a small size
    <!-- test: on a run -->    each line works on runs/default, early, article, noisy, faster
    <!-- test: session -->     bash runs the block as it stands, after the page's other sessions;
                               away from the README, tests/forked.py runs this package's commands
    <!-- ci: NAME -->          .ci/run takes the command from here
    <!-- tested in: FILE -->   another test runs it
    <!-- not run: REASON -->

and above a `text` block that follows it:

    <!-- not compared: REASON -->

All `python` blocks of a page run in one process. What a session or a `python` block prints is
compared with the `text` block that follows it; tests/shown.py says how.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import shown
from launching import HANGS_S, environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.M | re.S,
)
_IN_BACKGROUND = re.compile(r"[^>&]&$", re.MULTILINE)
_RUN_BLOCKS = (
    "import json, sys\n"
    "for line in sys.stdin:\n"
    "    exec(compile(json.loads(line), '<page>', 'exec'), globals())\n"
    "    print(chr(0), flush=True)\n"
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Args:
        language: after the fence: bash, python, text, ...
        mark: the comment above it, or "".
        text: what stands between the fences.
        output: the `text` block that follows directly, or None.
    """

    language: str
    mark: str
    text: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    """A page's code blocks, from top to bottom."""
    source = page.read_text()
    found = list(_BLOCK.finditer(source))
    following = [*found[1:], None] if found else []
    return [
        Block(match["language"], match["mark"] or "", match["text"], _output(source, match, after))
        for match, after in zip(found, following, strict=True)
    ]


def lines(mark: str) -> list[tuple[str, str]]:
    """Page name and command of every line of the blocks with this mark."""
    return [
        (page.name, line)
        for page in PAGES
        for block in blocks(page)
        if block.mark == mark
        for line in block.text.replace("\\\n", "").splitlines()
    ]


def _output(source: str, block: re.Match[str], after: re.Match[str] | None) -> str | None:
    if after is None or after["language"] != "text" or after["mark"]:
        return None
    return None if source[block.end() : after.start()].strip() else after["text"]


class Reader:
    """Runs the sessions and the python blocks of one page, in order, in one folder.

    Args:
        folder: where they run.
        commands: where a session finds its programs first; a command that it starts in the
            background, and may kill, is the real one.
    """

    def __init__(self, folder: Path, commands: Path | None) -> None:
        self._folder, self._commands = folder, commands
        for name in ("configs", "examples"):
            (folder / name).symlink_to(ROOT / name)
        self._python: subprocess.Popen[str] | None = None

    def read(self, block: Block) -> None:
        """Run a block, and compare what it prints with what the page says."""
        if block.mark == "test: session":
            printed = self._bash(block.text)
        elif block.language == "python":
            printed = self._run_python(block.text)
        else:
            return
        if block.output is not None:
            shown.compare(block.output, printed)

    def _bash(self, text: str) -> str:
        script = self._folder / "session.sh"  # not on the command line, which pkill -f looks at
        script.write_text(text)
        variables = environment_of_a_reader()
        if self._commands and not _IN_BACKGROUND.search(text):
            variables["PATH"] = f"{self._commands}:{variables['PATH']}"
        ended = subprocess.run(
            ["bash", "-eu", script.name], cwd=self._folder,
            env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=HANGS_S,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def _run_python(self, text: str) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", _RUN_BLOCKS],
                cwd=self._folder, env=environment_of_a_reader(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(text) + "\n")
        self._python.stdin.flush()
        printed = []
        for line in self._python.stdout:
            printed.append(line.removesuffix("\0\n"))
            if line.endswith("\0\n"):
                return "".join(printed)
        raise AssertionError(f"failed:\n{text}")  # its traceback is on standard error

    def close(self) -> None:
        """End the page's python process."""
        if self._python is not None:
            self._python.communicate(timeout=HANGS_S)


def environment_of_a_reader() -> dict[str, str]:
    """This environment, as it would be in a reader's shell."""
    variables = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    del variables["OMP_NUM_THREADS"]  # a reader has not set it
    return variables
