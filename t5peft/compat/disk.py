"""Errors of a full, read-only, broken or missing disk, and of a limit on the size of files, told as such whatever library met them.

safetensors, torch, pyarrow and SQLite each raise an exception of their own where a disk is full, most of which do not mention
the disk. ``disk_errors`` makes them one ``DiskError`` that names the folder and what to do.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from t5peft.compat.paths import as_path

P = ParamSpec("P")
R = TypeVar("R")

_PROBLEMS = {
    errno.ENOSPC: ("no space left on the disk", "Free space there, or give a folder on another disk"),
    errno.EDQUOT: ("no quota left on the disk", "Free space there, or give a folder on another disk"),
    errno.EFBIG: ("a limit on the size of files", "Raise it (ulimit -f), or give a folder on another disk"),
    errno.EROFS: ("a read-only disk", "Mount it for writing, or give a folder on another disk"),
    errno.EIO: ("an input/output error on the disk", "Check the disk (dmesg), or give a folder on another disk"),
}
# What libraries write into the text of an exception that is not an OSError.
_TEXTS = {
    errno.ENOSPC: r"no space left|os error 28\b|errno 28\b|database or disk is full|storage_?full",
    errno.EDQUOT: r"quota exceeded|os error 122\b|errno 122\b",
    errno.EFBIG: r"os error 27\b|errno 27\b",
    errno.EROFS: r"read-only file system|readonly database|os error 30\b|errno 30\b",
    errno.EIO: r"input/output error|os error 5\b|errno 5\b|disk i/o error",
}
# torch's archive writer loses the reason: the disk itself is asked for it.
_WRITERS = re.compile(
    r"PytorchStreamWriter|inline_container|unexpected pos|file write failed|iostream error", re.IGNORECASE
)
_FULL_BYTES = 1 << 20


class DiskError(OSError):
    """A disk is full, read-only, broken or gone, or a file too large for it; ``errno`` says which and ``filename`` where."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """Raise a ``DiskError`` that names ``folder`` for what a full, read-only, broken or missing disk raises in the block.

    Args:
        folder: Where the block writes; an error that names its own file is told with the folder of that file.

    Raises:
        DiskError: The disk is full, read-only or broken, or the folder went away.
    """
    there = _existing(folder)
    try:
        yield
    except Exception as error:
        found = as_disk_error(error, folder)
        if found is None and there is not None and not there.is_dir():
            found = gone(there)
        if found is None or found is error:
            raise
        raise found from error


def reports_disk_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function with an argument ``folder``, to which it writes, by ``disk_errors``."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with disk_errors(signature.bind(*args, **kwargs).arguments["folder"]):
            return function(*args, **kwargs)

    return call


def as_disk_error(error: BaseException, folder: str | Path | None = None) -> DiskError | None:
    """Return the ``DiskError`` for ``error``; None where the disk is not the cause.

    Args:
        error: What was raised; its causes are looked at too.
        folder: Where was written, for errors that do not name a file.

    Returns:
        The error to raise in its place, or None.
    """
    for one in _chain(error):
        if isinstance(one, DiskError):
            return one
        number = _disk_errno(one, folder)
        if number is not None:
            named = _filename(one)
            return _disk_error(number, folder if named is None else Path(named).parent)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what caused it, each once."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _disk_errno(error: BaseException, folder: str | Path | None) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _PROBLEMS else None
    if isinstance(error, (ValueError, KeyError, TypeError)):  # these tell of what was given, in a user's own words
        return None
    text = str(error)
    for number, pattern in _TEXTS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return number
    return _reason(folder) if _WRITERS.search(text) else None


def _filename(error: BaseException) -> str | None:
    """Return the path of the file that ``error`` names; None for a descriptor or for none."""
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) and os.fsdecode(name) else None


def _reason(folder: str | Path | None) -> int:
    """Return why a write failed, by writing there once more; an input/output error where that succeeds."""
    found = _existing(folder)
    if found is not None and shutil.disk_usage(found).free < _FULL_BYTES:
        return errno.ENOSPC
    try:
        with tempfile.TemporaryFile(dir=found) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in _PROBLEMS else errno.EIO
    return errno.EIO


def _existing(folder: str | Path | None) -> Path | None:
    if folder is None:
        return None
    path = as_path(folder).absolute()
    return next((one for one in (path, *path.parents) if one.is_dir()), None)


def gone(folder: Path) -> DiskError:
    """Return the error for a folder that went away while it was written to."""
    text = (
        f"Got the loss of the folder {folder} while it was written to; expected it to stay. Mount it, or move it back, and go on; "
        "what was saved there before stays."
    )
    return DiskError(errno.ENOENT, text, str(folder))


def _disk_error(number: int, folder: str | Path | None) -> DiskError:
    problem, remedy = _PROBLEMS[number]
    where = f"of the folder {Path(folder).absolute()}" if folder is not None else "that is written to"
    found = _existing(folder)
    space = ""
    if number in (errno.ENOSPC, errno.EDQUOT) and found is not None:
        space = f" ({shutil.disk_usage(found).free / 1e6:,.1f} MB free)"
    wanted = "expected to read and write there" if number == errno.EIO else "expected to write there"
    text = f"Got {problem} {where}{space}; {wanted}. {remedy}; what was saved before stays."
    return DiskError(number, text, None if folder is None else str(folder))
