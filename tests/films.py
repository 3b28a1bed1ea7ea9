"""A task on films, its records, and a config that trains in a moment."""

from __future__ import annotations

from t5peft.data import Task
from t5peft.training.train import TrainConfig

TASK = Task("film", "film: {text}", "{label}", {"0": "bad", "1": "good"}, metrics=("accuracy",))


def records(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"{'yes' if i % 2 else 'no'} {start + i}", "label": str(i % 2)} for i in range(count)]


def config(backbone: str) -> TrainConfig:
    return TrainConfig(backbone=backbone, steps=2, batch_size=4, evaluations=2, learning_rate=1e-2)
