"""A whole task at once: predictions of a model for records, and the scores that the task names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from t5peft.data import checks
from t5peft.data.collate import bucket_by_length, collate
from t5peft.data.task import Task
from t5peft.evaluation.calibration import expected_calibration_error
from t5peft.evaluation.inference import Sources, evaluating
from t5peft.evaluation.metrics import METRICS, compute
from t5peft.evaluation.prediction import predict
from t5peft.evaluation.ranking import Ranking, classify, rank
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import target_loss


def evaluate_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    records: Iterable[Mapping[str, Any]],
    *,
    tokens_per_batch: int = 8192,
) -> dict[str, float]:
    """The scores of `task.metrics` on records.

    A task with target words is scored by ranking them, or by the head of a `T5ForSequenceClassification`, whose label ids
    are the target words in their order; any other by generation.

    Returns:
        Every score of every metric, and beside them `expected_calibration_error` for target words, `truncated_fraction` for
        generated answers, and `loss` with perplexity.

    Raises:
        ValueError: no records, an unknown metric, a column of references that no record has, or what `Task.tokenize` says of them.
    """
    records = list(records)
    check_metrics(task)
    checks.raise_all(task.name, checks.missing_references(records, task.references))
    features = task.tokenize(records, tokenizer).to_list()
    sources = [feature["input_ids"] for feature in features]
    scores: dict[str, float] = {}
    if task.verbalizer is not None:
        ranking = rank_targets(model, tokenizer, task, sources, tokens_per_batch=tokens_per_batch)
        predictions = [task.labels[i] for i in ranking.best]
        right = [task.labels.index(task.read(task.target_text(record))) for record in records]
        scores["expected_calibration_error"] = expected_calibration_error(ranking.probabilities, right)
    else:
        answers = predict(
            model,
            tokenizer,
            sources,
            max_new_tokens=task.max_target_length,
            num_beams=task.num_beams,
            tokens_per_batch=tokens_per_batch,
            keep=task.special_tokens(tokenizer),
        )
        predictions = [task.read(text, tokenizer) for text in answers]
        scores["truncated_fraction"] = answers.truncated_fraction
    references = [task.answers(record, tokenizer) for record in records]
    texts = [task.content(record) for record in records]
    for name in task.metrics:
        if name == "perplexity":
            scores |= loss_and_perplexity(model, features, tokens_per_batch=tokens_per_batch)
        else:
            scores |= score_of(task, name, predictions, references, texts)
    return scores


def check_metrics(task: Task) -> None:
    """Raise a ValueError for all metrics of the task that there are not."""
    unknown = [name for name in task.metrics if name not in METRICS]
    if unknown:
        raise ValueError(
            f"task {task.name!r} names metrics that there are not: {unknown}; there are {', '.join(METRICS)}"
        )


def score_of(
    task: Task, name: str, predictions: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]
) -> dict[str, float]:
    """`compute`, but for exact match of labels, which are compared as they are: -1 is not 1, and C# is not C++."""
    if name == "exact_match" and task.verbalizer is not None:
        return {name: compute("accuracy", predictions, references)["accuracy"]}
    return compute(name, predictions, references, sources=sources)


def rank_targets(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: Task, sources: Sources, *, tokens_per_batch: int = 8192
) -> Ranking:
    """The ranking [N, C] of the labels of a task with target words, by their words or by the model's own head.

    Raises:
        ValueError: a head with another number of classes than the task has labels.
    """
    t5 = unwrap_t5(model)
    if t5.can_generate():
        return rank(model, tokenizer, sources, task.candidates, tokens_per_batch=tokens_per_batch)
    if t5.config.num_labels != len(task.labels):
        raise ValueError(
            f"the head of the model has {t5.config.num_labels} classes, task {task.name!r} has {len(task.labels)} target "
            f"words; load the backbone with num_labels={len(task.labels)}"
        )
    return classify(model, tokenizer, sources, tokens_per_batch=tokens_per_batch)


def loss_and_perplexity(
    model: nn.Module, features: Sequence[Mapping[str, Any]], *, tokens_per_batch: int = 8192
) -> dict[str, float]:
    """Mean loss over all target tokens [nats], whatever the batches, and its exponential.

    Args:
        features: `input_ids` and `labels`, lists of ids without padding.

    Raises:
        ValueError: a model without a language model head.
    """
    if not unwrap_t5(model).can_generate():
        raise ValueError(
            f"{type(unwrap_t5(model)).__name__} has no language model head, so that its targets have no perplexity; leave "
            "perplexity out of the task's metrics"
        )
    total, tokens = 0.0, 0
    with evaluating(model) as t5:
        ids = {"pad_token_id": t5.config.pad_token_id, "decoder_start_token_id": t5.config.decoder_start_token_id}
        for batch in bucket_by_length(features, tokens_per_batch):
            inputs = collate([features[i] for i in batch], **ids)
            loss, count = target_loss(model, {name: tensor.to(t5.device) for name, tensor in inputs.items()})
            total, tokens = total + float(loss), tokens + count
    return {"loss": total / tokens, "perplexity": math.exp(total / tokens)}
