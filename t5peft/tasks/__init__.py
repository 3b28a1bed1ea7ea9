"""Tasks: templates and target words, records from files and the hub, mixtures, augmentation, and a lint for both."""

from __future__ import annotations

from .families import FAMILIES, family_task
from .files import load_aligned, load_records
from .registry import embedded_task, load_task, real_task, task_names
from .splits import hold_out
from .task import Encoded, Task

__all__ = [
    "FAMILIES",
    "Encoded",
    "Task",
    "embedded_task",
    "family_task",
    "hold_out",
    "load_aligned",
    "load_records",
    "load_task",
    "real_task",
    "task_names",
]
