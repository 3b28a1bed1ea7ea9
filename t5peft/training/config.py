"""How a model is tuned, in one frozen dataclass; imports nothing heavy, so that the command line can show its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASK_FILE = "task.yaml"
"""The file beside an adapter with the task that it was trained on."""


@dataclass(frozen=True)
class TrainConfig:
    """The method, the backbone and the budget of a training run.

    Attributes:
        method: A key of ``METHODS``.
        backbone: ``"mini"``, a hub name or a folder.
        options: Arguments of the method's wrap, such as ``rank`` or ``length``.
        learning_rate: The peak learning rate; None takes the method's own.
        batch_size: Examples of one optimizer step on one device.
        epochs: Rounds over the training records.
        steps: Optimizer steps, instead of epochs.
        evaluations: How often at most validation is scored and a checkpoint saved; the best checkpoint is kept.
        patience: Stop after so many evaluations without a lower validation loss.
        weight_decay: None means 0, except for a search, which then searches it.
        label_smoothing: None means 0, except for a search, which then searches it.
        bf16: Compute in bfloat16.
        seed: Seed of weights, data order and dropout.
    """

    method: str = "lora"
    backbone: str = "mini"
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    batch_size: int = 16
    epochs: float = 3.0
    steps: int | None = None
    evaluations: int = 5
    patience: int | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise one ``ValueError`` for all numbers that are too small or too large."""
        numbers = ("learning_rate", "batch_size", "epochs", "steps", "evaluations", "patience")
        values = {name: getattr(self, name) for name in numbers}
        wrong = [f"{name}={value}" for name, value in values.items() if value is not None and not value > 0]
        problems = []
        if wrong:
            problems.append(
                f"Got {', '.join(wrong)}; expected numbers above 0 (learning_rate, steps and patience may be None)."
            )
        if not (self.weight_decay or 0) >= 0:
            problems.append(f"Got weight_decay={self.weight_decay}; expected at least 0.")
        if not 0 <= (self.label_smoothing or 0) < 1:
            problems.append(f"Got label_smoothing={self.label_smoothing}; expected at least 0 and less than 1.")
        if problems:
            raise ValueError(" ".join(problems))
