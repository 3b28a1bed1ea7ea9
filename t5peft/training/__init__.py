"""Training on transformers' Trainer and Accelerate: exact losses, micro-batches by length, clear progress."""

from t5peft.training.arguments import T5PeftTrainingArguments
from t5peft.training.trainer import T5PeftTrainer

__all__ = ["T5PeftTrainer", "T5PeftTrainingArguments"]
