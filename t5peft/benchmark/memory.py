"""Measure the memory of a run: that of this process while it trains.

On the CPU it is the resident set, which a thread samples. The peak is the kernel's own high-water mark where Linux lets a
process reset it. On CUDA it is what torch's allocator holds.
"""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

SAMPLE_SECONDS = 0.02
MMAP_THRESHOLD_BYTES = 1 << 20


def return_freed_memory(threshold_bytes: int = MMAP_THRESHOLD_BYTES) -> bool:
    """Make glibc return large tensors to the system when they are freed.

    By default glibc raises that limit as tensors are freed, and keeps the freed memory in holes. The resident set of a
    T5-small step then exceeds its live tensors by 30 %, by chance more in one method than in another.

    Args:
        threshold_bytes: Size from which tensors are returned.

    Returns:
        Whether glibc accepted it.
    """
    libc = _libc()
    return libc is not None and bool(libc.mallopt(-3, threshold_bytes))  # -3 is M_MMAP_THRESHOLD


def trim_heap() -> None:
    """Return the holes between smaller tensors too; they grow by some megabytes a step where lengths differ."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _libc() -> Any:
    """Load glibc; None on another system, whose allocator stays as it is."""
    if platform.system() != "Linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "malloc_trim") else None
    except OSError:  # a Linux without glibc
        return None


class MemoryMeter:
    """Measure peak and mean bytes between the start and the end of a ``with`` block, without the paused spans.

    What the paused spans left allocated (``left_bytes``) is subtracted. An evaluation of large batches leaves kernels and
    buffers, which training neither needs nor can free.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.peak_bytes = 0
        self.mean_bytes = 0
        self.left_bytes = 0
        self._before_pause: int | None = None
        self._samples = 0
        self._sum_bytes = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._paused = False
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._kernel_peak = False

    def now_bytes(self) -> int:
        """Return the bytes allocated at this moment."""
        if self.device == "cuda":
            return torch.cuda.memory_allocated()
        return self._process.memory_info().rss

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            if self._paused:
                continue
            held = self.now_bytes() - self.left_bytes
            self._samples += 1
            self._sum_bytes += held
            self.peak_bytes = max(self.peak_bytes, held)

    def __enter__(self) -> MemoryMeter:
        self.peak_bytes = self.mean_bytes = self.now_bytes()
        self.resume()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.pause()
        self._stop.set()
        self._thread.join()
        if self._samples:
            self.mean_bytes = self._sum_bytes // self._samples

    def pause(self) -> None:
        """Leave out what comes now, such as an evaluation."""
        if self._paused:
            return
        self._paused = True
        self._before_pause = self.now_bytes()
        if self.device == "cuda":
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated() - self.left_bytes)
        elif self._kernel_peak:
            self.peak_bytes = max(self.peak_bytes, _high_water_mark_bytes() - self.left_bytes)

    def resume(self) -> None:
        """Measure again."""
        if self._before_pause is not None:
            self.left_bytes += max(0, self.now_bytes() - self._before_pause)
            self._before_pause = None
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._kernel_peak = _reset_high_water_mark()
        self._paused = False


def _reset_high_water_mark() -> bool:
    """Reset the kernel's peak of this process; False if the system does not offer it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water_mark_bytes() > 0
    except OSError:
        return False


def _high_water_mark_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Stopwatch:
    """Count seconds since it was made, without the paused spans."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._paused_seconds = 0.0
        self._pause_start: float | None = None

    def pause(self) -> None:
        """Stop counting until ``resume``."""
        self._pause_start = time.perf_counter()

    def resume(self) -> None:
        """Count again."""
        if self._pause_start is not None:
            self._paused_seconds += time.perf_counter() - self._pause_start
            self._pause_start = None

    def seconds(self) -> float:
        """Return the seconds counted so far."""
        end = self._pause_start if self._pause_start is not None else time.perf_counter()
        return end - self._start - self._paused_seconds
