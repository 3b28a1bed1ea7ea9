"""Trainers of tiny models with quiet arguments, and their losses and gradients."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from stacks import GradientRecorder, quiet_arguments, relative_difference
from tiny import tiny_records, tiny_tokenizer
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from t5peft import T5PeftTrainer, T5PeftTrainingArguments

# every kind of training: all weights, weights beside the model's, keys and values, input vectors, factors, modules
TUNED = ["full", "lora", "prefix", "prompt", "ia3", "pfeiffer"]


def arguments(folder: Path, **changes: Any) -> T5PeftTrainingArguments:
    settings: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 1}
    settings |= {
        "output_dir": str(folder),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return T5PeftTrainingArguments(**(settings | changes))


def seeded(make: Any) -> Any:
    torch.manual_seed(5)
    return make()


def losses_of(trainer: T5PeftTrainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


Kind = TypeVar("Kind", bound=Seq2SeqTrainer)

RECORDS = tiny_records(8)


def trainer_of(kind: type[Kind], model: Any, folder: Path, records: Any = RECORDS, **given: Any) -> Kind:
    """Either Trainer of the same arguments; plain transformers' with the collator that it needs."""
    names = set(inspect.signature(Seq2SeqTrainer.__init__).parameters)
    options = {name: given.pop(name) for name in list(given) if name in names}
    ours = issubclass(kind, T5PeftTrainer)
    args = T5PeftTrainingArguments if ours else Seq2SeqTrainingArguments
    if not ours:
        options.setdefault("data_collator", DataCollatorForSeq2Seq(tiny_tokenizer(), model=model))
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}
    return kind(
        model=model,
        args=args(**quiet_arguments(folder, settings | given)),
        train_dataset=records,
        processing_class=tiny_tokenizer(),
        **options,
    )


def losses_and_gradients(trainer: Seq2SeqTrainer) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], recorder.steps


def assert_same_training(ours: Seq2SeqTrainer, plain: Seq2SeqTrainer) -> None:
    (losses, gradients), (expected, wanted) = losses_and_gradients(ours), losses_and_gradients(plain)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(gradients) == len(wanted) == len(losses)
    for got, right in zip(gradients, wanted, strict=True):
        assert relative_difference(got, right) < 1e-4


def with_loss(loss: type, trainer: type[Kind]) -> type[Kind]:
    return type(f"{loss.__name__}{trainer.__name__}", (loss, trainer), {})
