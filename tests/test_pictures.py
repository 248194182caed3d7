"""The pictures of docs/: a terminal as SVG, and the script that makes all of them."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest
from launching import Ended, environment, run

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def terminal(monkeypatch):
    """The module docs/terminal.py."""
    monkeypatch.syspath_prepend(str(DOCS))
    import terminal

    return terminal


def words(drawn: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def in_a_terminal(program: str, *, cwd: Path) -> Ended:
    """Draw a Python program on a terminal at the moment when it asks for that, by a process."""
    (cwd / "program.py").write_text(program)
    script = (
        "import sys; from pathlib import Path; from terminal import picture_of\n"
        "print(picture_of(f'{sys.executable} program.py', cwd=Path.cwd(),"
        " when=lambda text: 'now' in text))"
    )
    return run([sys.executable, "-c", script], cwd=cwd, PYTHONPATH=str(DOCS))


def test_characters_of_a_screen(terminal):
    screen = pyte.Screen(terminal.COLUMNS, terminal.ROWS)
    text = "$ a  <b> & c\r\n\x1b[36m╭─╮\x1b[0m\r\n \x1b[1;38;2;1;2;3mx\x1b[0m ⠁⣿\r\n"
    pyte.ByteStream(screen).feed(text.encode())
    drawn = terminal.svg(screen)
    assert words(drawn) == ["$ a  <b> & c", "x"]
    root = ElementTree.fromstring(drawn)
    assert float(root.get("height")) == 3 * terminal.CELL_HEIGHT + 2 * terminal.MARGIN
    first, bold = root.iter(f"{SVG}text")
    assert first.get("textLength") == str(12 * terminal.CELL_WIDTH)
    assert (bold.get("fill"), bold.get("font-weight")) == ("#010203", "bold")
    assert len([path for path in root.iter(f"{SVG}path") if "Q" in path.get("d")]) == 3
    (dots,) = (path.get("d") for path in root.iter(f"{SVG}path") if "h" in path.get("d"))
    assert dots.count("M") == 1 + 8


def test_the_screen_that_is_looked_for(tmp_path):
    """As it is when the program has drawn it, with dim text; what comes later is not in it."""
    program = (
        "import time\n"
        "print('now', end='', flush=True); time.sleep(0.001)\n"
        "print(' \\x1b[2mdim\\x1b[0m', flush=True); time.sleep(1); print('later')"
    )
    ended = in_a_terminal(program, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert words(ended.stdout)[1:] == ["now", "dim"]
    assert 'fill-opacity="0.6">dim<' in ended.stdout.replace(' xml:space="preserve"', "")


@pytest.mark.parametrize("program", ["print('never')", "print('now'); raise SystemExit(3)"])
def test_no_picture_of_a_command_that_fails(program, tmp_path):
    ended = in_a_terminal(program, cwd=tmp_path)
    assert ended.code == 1
    assert ended.stderr.startswith("no picture of ")
    assert ended.stdout == ""


def test_a_terminal_while_it_trains(tmp_path):
    command = [sys.executable, str(DOCS / "pictures.py"), "terminal.svg", "--into", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=environment())
    drawn = (tmp_path / "terminal.svg").read_text(encoding="utf-8")
    shown = " ".join(words(drawn))
    assert shown.startswith("$ python -m sinlstm_dist.train sinlstm-dist processes   1 on ")
    assert "run folder  runs/default" in shown
    assert 25 <= int(re.search(r"epoch +(\d+)/100", shown)[1]) < 100
    root = ElementTree.fromstring(drawn)
    curves = [path for path in root.iter(f"{SVG}path") if "h.01" in path.get("d")]
    assert len({path.get("stroke") for path in curves}) == 2  # target and prediction
    assert re.findall(r"[\w:]*//[^\"\s]*", drawn) == ["http://www.w3.org/2000/svg"]
