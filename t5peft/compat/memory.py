"""The memory that is free on a device."""

from __future__ import annotations

import psutil
import torch

from t5peft.compat import containers


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors can take on ``device``, and on a CPU those of the swap too, before one fails."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return available_bytes(device) + cached
    return _within_container(psutil.virtual_memory().available + psutil.swap_memory().free)


def available_bytes(device: torch.device) -> int:
    """Return the bytes of the memory of ``device`` that nothing holds, on a CPU within the limits of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _within_container(psutil.virtual_memory().available)


def _within_container(free: int) -> int:
    left = containers.free_memory_bytes()
    return free if left is None else min(free, left)
