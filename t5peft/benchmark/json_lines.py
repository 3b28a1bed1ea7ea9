"""Append-only files of one JSON object a line, which several processes may write at once.

A line is written under an exclusive lock of the file, flushed to the disk, and taken back where that fails. A process
that is killed while it writes leaves at most one incomplete line, at the end. Readers skip that line with a warning, and
the next writer cuts it off.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no ``flock``; there one process at a time may write
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class JsonLines:
    """A file of JSON lines, read from where the last call ended.

    Args:
        path: The file. It need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        self._count = 0
        self._torn = b""

    def new_lines(self) -> list[tuple[int, bytes]]:
        """Return the lines that were appended since the last call, each with its number."""
        if not self.path.exists():
            return []
        if not self.path.is_file():
            raise ValueError(f"Got {self.path}, which is not a file; expected one of JSON lines. Move it away.")
        with _locked(self.path, "rb") as file:
            return self._read(file)

    def append(self, line: str, check: Callable[[list[tuple[int, bytes]]], None] = lambda lines: None) -> None:
        """Append one line, whole or not at all.

        Args:
            line: A JSON object without line breaks.
            check: Gets what ``new_lines`` returns. It may raise to refuse ``line``.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path, "a+b") as file:
            check(self._read(file))
            file.truncate(self._end)
            try:
                file.write((b"" if _ends_a_line(file, self._end) else b"\n") + line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), self._end)
                raise

    def _read(self, file: BinaryIO) -> list[tuple[int, bytes]]:
        size = file.seek(0, os.SEEK_END)
        if size < self._end:  # somebody has put another file in its place
            self._end = self._count = 0
        file.seek(self._end)
        *lines, last = file.read().split(b"\n")
        if last and _is_json(last):  # an editor may have left out the line break at the end
            lines, last = [*lines, last], b""
        if last and last != self._torn:
            logger.warning("Dropped the last line of %s: it is incomplete, so that its run is repeated.", self.path)
        self._torn = last
        self._end = size - len(last)
        first = self._count + 1
        self._count += len(lines)
        return [(number, line) for number, line in enumerate(lines, first) if line.strip()]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _ends_a_line(file: BinaryIO, end: int) -> bool:
    if end == 0:
        return True
    file.seek(end - 1)
    return file.read(1) == b"\n"


@contextmanager
def _locked(path: Path, mode: str) -> Iterator[BinaryIO]:
    """Open a file under a lock, which the system releases when the process ends."""
    with open(path, mode) as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_SH if mode == "rb" else fcntl.LOCK_EX)
        yield file  # type: ignore[misc]  # ``open`` gives a binary file in both modes
