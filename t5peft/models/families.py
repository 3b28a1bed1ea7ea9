"""The families of T5 that are served."""

from __future__ import annotations

FAMILIES = ("t5", "mt5", "umt5")
