"""Tasks: templates and verbalizers, records from files and the hub, mixtures, augmentation, and a tokenizer lint."""

from __future__ import annotations

from t5peft.data.augmentation import Augmented as Augmented
from t5peft.data.augmentation import augment as augment
from t5peft.data.back_translation import BackTranslation as BackTranslation
from t5peft.data.files import load_aligned as load_aligned
from t5peft.data.files import load_records as load_records
from t5peft.data.lint import LintReport as LintReport
from t5peft.data.lint import lint as lint
from t5peft.data.mixtures import Mixture as Mixture
from t5peft.data.mixtures import mixture_rates as mixture_rates
from t5peft.data.presets import PRESETS as PRESETS
from t5peft.data.presets import preset_task as preset_task
from t5peft.data.registry import embedded_task as embedded_task
from t5peft.data.registry import load_task as load_task
from t5peft.data.registry import real_task as real_task
from t5peft.data.registry import task_names as task_names
from t5peft.data.rewording import Synonyms as Synonyms
from t5peft.data.rewording import Thesaurus as Thesaurus
from t5peft.data.rewording import WordDropout as WordDropout
from t5peft.data.rewording import WordSwap as WordSwap
from t5peft.data.splits import hold_out as hold_out
from t5peft.data.task import Encoded as Encoded
from t5peft.data.task import Task as Task
from t5peft.data.words import tokenize_words as tokenize_words
