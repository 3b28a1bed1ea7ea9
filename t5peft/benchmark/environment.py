"""The hardware and the software of a run, as a record holds them."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("t5peft", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")


def environment(device: str) -> dict[str, Any]:
    """Return ``commit``, ``versions`` and ``machine`` of a record.

    Args:
        device: "cpu" or "cuda".
    """
    return {"commit": commit(), "versions": versions(), "machine": _machine(device)}


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter for a result; None for those not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Return the commit of the source tree, with "+" if the source was changed; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "t5peft")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else psutil.virtual_memory().total
    return {
        "device": device,
        "name": name,
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name", platform.machine())
    if "cpu family" in found:  # clouds often leave the rest out of the name
        name += f" (family {found['cpu family']}, model {found['model']})"
    limited = "limited to " if "ATEN_CPU_CAPABILITY" in os.environ else ""  # as older processors are stood in for
    return f"{name}, {limited}{torch.backends.cpu.get_cpu_capability()}"
