"""Bytes and seconds as text."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9}


def parse_bytes(text: str) -> int:
    """Return the bytes of ``24GB`` or ``16 GiB``.

    Args:
        text: A number with its unit.

    Raises:
        ValueError: The text is not an amount of memory, or less than a byte.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    amount = round(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if not amount:
        raise ValueError(f"Got {text!r}; expected a number with MB, GB, MiB or GiB, such as 24GB.")
    return amount


def bytes_text(amount: float) -> str:
    """Return ``792 kB``, ``149 MB`` or ``1.62 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            value = amount / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{amount:.0f} B"


def seconds_text(seconds: float) -> str:
    """Return ``12 ms``, ``0.31 s`` or ``48 s``."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
