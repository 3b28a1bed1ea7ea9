"""Threads that leave the cores to other programs. Only the standard library, so that it comes before torch.

The threads of OpenMP wait for each other in a loop, because a sleeping thread wakes up late: on a quiet machine that is the faster
way. On a busy one, each loop holds a core that another thread needs, and two runs at once take many times as long as one. The
variables that change it are read when torch is loaded. So ``prepare`` looks at the machine before that.

Settings of the user's (``VARIABLES``, ``COUNTS``) stay as they are.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from t5peft.compat.containers import MEMBERSHIP, ROOT, groups

logger = logging.getLogger("t5peft")

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that say how threads of OpenMP wait; each is the user's to set."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that say how many threads the libraries start."""


def available_cores(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Return the cores that this process may use: those of its affinity, and of the quota of its container.

    Args:
        root: Where the control groups are mounted.
        membership: The file that names the groups of this process.

    Returns:
        At least 1. A quota of 1.5 cores counts as 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in groups("cpu", root, membership) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


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
    """Return whether other programs keep half of the cores or more busy.

    Args:
        load: Threads that run beside this one; None asks the system for those of this moment. The average of the last minute
            would count programs that have ended.
    """
    if load is None:
        load = _running_now()
    return load >= (os.cpu_count() or 1) / 2


def _running_now(path: Path = Path("/proc/loadavg")) -> float:
    """Return how many threads run beside this one: the median of three looks, which take 10 ms."""
    looks = []
    for _ in range(3):
        try:
            looks.append(int(path.read_text().split()[3].partition("/")[0]) - 1)
        except (OSError, ValueError, IndexError):  # not a Linux
            return 0.0
        time.sleep(0.005)
    return sorted(looks)[1]


def settings(environment: Mapping[str, str], *, cores: int, loaded: bool) -> dict[str, str]:
    """Return the variables to set before torch is loaded.

    Args:
        environment: The variables that are set. None of them is changed.
        cores: The cores that there are for this process.
        loaded: Whether other programs keep the cores busy.

    Returns:
        The new variables. OpenMP knows the affinity, but not the quota of a container.
    """
    found = {name: str(cores) for name in COUNTS if name not in environment} if cores < (os.cpu_count() or 1) else {}
    if loaded and not any(name in environment for name in VARIABLES):
        found |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    return found


def prepare() -> None:
    """Set how many threads the libraries start and how they wait; call it before torch is loaded."""
    os.environ.update(settings(os.environ, cores=available_cores(), loaded=is_loaded()))


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
