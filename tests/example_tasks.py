"""Tasks of labels and of free texts."""

from __future__ import annotations

import pytest

from t5peft.data import Task

SENTIMENT = Task(
    "sentiment",
    "sentence: {sentence}",
    "{label}",
    {"0": "negative", "1": "positive"},
    metrics=("accuracy",),
)
SUMMARY = Task("summary", "summarize: {text} end", "{title}", max_source_length=24, max_target_length=8)


# Wrong input, by its text


def text_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    return str(error.value)
