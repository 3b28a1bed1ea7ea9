"""The memory that is free on a device."""

from __future__ import annotations

import psutil
import torch

from t5peft.compat import containers


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors can take on ``device``; on a CPU those of the swap too."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return available_bytes(with_swap=True)


def available_bytes(*, with_swap: bool = False) -> int:
    """Return the bytes of the machine's memory that new tensors can take, within the limits of its container.

    Args:
        with_swap: Count the swap of the machine too.
    """
    free = psutil.virtual_memory().available + (psutil.swap_memory().free if with_swap else 0)
    left = containers.free_memory_bytes()
    return int(free if left is None else min(free, left))
