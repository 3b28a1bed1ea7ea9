"""Baselines: what a task gives away without training. A task on which no method beats them tells nothing about methods.

``constant`` gives the same answer to every example: the most frequent label, or the training answer that is most like the
others. ``copy`` gives the source back, cut to the task's longest answer; it is for free answers only. ``untuned`` is the
backbone as it is.
"""

from __future__ import annotations

from t5peft.data import Task

BASELINES = ("constant", "copy", "untuned")


def is_baseline(method: str) -> bool:
    """Return whether a method's name is that of a baseline."""
    return method in BASELINES


def baselines_of(task: Task) -> tuple[str, ...]:
    """Return the names of the baselines that a task has."""
    return tuple(name for name in BASELINES if name != "copy" or task.verbalizer is None)
