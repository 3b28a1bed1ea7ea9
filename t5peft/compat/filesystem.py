"""File operations that Python's standard library does not offer on every system: an atomic exchange, locks and fsync."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t5peft.compat.disk import disk_errors, gone

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# Answers of a kernel or a file system that cannot exchange two paths.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths of one file system in a single step.

    Args:
        first: An existing file or folder.
        second: Another one.

    Returns:
        Whether it was done; False where the system or the file system has no such operation.

    Raises:
        OSError: The paths cannot be renamed at all, as for a mount point.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # older C libraries
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    if os.name == "nt":  # which opens no folder, and no file for reading only, to do so
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(path: Path) -> Path:
    """Return where ``write_whole`` writes what takes the place of a file in the end."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, text: str) -> None:
    """Write a text file in a single step: whenever the process is killed, it is the old one or the new one.

    Args:
        path: The file.
        text: Its content, written in UTF-8, with its ends of lines.

    Raises:
        DiskError: The disk is full, read-only or broken, or the folder of the file went away.
    """
    temporary = unfinished(path)
    with disk_errors(path.parent):
        if not path.parent.is_dir():
            raise gone(path.parent)
        temporary.write_text(text, encoding="utf-8", newline="")
        sync(temporary)
        temporary.replace(path)


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Hold a folder for this process; the system releases it when the process ends, however it ends.

    Yields:
        False if another process holds it. True where the system or the file system has no locks.
    """
    if fcntl is None:
        yield True
        return
    descriptor, is_free = os.open(folder, os.O_RDONLY), True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_free = False
    except OSError:  # a file system without locks
        pass
    try:
        yield is_free
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
