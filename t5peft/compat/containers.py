"""The control groups of Linux, by which containers limit their processes. Only the standard library, as it comes before torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""Where the control groups are mounted."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""The file that names the groups of this process."""
_MOUNTS = {"cpu": ("cpu", "cpu,cpuacct"), "memory": ("memory",)}


def groups(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, of version 1 and 2, with those above them.

    Args:
        controller: "cpu" or "memory".
        root: Where the control groups are mounted.
        membership: The file that names the groups of this process.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for base, name in ((root, ""), *((root / mount, controller) for mount in _MOUNTS[controller])):
        paths = [path for _, kinds, path in (line.split(":", 2) for line in lines) if name in kinds.split(",")]
        for path in ["/", *paths]:
            folder = base / path.strip("/")
            yield folder
            yield from (above for above in folder.parents if above.is_relative_to(base))


def free_memory_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Return the bytes that this process may still take within the limits of its container; None where there is no limit.

    Args:
        root: Where the control groups are mounted.
        membership: The file that names the groups of this process.
    """
    found = [free for folder in groups("memory", root, membership) if (free := _free(folder)) is not None]
    return min(found, default=None)


def _free(folder: Path) -> int | None:
    """Return what a control group leaves, with the files in its memory that the system drops when it needs room."""
    for limit, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(0, most - taken + int(statistics.get(dropped, 0)))
    return None
