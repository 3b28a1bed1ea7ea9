"""How a model is tuned, in one frozen dataclass; imports nothing heavy, so that the command line can show its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TASK_FILE = "task.yaml"
"""The file beside an adapter with the task that it was trained on."""

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]
Optimizer = Literal["adamw", "adafactor", "adamw_8bit", "sgd"]


@dataclass(frozen=True)
class TrainConfig:
    """The method, the backbone and the budget of a training run.

    The command line has one option per attribute and shows the text below as its help.

    Attributes:
        method: The tuning method, one of ``METHODS``.
        backbone: ``mini``, a hub name such as google/flan-t5-base, or a folder.
        options: Arguments of the method's wrap, such as ``rank`` or ``length``.
        dtype: Type of the weights; by default float32, or bfloat16 for a quantized backbone if the device is fast at it.
        quantize: Load the weights of the backbone in 8 or 4 bits; by default as the method requires.
        learning_rate: The peak learning rate; by default the method's.
        scheduler: The schedule of the learning rate after the warm-up.
        warmup: Steps over which the learning rate rises from 0; below 1, a fraction of all steps.
        optimizer: The optimizer of the trained weights.
        weight_decay: Weight decay; by default 0, except in a search, which varies it.
        label_smoothing: Label smoothing; by default 0, except in a search, which varies it.
        max_grad_norm: The norm to which gradients are clipped; 0 turns clipping off.
        batch_size: Examples per device in a batch; with gradient accumulation, an optimizer step has several batches.
        gradient_accumulation: Batches per optimizer step.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        epochs: Passes over the training records.
        steps: Optimizer steps, instead of epochs.
        evaluations: Maximum number of evaluations on validation, each with a checkpoint; the best checkpoint is kept.
        best_metric: How to choose the best checkpoint on validation: loss, or a metric of the task such as accuracy.
        patience: Stop after this many evaluations without improvement; by default never.
        bf16: Compute in bfloat16, with weights in float32.
        seed: Seed of weights, data order and dropout.
        training_options: Any other arguments of ``T5PeftTrainingArguments``.
    """

    method: str = "lora"
    backbone: str = "mini"
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] | None = None
    quantize: Literal["int8", "nf4"] | None = None
    learning_rate: float | None = None
    scheduler: Scheduler = "linear"
    warmup: float = 0.0
    optimizer: Optimizer = "adamw"
    weight_decay: float | None = None
    label_smoothing: float | None = None
    max_grad_norm: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    epochs: float = 3.0
    steps: int | None = None
    evaluations: int = 5
    best_metric: str = "loss"
    patience: int | None = None
    bf16: bool = False
    seed: int = 0
    training_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise one ``ValueError`` for all numbers that are too small or too large."""
        numbers = (
            "learning_rate",
            "batch_size",
            "gradient_accumulation",
            "epochs",
            "steps",
            "evaluations",
            "patience",
        )
        values = {name: getattr(self, name) for name in numbers}
        wrong = [f"{name}={value}" for name, value in values.items() if value is not None and not value > 0]
        problems = []
        if wrong:
            problems.append(
                f"Got {', '.join(wrong)}; expected numbers above 0 (learning_rate, steps and patience may be None)."
            )
        for name in ("weight_decay", "warmup", "max_grad_norm"):
            if not (getattr(self, name) or 0) >= 0:
                problems.append(f"Got {name}={getattr(self, name)}; expected at least 0.")
        if not 0 <= (self.label_smoothing or 0) < 1:
            problems.append(f"Got label_smoothing={self.label_smoothing}; expected at least 0 and less than 1.")
        if not 0 <= self.seed < 2**32:
            problems.append(f"Got seed={self.seed}; expected a whole number from 0 to {2**32 - 1}.")
        if problems:
            raise ValueError(" ".join(problems))
