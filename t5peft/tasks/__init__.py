"""Tasks: templates and target words, records from files and the hub, mixtures, augmentation, and a lint for both."""

from __future__ import annotations

from .files import load_aligned, load_records
from .task import Encoded, Task

__all__ = ["Encoded", "Task", "load_aligned", "load_records"]
