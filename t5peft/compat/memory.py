"""The memory that is free on a device."""

from __future__ import annotations

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors can take on ``device``; on a CPU those of the swap too."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)
