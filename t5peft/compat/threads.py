"""Threads that leave the cores to other programs when these need them. Only the standard library, so that it comes before torch.

The threads of OpenMP wait for each other in a loop, because a sleeping thread wakes up late: on a quiet machine that is the faster
way. On a busy one, each loop holds a core that another thread needs, and two runs at once take many times as long as one. GNU's
OpenMP, which torch brings on Linux, shortens the loops from 300,000 turns to 100 as soon as the process has more OpenMP threads
than cores. ``watch`` uses that. It measures how long the threads of this process wait for a core. While they do, one more thread
of Python keeps a team of its own, which makes the threads more than the cores. The number of threads that compute, and so every
result, stays the same.

Settings of the user's (``VARIABLES``) turn all of this off.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("t5peft")

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that say how threads of OpenMP wait; each is the user's to set."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that say how many threads the libraries start."""

_SECONDS = 0.25
_CROWDED, _ALONE = 0.15, 0.04  # shares of the time that threads wait for a core
_QUIET_LOOKS = 6  # looks without a neighbor before threads wait in loops again
_TASKS = Path("/proc/self/task")

Times = dict[str, tuple[int, int]]
"""Nanoseconds that each thread ran, and waited for a core."""


def available_cores(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the cores that this process may use: those of its affinity, and of the quota of its container.

    Args:
        root: Where the control groups are mounted.
        membership: The file that names the groups of this process.

    Returns:
        At least 1. A quota of 1.5 cores counts as 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, membership) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _groups(root: Path, membership: Path) -> Iterable[Path]:
    """Return the folders of the control groups that limit the processor, of version 1 and 2, with those above them."""
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for base, name in ((root, ""), (root / "cpu", "cpu"), (root / "cpu,cpuacct", "cpu")):
        paths = [path for _, kinds, path in (line.split(":", 2) for line in lines) if name in kinds.split(",")]
        for path in ["/", *paths]:
            folder = base / path.strip("/")
            yield folder
            yield from (above for above in folder.parents if above.is_relative_to(base))


def _quota(folder: Path) -> float | None:
    """Return the cores that a control group allows, or None for all."""
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(limit) / int(period) if limit.isdecimal() else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def is_loaded(load: float | None = None) -> bool:
    """Return whether other programs keep the cores busy.

    Args:
        load: Average of the programs that run, over a minute; None asks the system.
    """
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load >= (os.cpu_count() or 1)


def settings(environment: Mapping[str, str], *, cores: int, loaded: bool, watched: bool) -> dict[str, str]:
    """Return the variables to set before torch is loaded.

    Args:
        environment: The variables that are set. None of them is changed.
        cores: The cores that there are for this process.
        loaded: Whether other programs keep the cores busy.
        watched: Whether ``watch`` works here.

    Returns:
        The new variables. OpenMP knows the affinity, but not the quota of a container.
    """
    found = {name: str(cores) for name in COUNTS if name not in environment} if cores < (os.cpu_count() or 1) else {}
    if loaded and not watched and not any(name in environment for name in VARIABLES):
        found |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    return found


def can_watch() -> bool:
    """Return whether the system tells how long threads wait for a core, as Linux does."""
    return bool(_times())


def prepare() -> None:
    """Set how many threads the libraries start and how they wait; call it before torch is loaded."""
    os.environ.update(settings(os.environ, cores=available_cores(), loaded=is_loaded(), watched=can_watch()))
    watch()


def warn_if_late() -> None:
    """Log one line where torch is loaded already, on a busy machine, with threads that wait in loops."""
    torch = sys.modules.get("torch")
    if torch is None or any(name in os.environ for name in VARIABLES) or not is_loaded():
        return
    if hasattr(torch, "get_num_threads") and torch.get_num_threads() > 1:
        logger.warning(
            "The machine is busy, and torch was imported before t5peft: its threads wait in loops on cores that others need. "
            "Start Python with OMP_WAIT_POLICY=PASSIVE, or with OMP_NUM_THREADS=1."
        )


def watch() -> None:
    """Let the threads of this process wait in long loops only while no other program needs the cores.

    One call in a process is enough; later ones do nothing.
    """
    global _watcher
    with _guard:
        if _watcher is None and not any(name in os.environ for name in VARIABLES) and can_watch():
            _watcher = Watcher()
            threading.Thread(target=_watcher.run, name="t5peft-threads", daemon=True).start()


class Watcher:
    """Decide from the times of the threads whether they wait in short loops, and make them do so.

    Attributes:
        shortened: Whether the loops are short now.
    """

    def __init__(self) -> None:
        self.shortened = False
        self._quiet_looks = 0
        self._times: Times = {}
        self._release = threading.Event()

    def run(self) -> None:
        """Look at the times of the threads for as long as the process lives."""
        self._times = _times()
        while not threading.Event().wait(_SECONDS):
            if "torch" in sys.modules:
                self.look(_times())

    def look(self, times: Times) -> None:
        """Take one more measurement, and act on it.

        Args:
            times: Of each thread.
        """
        ran, waited = _since(self._times, times)
        self._times = times
        if ran + waited < 0.2e9 * _SECONDS:  # the process is at rest
            return
        share = waited / (ran + waited)
        self._quiet_looks = self._quiet_looks + 1 if share < _ALONE else 0
        if share > _CROWDED and not self.shortened:
            self._shorten()
        elif self.shortened and self._quiet_looks >= _QUIET_LOOKS:
            self._lengthen()

    def _shorten(self) -> None:
        self.shortened, self._release = True, threading.Event()
        threading.Thread(target=_keep_a_team, args=(self._release,), name="t5peft-team", daemon=True).start()

    def _lengthen(self) -> None:
        self.shortened = False
        self._release.set()


def _keep_a_team(release: threading.Event) -> None:
    """Compute once in parallel, so that OpenMP makes a team of threads for this one, and keep it until ``release``."""
    torch = sys.modules["torch"]
    if hasattr(torch, "zeros"):  # else it is being imported
        torch.zeros(1 << 17).add_(1)
        release.wait()


def _times() -> Times:
    found: Times = {}
    with suppress(OSError):
        for task in os.listdir(_TASKS):
            with suppress(OSError, ValueError):
                ran, waited, _ = (_TASKS / task / "schedstat").read_text().split()
                found[task] = int(ran), int(waited)
    return found


def _since(before: Times, after: Times) -> tuple[int, int]:
    """Return the nanoseconds that all threads ran and waited between two measurements."""
    pairs = [(before.get(task, (0, 0)), times) for task, times in after.items()]
    return sum(now[0] - then[0] for then, now in pairs), sum(now[1] - then[1] for then, now in pairs)


_watcher: Watcher | None = None
_guard = threading.Lock()


def _forget() -> None:
    global _watcher, _guard
    _watcher, _guard = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # a child has no thread of its parent
