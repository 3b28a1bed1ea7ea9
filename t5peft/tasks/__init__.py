"""Tasks: templates and target words, records from files and the hub, mixtures, augmentation, and a lint for both."""

from __future__ import annotations

from .augmentation import Augmented, augment
from .back_translation import BackTranslation
from .families import FAMILIES, family_task
from .files import load_aligned, load_records
from .lint import LintReport, lint
from .mixtures import Mixture, mixture_rates
from .registry import embedded_task, load_task, real_task, task_names
from .rewording import Synonyms, Thesaurus, WordDropout, WordSwap
from .splits import hold_out
from .task import Encoded, Task

__all__ = [
    "FAMILIES",
    "Augmented",
    "BackTranslation",
    "Encoded",
    "LintReport",
    "Mixture",
    "Synonyms",
    "Task",
    "Thesaurus",
    "WordDropout",
    "WordSwap",
    "augment",
    "embedded_task",
    "family_task",
    "hold_out",
    "lint",
    "load_aligned",
    "load_records",
    "load_task",
    "mixture_rates",
    "real_task",
    "task_names",
]
