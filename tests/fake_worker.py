"""Workers for tests of the benchmark: no model, records made up; importable by the processes that a suite starts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import synthetic

from t5peft.benchmark.process import OnProgress
from t5peft.benchmark.records import RunConfig


def work(made: RunConfig, on_progress: OnProgress) -> dict[str, Any]:
    """A run of half a second that leaves traces beside the log: its start and its process."""
    folder = Path(os.readlink("/proc/self/fd/1")).parent
    (folder / f"pid-{os.getpid()}").touch()
    with (folder / "starts").open("a") as file:
        file.write(f"{made.identity()}\n")
    for step in range(10):
        on_progress(step, 10)
        time.sleep(0.05)
    (folder / f"pid-{os.getpid()}").unlink()
    return synthetic.finished(made, made.learning_rate * 100, parameters=1, peak=1, seconds=0.05)


def killed(made: RunConfig, on_progress: OnProgress) -> dict[str, Any]:
    """A run that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def exits(made: RunConfig, on_progress: OnProgress) -> dict[str, Any]:
    """A run whose process ends by itself."""
    os._exit(7)


WORKERS = {"killed": killed, "exits": exits}
