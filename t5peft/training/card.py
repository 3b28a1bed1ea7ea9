"""The scores of a training run as its model card shows them: with intervals, and beside a simple answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters import CardScore, write_card
from t5peft.data import Task
from t5peft.evaluation import EvaluationResult, EvaluationSet
from t5peft.evaluation.baselines import constant_answer, copied_answers
from t5peft.training.config import TrainConfig
from t5peft.training.train import Splits, evaluated_task, scored_splits

RESAMPLES = 2000
Z = 1.96


@dataclass(frozen=True)
class RunScores:
    """The scores of a run.

    Attributes:
        scores: By split and name, as ``scores.json`` holds them.
        card: The leading score of each split, and the others of its task, for the card.
    """

    scores: dict[str, dict[str, float]]
    card: list[CardScore]


def score_run(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, task: Task, splits: Splits
) -> RunScores:
    """Score validation and test, and the simple answer on the same records.

    The simple answer is the most frequent label of the training records, or the text of the source where answers are free.

    Args:
        model: The tuned model.
        tokenizer: Its tokenizer.
        task: The task of the splits.
        splits: Records by split.

    Returns:
        The scores.
    """
    scores: dict[str, dict[str, float]] = {}
    card: list[CardScore] = []
    for split in scored_splits(splits):
        records = EvaluationSet(evaluated_task(task, splits[split]), splits[split], tokenizer)
        result = records.score(model)
        scores[split] = result.diagnostics | result.scores
        card += card_scores(split, records, result, splits["train"])
    return RunScores(scores, card)


def write_run_card(
    folder: str | Path, task: Task, splits: Splits, config: TrainConfig, scores: Sequence[CardScore]
) -> Path:
    """Write the card of an adapter that ``train`` has trained.

    Args:
        folder: The saved adapter.
        task: Its task.
        splits: The records of the run.
        config: How it was trained.
        scores: Of its splits.

    Returns:
        The card.
    """
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    options = ", ".join(f"{name}={value}" for name, value in config.options.items())
    training = {
        "trained on": f"{len(splits['train']):,} records, {length} of {config.batch_size}, seed {config.seed}",
        **({"options": options} if options else {}),
        **({"learning rate": f"{config.learning_rate:g}"} if config.learning_rate else {}),
    }
    return write_card(folder, task=task, scores=scores, baseline=simple_answer_of(task), training=training)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of ``values``: Wilson's for right and wrong answers, else the bootstrap over records.

    Args:
        values: One score per record.

    Returns:
        The lower and the upper end, the same in every call.
    """
    scores = np.asarray(values, dtype=float)
    if np.isin(scores, (0.0, 1.0)).all():  # of which the bootstrap gives a point where all are alike
        count, mean = len(scores), float(scores.mean())
        center = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
        half = Z / (1 + Z**2 / count) * float(np.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)))
        return max(0.0, center - half), min(1.0, center + half)
    drawn = scores[np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def simple_answer_of(task: Task) -> str:
    """Return the name of the simple answer that cards compare with."""
    return "copy of the source" if task.verbalizer is None else "most frequent label"


def card_scores(
    split: str, records: EvaluationSet, result: EvaluationResult, train: Sequence[Mapping[str, Any]]
) -> list[CardScore]:
    """Return the scores of a split for a card, beside those of the simple answer.

    The leading score has an interval where it is the mean of its examples.

    Args:
        split: The name of the split.
        records: Its records.
        result: The scores of the model on them.
        train: The training records.

    Returns:
        The leading score first.
    """
    if records.task.verbalizer is None:
        answers = copied_answers(records)
    else:
        answers = [constant_answer(records.task, train, records.tokenizer)] * len(records.texts)
    lead, baseline = records.lead, records.score_answers(answers).scores
    mean = float(np.mean(result.per_example))
    is_mean = result.example_metric == lead and abs(mean - result.scores[lead]) < 1e-3
    return [
        CardScore(
            split=split,
            metric=name,
            value=value,
            interval=interval(result.per_example) if name == lead and is_mean else None,
            baseline=baseline.get(name),
            records=len(result.per_example),
        )
        for name, value in sorted(result.scores.items(), key=lambda item: item[0] != lead)
        if "/" not in name  # of a single label
    ]
