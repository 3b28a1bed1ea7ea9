"""Baselines: what a task gives away without training. A task on which no method beats them tells nothing about methods.

``constant`` gives the same answer to every example: the most frequent label, or the training answer that is most like the
others. ``copy`` gives the source back, cut to the task's longest answer; it is for free answers only. ``untuned`` is the
backbone as it is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.evaluation import EvaluationSet

BASELINES = ("constant", "copy", "untuned")
CANDIDATES = 100
"""The most training answers that ``constant`` chooses from, and compares each of them with."""


def is_baseline(method: str) -> bool:
    """Return whether a method's name is that of a baseline."""
    return method in BASELINES


def baselines_of(task: Task) -> tuple[str, ...]:
    """Return the names of the baselines that a task has."""
    return tuple(name for name in BASELINES if name != "copy" or task.verbalizer is None)


def constant_answer(task: Task, train: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the answer that fits the training records best if it is given to all of them.

    Args:
        task: The task.
        train: Its training records.
        tokenizer: The tokenizer of the backbone.

    Returns:
        The most frequent label, or of 100 free answers the one with the highest score against the others.
    """
    records = random.Random(0).sample(train, min(CANDIDATES, len(train))) if task.verbalizer is None else train
    if task.verbalizer is not None:
        return Counter(task.answers(record)[0] for record in records).most_common(1)[0][0]
    examples = EvaluationSet(replace(task, references=None), records, tokenizer)  # which only test records have
    candidates = dict.fromkeys(answers[0] for answers in examples.references)
    lead = examples.lead
    return max(candidates, key=lambda answer: examples.score_answers([answer] * len(records)).scores[lead])


def copied_answers(test: EvaluationSet) -> list[str]:
    """Return the source of each record without the template, cut to the longest answer that the task allows.

    Args:
        test: The records.
    """
    tokenizer, most = test.tokenizer, test.task.max_target_length
    ids = tokenizer(test.texts, truncation=True, max_length=most)["input_ids"]
    return [test.task.read(text, tokenizer) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
