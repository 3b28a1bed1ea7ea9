"""Kill a process, or let a call of it fail, at its n-th file operation below a folder.

The operations are counted by ``faults.c``, a library that is loaded before all others, so that those of Rust and C++ count too.
A process that has it is forked for each fault, so that a fault costs milliseconds and not an import of torch.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ALLOCATES, CHANGES, READS = 1, 2, 4
_OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")
_MAY_MOUNT = "T5PEFT_MAY_MOUNT"
_PAGE = 4096
_COUNT, _KILL, _ONCE, _FROM_THEN_ON, _GONE = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Fault:
    """A fault at an operation: an error number, once or from then on, or none for a kill.

    Attributes:
        name: The name of the errors, "kill", "gone" for a folder that is moved away, or "full tmpfs" for a small file system.
        kinds: The kinds of operations that count.
    """

    name: str
    how: int
    error: int = 0
    kinds: int = ALLOCATES | CHANGES


KILL = Fault("kill", _KILL)
WRITE_FAULTS = (
    Fault("ENOSPC", _FROM_THEN_ON, errno.ENOSPC, ALLOCATES),
    Fault("EDQUOT", _FROM_THEN_ON, errno.EDQUOT, ALLOCATES),
    Fault("EROFS", _FROM_THEN_ON, errno.EROFS),
    Fault("EIO", _ONCE, errno.EIO),
    Fault("gone", _GONE),
)
FULL_TMPFS = Fault("full tmpfs", _COUNT)
READ_FAULT = Fault("EIO in reading", _ONCE, errno.EIO, READS)


def why_not() -> str | None:
    """Return why faults cannot be injected here; None where they can."""
    if sys.platform != "linux":
        return "faults are injected into calls of Linux's C library"
    return None if shutil.which("cc") else "there is no C compiler"


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a Python process that can inject faults, after compiling the library into ``folder``."""
    library = folder / "faults.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
    subprocess.run(command, check=True)
    paths = [str(HERE.parents[1]), str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }


def start_again_with_faults() -> None:
    """Replace this process by one of the same command that can inject faults, unless it can.

    It has mounts of its own where that is allowed. They go when it ends.
    """
    if "faults.so" in os.environ.get("LD_PRELOAD", ""):
        return
    if reason := why_not():
        raise SystemExit(f"Skipped: {reason}.")
    folder = Path(tempfile.gettempdir(), f"t5peft-faults-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", *sys.argv]
    if has_own_mounts():
        command = [*_OWN_MOUNTS, *command]
    os.execvpe(command[0], command, environment(folder) | {_MAY_MOUNT: str(int(has_own_mounts()))})


def has_own_mounts() -> bool:
    """Whether Linux lets this user have mounts that no other process sees."""
    if shutil.which(_OWN_MOUNTS[0]) is None:
        return False
    return subprocess.run([*_OWN_MOUNTS, "true"], capture_output=True, check=False).returncode == 0


def may_mount() -> bool:
    """Whether this process was started with mounts of its own."""
    return os.environ.get(_MAY_MOUNT) == "1"


@contextmanager
def small_tmpfs(place: Path, size_bytes: int) -> Iterator[None]:
    """Mount a file system of so many bytes over ``place``, with what is there."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(place, folder, dirs_exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place)], check=True)
        try:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def make_room(place: Path) -> None:
    """Let a file system that ``small_tmpfs`` mounted grow."""
    subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)


def pages_of(place: Path) -> int:
    """Return the bytes that the files below ``place`` take on a tmpfs."""
    return sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in place.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Ended:
    """How a forked process ended.

    Attributes:
        status: Its exit code, negative for a signal; None where it took too long.
        errors: What it wrote to the standard error.
        operations: The operations of each kind that it made below the folder, where it came to its end.
    """

    status: int | None
    errors: str
    operations: dict[int, int]
    seconds: float

    @property
    def was_killed(self) -> bool:
        return self.status == -signal.SIGKILL


def fork(
    run: Callable[[], int],
    root: Path,
    fault: Fault | None = None,
    at: int = 0,
    *,
    kill_after: float | None = None,
    timeout: float = 120,
) -> Ended:
    """Run a function in a forked process, with a fault at its operation ``at`` below ``root``, or a kill after some seconds."""
    library = ctypes.CDLL(None)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        errors, counted = Path(folder, "errors"), Path(folder, "counted")
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.setpgid(0, 0)
                output = os.open(errors, os.O_WRONLY | os.O_CREAT)
                for stream in (1, 2):
                    os.dup2(output, stream)
                os.close(output)
                how = (fault.how, at, fault.error, fault.kinds) if fault else (_COUNT, 0, 0, 0)
                library.faults_arm(os.fsencode(root.resolve()), how[0], ctypes.c_long(how[1]), *how[2:])
                status = run()
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                operations = {kind: library.faults_count(kind) for kind in (ALLOCATES, CHANGES, READS)}
                library.faults_arm(b"", 0, ctypes.c_long(0), 0, 0)
                counted.write_text(json.dumps(operations))
                os._exit(status)
        ended = _wait(child, kill_after, timeout)
        text = errors.read_text(errors="replace") if errors.exists() else ""
        made = json.loads(counted.read_text()) if counted.exists() and counted.stat().st_size else {}
        operations = {int(kind): number for kind, number in made.items()}
    return Ended(ended, text, operations, time.monotonic() - start)


def _wait(child: int, kill_after: float | None, timeout: float) -> int | None:
    start = time.monotonic()
    killed = False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - start
        if not killed and passed > min(timeout, kill_after or timeout):
            os.kill(child, signal.SIGKILL)
            killed = True
            if kill_after is None or passed > timeout:
                os.waitpid(child, 0)
                return None
        time.sleep(0.002)
