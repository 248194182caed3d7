"""Write files without following links; after a crash a file has its old or its new content.

Source: Pillai et al.: All file systems are not created equal (OSDI 14), for the order of syncs.
"""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished-"  # the start of a name while its file or folder is being written
# What fsync of a folder says on file systems that cannot do it, such as some network shares.
# Source: fsync_fname_ext in https://github.com/postgres/postgres/blob/master/src/common/file_utils.c
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


class NotAFile(OSError):
    """There is a link, a folder or a device where a regular file is needed."""


def read(path: Path) -> bytes:
    """The content of a regular file; links are followed.

    Raises:
        NotAFile: it is something else.
        OSError: it cannot be read; the error names it.
    """
    with naming(path):
        descriptor = _open(path, os.O_RDONLY)
        try:
            parts = []
            while part := os.read(descriptor, 2**24):
                parts.append(part)
        finally:
            os.close(descriptor)
    return b"".join(parts)


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that this program writes; links are not followed.

    Raises:
        NotAFile: it is something else.
        OSError: it cannot be opened; the error names it.
    """
    with naming(path):
        return _open(path, flags | os.O_NOFOLLOW)


def is_shared(descriptor: int) -> bool:
    """Whether a file has another name too (a hard link), whose content must not change."""
    return os.fstat(descriptor).st_nlink > 1


def _open(path: Path, flags: int) -> int:
    """`os.open` of a regular file; does not wait for the other end of a named pipe."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise NotAFile(error.errno, f"is {kind_of(path)}", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFile(errno.EINVAL, f"is {kind_of(path)}", str(path))
    return descriptor


def kind_of(path: Path) -> str:
    """What is at `path`: "a file", "a folder", "a link" or "no regular file"; "" for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return ""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def names_in(folder: Path) -> list[str]:
    """The names in a folder; empty if there is no such folder.

    Raises:
        OSError: it cannot be read. (`Path.glob` would give an empty list.)
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; it is made if it is missing."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        if not is_shared(descriptor):
            return _write(descriptor, content)
    replace_synced(path, read(path) + content)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with _opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        if not is_shared(descriptor):
            os.ftruncate(descriptor, 0)
            _write(descriptor, content)
            return os.fsync(descriptor)
    path.unlink()
    write_synced(path, content)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    with naming(path):
        descriptor = open_own(path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def replace_synced(path: Path, content: bytes) -> None:
    """Replace the file at `path` by one with `content`; at any instant one of both is there."""
    unfinished = path.with_name(UNFINISHED + path.name)
    write_synced(unfinished, content)
    with naming(path):
        unfinished.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk.

    Of a folder, only as far as its file system can do that.
    """
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            if not is_folder or error.errno not in NO_FOLDER_SYNC:
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError that has no name, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def parse_json(content: bytes) -> Any:
    """The value in a JSON file or line.

    Raises:
        ValueError: it is not JSON as this program writes it: UTF-8, finite numbers, valid text.
    """
    try:
        value = json.loads(content.decode(), parse_constant=_finite, parse_float=_finite)
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode()  # refuses half a character
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value
