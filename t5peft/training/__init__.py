"""Training on transformers' Trainer and Accelerate: exact losses, micro-batches by length, clear progress."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["T5PeftTrainer", "T5PeftTrainingArguments"]
_HOMES = {"T5PeftTrainer": "t5peft.training.trainer", "T5PeftTrainingArguments": "t5peft.training.arguments"}

if TYPE_CHECKING:  # what an editor and a type checker see
    from t5peft.training.arguments import T5PeftTrainingArguments as T5PeftTrainingArguments
    from t5peft.training.trainer import T5PeftTrainer as T5PeftTrainer
else:

    def __getattr__(name: str) -> Any:
        # Imported at first use: the command line reads ``t5peft.training.config`` without torch.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(import_module(_HOMES[name]), name)
