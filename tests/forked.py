"""The package's commands in a page's shell, forked from one parent that has already imported torch.

A start-up with torch takes two seconds, and the pages have dozens of commands. `Commands` writes
small programs named `python` and `sinlstm-dist` into a folder, which a shell finds first on its
PATH. Such a program hands its arguments, environment, folder and standard streams to the parent
(this file run as a program), whose child runs the command as `python -m` does, and ends with the
child's exit code. Any other use of `python` is the real one.

A signal to the program does not reach the child: a shell that sends one needs the real programs.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = """#!{python} -IS
import json, os, socket, sys
program, *words = sys.argv
if program.endswith("/python"):
    if words[:1] != ["-m"] or not words[1].startswith("sinlstm_dist."):
        os.execv({python!r}, [{python!r}, *words])
    words.pop(0)
else:
    words.insert(0, "sinlstm_dist.__main__")
with socket.socket(socket.AF_UNIX) as parent:
    parent.connect({address!r})
    socket.send_fds(parent, [b"."], [0, 1, 2])
    parent.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode())
    parent.shutdown(socket.SHUT_WR)
    [code] = parent.recv(1)
os._exit(code)
"""


class Commands:
    """The programs, which lie in `folder`, and their parent."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        address = str(folder / "parent")
        for name in ("python", "sinlstm-dist"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable, address=address))
            (folder / name).chmod(0o755)
        with socket.create_server(address, family=socket.AF_UNIX) as listener:
            self._parent = subprocess.Popen(
                [sys.executable, __file__],
                cwd=Path(__file__).parent,
                env={**variables, "OPENBLAS_NUM_THREADS": "1"},  # NumPy starts threads otherwise
                stdin=listener,
                start_new_session=True,
            )

    def close(self) -> None:
        """End the parent, and what it has started."""
        os.killpg(self._parent.pid, signal.SIGKILL)
        self._parent.wait()


def _serve() -> None:
    # So that children need not import them; the first two are imported late in a run.
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch.distributed.tensor  # noqa: F401

    from sinlstm_dist import compare, evaluate, export, forecast, plot, train  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    gc.freeze()  # what the parent has made is not looked through, and so not copied, in a child
    listener = socket.socket(fileno=os.dup(0))
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> None:
    """Start a command, and tell the program that asked for it how it has ended."""
    pid = os.fork()
    if pid == 0:
        _be_child(connection)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.send(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _be_child(connection: socket.socket) -> None:
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    with connection, connection.makefile() as order:
        words, folder, variables = json.load(order)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv, sys.path[0] = words, folder
    sys.modules.pop(words[0], None)  # it is this process's program, and read again
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    _serve()
