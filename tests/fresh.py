"""Python processes that begin in milliseconds: forks of one that has imported the libraries and done nothing else.

An import of torch, transformers and t5peft takes five seconds of a processor. A process started here is as a fresh one, but for
what is imported. Tests of imports start their own interpreters.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["preloaded"])


@dataclass
class Done:
    """How a process ended, as ``subprocess.CompletedProcess`` says it."""

    returncode: int
    stdout: str
    stderr: str


class Fresh:
    """A process that runs. Its output goes to files."""

    def __init__(self, script: str | Path, arguments: Sequence[object], env: Mapping[str, str], folder: Path) -> None:
        self._outputs = (folder / "stdout", folder / "stderr")
        for path in self._outputs:
            path.touch()
        words = [str(script), *map(str, arguments)] if isinstance(script, Path) else ["-c", *map(str, arguments)]
        self._process: Any = _CONTEXT.Process(target=_run, args=(script, words, dict(env), self._outputs))
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end, and return the exit code; a signal is a negative one."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"A process still runs after {timeout} s: {self.stderr[-2000:]}")
        return int(self._process.exitcode)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def is_alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def stdout(self) -> str:
        return self._outputs[0].read_text()

    @property
    def stderr(self) -> str:
        return self._outputs[1].read_text()

    def wait_for_line(self, timeout: float = 120) -> str:
        """Return the first line that it prints; an empty one if it ends before."""
        end = time.monotonic() + timeout
        while "\n" not in self.stdout and self.is_alive and time.monotonic() < end:
            time.sleep(0.01)
        return self.stdout.partition("\n")[0]


@contextmanager
def start_fresh(script: str | Path, *arguments: object, env: Mapping[str, str] | None = None) -> Iterator[Fresh]:
    """Run code, or a file, in a process of its own that is killed at the end of the block.

    Args:
        script: Code, as of ``python -c``, or the path of a file.
        arguments: The words after it.
        env: All environment variables; None for those of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = Fresh(script, arguments, os.environ if env is None else env, Path(folder))
        try:
            yield process
        finally:
            if process.is_alive:
                process.send_signal(signal.SIGKILL)
            process.wait()


def run_fresh(
    script: str | Path, *arguments: object, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Done:
    """Run code, or a file, to its end."""
    with start_fresh(script, *arguments, env=env) as process:
        return Done(process.wait(timeout), process.stdout, process.stderr)


def run_ranks(script: Path, *arguments: object, processes: int = 2, timeout: float = 300) -> None:
    """Run a file in several processes of one group, as torchrun does."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(processes):
            own = Path(folder) / str(rank)
            own.mkdir()
            started.append(Fresh(script, arguments, os.environ | _rank(rank, processes, Path(folder)), own))
        end = time.monotonic() + timeout
        try:
            while any(process.is_alive for process in started) and time.monotonic() < end:
                if failed := [one for one in started if not one.is_alive and one.wait()]:
                    raise AssertionError(failed[0].stderr[-4000:])
                time.sleep(0.02)
        finally:
            for process in started:
                if process.is_alive:
                    process.send_signal(signal.SIGKILL)
        assert [process.wait() for process in started] == [0] * processes, started[0].stderr[-4000:]


def _rank(rank: int, processes: int, folder: Path) -> dict[str, str]:
    """The variables by which torch finds the other processes."""
    import socket

    port_file = folder / "port"
    if not port_file.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port_file.write_text(str(free.getsockname()[1]))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port_file.read_text(),
        "OMP_NUM_THREADS": "1",
    }


def _run(script: str | Path, words: list[str], environment: dict[str, str], outputs: tuple[Path, Path]) -> None:
    """Become the process: its environment, its output, its arguments, and its code."""
    for number, path in enumerate(outputs, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    sys.argv = words
    if isinstance(script, Path):
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    else:
        exec(compile(script, "<code>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
