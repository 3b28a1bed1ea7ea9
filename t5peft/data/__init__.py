"""Tasks: templates and verbalizers, records from files and the hub, mixtures, augmentation, and a tokenizer lint."""

from __future__ import annotations

from t5peft.data.augmentation import Augmented, augment
from t5peft.data.back_translation import BackTranslation
from t5peft.data.files import load_aligned, load_records
from t5peft.data.lint import LintReport, lint
from t5peft.data.mixtures import Mixture, mixture_rates
from t5peft.data.presets import PRESETS, preset_task
from t5peft.data.registry import embedded_task, load_task, real_task, task_names
from t5peft.data.rewording import Synonyms, Thesaurus, WordDropout, WordSwap
from t5peft.data.splits import hold_out
from t5peft.data.task import Encoded, Task
from t5peft.data.words import tokenize_words

__all__ = [
    "PRESETS",
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
    "hold_out",
    "lint",
    "load_aligned",
    "load_records",
    "load_task",
    "mixture_rates",
    "preset_task",
    "real_task",
    "task_names",
    "tokenize_words",
]
