"""Hold a run folder for one run, and notice when it is moved away or replaced."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import uuid
from pathlib import Path

import tomli

from sinlstm_dist.config import SECTIONS
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.run import checkpoint, files
from sinlstm_dist.run.record import CHECKPOINTS, CONFIG, LOCK, METRICS, STOP, WRITTEN, read_epoch

MARK = b"sinlstm-dist "  # the start of the lock's content, once a run has begun in the folder
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # flock's answers
ATTEMPTS = 20  # to take a lock while other starts make and remove it
_held: set[int] = set()  # descriptors of the locks of this process


def _let_go() -> None:
    """Close the locks in a forked child: one that outlives its run would keep the folder."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


class Hold:
    """Keeps other runs out of a folder, until `release` or the end of the process.

    Args:
        path: the folder; `take` makes it if it is missing. It may be a link; its content may not.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, path / LOCK
        self._descriptor: int | None = None
        self._token = b""
        self._was_marked = False
        self._made: list[Path] = []  # folders that `take` made

    def take(self) -> None:
        """Make the folder and keep other runs out of it.

        Raises:
            ConfigError: it cannot be written, is in use, or holds other things than a run.
        """
        try:
            self._check_kind()
            if not any(self._try() for _ in range(ATTEMPTS)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        except BlockingIOError as error:
            raise ConfigError(
                f"output.dir={self.path} is in use by a run that has not ended: "
                "wait for it, or choose another folder"
            ) from error
        except files.NotAFile as error:
            raise ConfigError(_refusal(error.filename, error.strerror)) from error
        except OSError as error:
            where = f" ({error.filename})" if error.filename != str(self.path) else ""
            raise ConfigError(
                f"output.dir={self.path} cannot be written: {error.strerror}{where}"
            ) from error

    def _check_kind(self) -> None:
        """Refuse a path that is neither free nor a folder nor a link to a folder."""
        if files.kind_of(self.path) in ("", "a folder"):
            return
        try:
            if stat.S_ISDIR(os.stat(self.path).st_mode):
                return
            what = "a file"
        except FileNotFoundError:
            what = "a link that leads nowhere"
        raise ConfigError(f"output.dir={self.path} is {what}: choose a folder")

    def _try(self) -> bool:
        """Whether the folder is now held; False if another start has removed it or its lock."""
        try:
            self._make(self.path)
            self._check_content()
            return self._take_lock()
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """See that `path` is still the folder that is held; cheap enough for every write.

        Raises:
            OSError: it was moved away, replaced or removed.
        """
        if _content(self._lock) == self._token:
            return
        what = (
            f"the run folder was moved away or replaced, or its {LOCK} removed; nothing was "
            "written into the folder that is there now: move it back"
        )
        if not os.path.lexists(self.path):
            what = "the run folder was removed or moved away: move it back, or the run starts over"
        raise OSError(errno.ESTALE, what, str(self.path))

    def release(self, *, keep: bool) -> None:
        """Let other runs have the folder.

        Args:
            keep: a run has begun in the folder. If not, remove the lock if the folder holds
                nothing else, and the folders that `take` made if they are empty.
        """
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if not keep:
                    self.check()
                    self._remove_lone_lock()
                os.ftruncate(self._descriptor, len(MARK) if keep or self._was_marked else 0)
            os.close(self._descriptor)
            _held.discard(self._descriptor)
            self._descriptor = None
        if not keep:
            with contextlib.suppress(OSError):  # the first folder that is not empty ends it
                while self._made:
                    self._made.pop().rmdir()

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents, and remember which were made."""
        if folder != folder.parent and not os.path.lexists(folder.parent):
            self._make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            self._made.append(folder)

    def _take_lock(self) -> bool:
        """Whether this process now has the lock in the folder."""
        token = MARK + uuid.uuid4().hex.encode()
        with contextlib.ExitStack() as stack, files.naming(self._lock):
            descriptor = self._locked(stack, self._lock)
            content = os.pread(descriptor, 1000, 0)
            if not re.fullmatch(b"(" + MARK + b".*)?", content, re.S):
                raise ConfigError(
                    f"{self._lock} was not written by this program: choose another output.dir"
                )
            # A run that ended may have removed the lock between our opening and locking it.
            if not os.path.samestat(os.fstat(descriptor), os.lstat(self._lock)):
                return False
            if files.is_shared(descriptor):
                descriptor = self._replaced(stack)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, token, 0)
            self._descriptor, self._token = os.dup(descriptor), token
            _held.add(self._descriptor)
            self._was_marked = bool(content)
        return True

    def _locked(self, stack: contextlib.ExitStack, path: Path) -> int:
        """A locked file's descriptor; `stack` closes it."""
        descriptor = files.open_own(path, os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, descriptor)
        try:
            with files.naming(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                if not os.fstat(descriptor).st_size:
                    self._remove_lone_lock()
            raise ConfigError(
                f"output.dir={self.path} is on a file system that has no file locks (Lustre: mount "
                "it with -o flock): choose another output.dir"
            ) from error
        return descriptor

    def _replaced(self, stack: contextlib.ExitStack) -> int:
        """A new lock in place of one that another folder shares (a snapshot by hard links)."""
        if not is_run(self.path):
            raise files.NotAFile(
                errno.EMLINK, "is also another file's name (a hard link)", str(self._lock)
            )
        new = self._lock.with_name(files.UNFINISHED + LOCK)
        new.unlink(missing_ok=True)
        descriptor = self._locked(stack, new)
        new.replace(self._lock)
        return descriptor

    def _remove_lone_lock(self) -> None:
        """Remove the lock if the folder holds nothing else, or only a STOP file."""
        if not set(files.names_in(self.path)) - {LOCK, STOP}:
            self._lock.unlink()

    def _check_content(self) -> None:
        """Refuse a folder that holds no run, or a link that could lead a write elsewhere."""
        names = files.names_in(self.path)
        if set(names) - {STOP, LOCK} and not is_run(self.path):
            raise ConfigError(
                f"output.dir={self.path} is not empty and holds no run: choose another folder"
            )
        for name in names:
            wanted = WRITTEN.get(name.removeprefix(files.UNFINISHED))
            if wanted and (kind := files.kind_of(self.path / name)) not in (wanted, ""):
                raise ConfigError(_refusal(self.path / name, f"is {kind}"))
        for name in files.names_in(self.path / CHECKPOINTS):
            folder = self.path / CHECKPOINTS / name
            if "step-" in name and files.kind_of(folder) == "a link":
                raise ConfigError(_refusal(folder, "is a link"))


def is_run(path: Path) -> bool:
    """Whether a folder holds content that only this program writes; a name alone is no proof.

    Raises:
        OSError: it cannot be read now.
    """
    has_more = {LOCK, METRICS, CHECKPOINTS} & set(files.names_in(path))
    return bool(
        _content(path / LOCK).startswith(MARK)  # older versions did not write it
        or (_is_resolved(_content(path / CONFIG)) and has_more)
        or any(_is_epoch(line) for line in _content(path / METRICS).splitlines())
        or any(
            files.kind_of(folder / checkpoint.MANIFEST) == "a file"
            for folder in checkpoint.find(path / CHECKPOINTS)
        )
    )


def _content(path: Path) -> bytes:
    """A file's content; empty if there is no such file."""
    try:
        return files.read(path)
    except (FileNotFoundError, NotADirectoryError, files.NotAFile):
        return b""


def _is_resolved(content: bytes) -> bool:
    """Whether it is a run's config.toml, of this version or another."""
    try:
        values = tomli.loads(content.decode())
    except (ValueError, RecursionError):
        return False
    sections = SECTIONS.keys() - {"task"}  # which older versions lack
    return all(isinstance(values.get(section), dict) for section in sections)


def _is_epoch(line: bytes) -> bool:
    try:
        read_epoch(line)
    except ValueError:
        return False
    return True


def _refusal(path: Path | str, what: str | None) -> str:
    return (
        f"{path} {what}, but the program writes its own file or folder of that name: remove it, or "
        "choose another output.dir"
    )
