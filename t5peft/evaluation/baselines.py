"""Simple answers that a tuned model is compared with: the same answer to every record, and a copy of the source."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.evaluation.scores import EvaluationSet

CANDIDATES = 100
"""The most training answers that ``constant`` chooses from, and compares each of them with."""


def constant_answer(task: Task, train: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the answer that fits the training records best if it is given to all of them.

    Args:
        task: The task.
        train: Its training records.
        tokenizer: The tokenizer of the backbone.

    Returns:
        The most frequent label, or of 100 free answers the one with the highest score against the others.
    """
    records = task.with_names(train)
    if task.verbalizer is not None:
        return Counter(task.answers(record)[0] for record in records).most_common(1)[0][0]
    records = random.Random(0).sample(records, min(CANDIDATES, len(records)))
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
