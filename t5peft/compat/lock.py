"""Locks on output folders and files, so that two runs never write to the same place.

A lock is a file with the process that holds it, locked by ``flock``: the kernel frees it when the process dies, however it
dies. On file systems without ``flock`` the content of the file decides: a process of this host that is dead holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from t5peft.compat.disk import DiskError, disk_errors, gone

LOCK = ".t5peft.lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# The launchers that set these, and Accelerate reads them: torchrun and accelerate launch, MPICH, Open MPI, MVAPICH.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")

_held: dict[Path, tuple[int, int]] = {}  # lock file: thread that holds it, and how many blocks of that thread
_descriptors: dict[Path, int] = {}  # of the lock files
_guard = threading.Lock()


class FolderInUseError(RuntimeError):
    """Another run holds the folder or the file."""


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Hold ``folder`` for the block, so that no other run writes to it; create it where it is missing.

    Blocks of one thread may nest. Of the processes of a distributed run, rank 0 holds the folder for all. A full or
    read-only disk in the block raises a ``DiskError`` that names the folder.

    Args:
        folder: The folder to write to.

    Raises:
        FolderInUseError: Another process or thread holds the folder.
        DiskError: The disk is full, read-only or broken.
        OSError: The folder cannot be created or written to.
        ValueError: Its name is empty, which would be the current folder.
    """
    if not str(folder):
        raise ValueError("Got an empty name of a folder; expected one. Write '.' for the current folder.")
    folder = Path(folder)
    if _distributed_rank() > 0:
        with disk_errors(folder):
            yield
        return
    with disk_errors(folder):
        new = _make_folders(folder)
        try:
            with disk_errors(folder), _hold(folder / LOCK, f"the folder {folder}"):
                yield
        finally:
            for made in reversed(new):  # only those in which nothing was written
                try:
                    made.rmdir()
                except OSError:
                    break


@contextmanager
def hold_file(path: str | Path) -> Iterator[None]:
    """Hold the file ``path`` for the block, by a lock file beside it, so that no other run writes to it.

    Args:
        path: The file to write to.

    Raises:
        FolderInUseError: Another process or thread holds the file.
        DiskError: The disk is full, read-only or broken.
    """
    path = Path(path)
    with disk_errors(path.parent):
        _create(path.parent)
        with disk_errors(path.parent), _hold(path.with_name(f".{path.name}.lock"), f"the file {path}"):
            yield


def _make_folders(folder: Path) -> list[Path]:
    """Create ``folder`` and return the folders that were missing, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    _create(folder)
    return missing[::-1]


def _create(folder: Path) -> None:
    """Create ``folder`` where it is missing.

    Raises:
        OSError: It cannot be created, or a file is in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        places = (folder, *folder.parents)
        file = next((path for path in places if not path.is_dir() and (path.exists() or path.is_symlink())), None)
        reason = f"where {file} is a file" if file is not None else f"which cannot be created ({error.strerror})"
        raise type(error)(f"Got the folder {folder}, {reason}; expected one to write to. Give another one.") from error


@contextmanager
def _hold(lock: Path, subject: str) -> Iterator[None]:
    lock, thread = lock.resolve(), threading.get_ident()
    with _guard:
        owner, depth = _held.get(lock, (thread, 0))
        if owner != thread:
            raise FolderInUseError(_message(subject, lock, {"pid": os.getpid(), "host": socket.gethostname()}))
        if depth == 0:
            _descriptors[lock] = _acquire(lock, subject)
        _held[lock] = (thread, depth + 1)
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        # The folder was moved away, and may have been made anew since by whoever wrote to it.
        if depth == 0 and lock in _descriptors and not _is_current(_descriptors[lock], lock):
            raise gone(lock.parent) from error
        raise
    finally:
        with _guard:
            if lock in _held:  # not in a forked process, which holds nothing
                _held[lock] = (thread, depth)
                if depth == 0:
                    del _held[lock]
                    with suppress(OSError):  # what the block has done stays done
                        lock.unlink()  # before it is freed, so that nobody locks a file that is then deleted
                    os.close(_descriptors.pop(lock))


def _hold_nothing() -> None:
    """Let go of all locks in a process that was forked, without freeing them.

    A worker of a data loader outlives its killed parent for some seconds. Until then the lock would seem to be held.
    """
    global _guard
    _guard = threading.Lock()  # another thread of the parent may have held it
    for descriptor in _descriptors.values():
        os.close(descriptor)
    _descriptors.clear()
    _held.clear()


def _acquire(lock: Path, subject: str) -> int:
    """Lock the file ``lock`` and return its descriptor."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, PermissionError) as error:
            text = f"Got {subject}, which cannot be written to ({error.strerror}); expected one that can. Give another one."
            raise type(error)(text) from error
        try:
            if not _lock(descriptor, lock, subject):
                raise FolderInUseError(_message(subject, lock, _read(descriptor)))
            if _is_current(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_own_entry()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has deleted it meanwhile


def _lock(descriptor: int, lock: Path, subject: str) -> bool:
    """Return whether the lock could be taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    return not _is_alive(_read(descriptor))


def _is_current(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False


def _own_entry() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "created": psutil.Process().create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }


def _read(descriptor: int) -> dict[str, Any]:
    """Return the entry of the lock file; empty for one that is new or unreadable."""
    try:
        entry = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _is_alive(entry: Mapping[str, Any]) -> bool:
    """Return whether the process of ``entry`` may still run; of another host nothing is known, so it may."""
    if not entry:
        return False
    if entry.get("host") != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(entry["pid"]).create_time() - entry["created"]) < 1
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _message(subject: str, lock: Path, entry: Mapping[str, Any]) -> str:
    process = f"process {entry.get('pid', 'unknown')} on host {entry.get('host', 'unknown')}"
    details = f" since {entry['since']}: {entry['command']}" if {"since", "command"} <= entry.keys() else ""
    return (
        f"Got {subject}, which another run holds ({process}{details}); expected one run at a time. Wait for that run or stop "
        f"it, or give another output. If that process does not exist any more, delete {lock}."
    )


def _distributed_rank() -> int:
    """Return the rank of this process in a distributed run; 0 in a run of one process."""
    torch_distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if torch_distributed is not None and torch_distributed.is_available() and torch_distributed.is_initialized():
        return int(torch_distributed.get_rank())
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)


os.register_at_fork(after_in_child=_hold_nothing)
