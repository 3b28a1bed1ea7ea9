"""Scores of a task: target words by ranking, free answers by generation, and the loss, on whole lists of records.

``EvaluationSet`` tokenizes the records of a split once and scores any number of models on them, as a whole and per example;
``evaluate_task`` does it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import repeat
from operator import add
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from t5peft.data import checks
from t5peft.data.collate import bucket_by_length, collate
from t5peft.data.on_disk import gathered_values
from t5peft.data.sources import ROWS_IN_MEMORY
from t5peft.data.task import Task
from t5peft.evaluation.calibration import expected_calibration_error
from t5peft.evaluation.inference import Sources, ensure_language_model, evaluating
from t5peft.evaluation.metrics import METRICS, Metric, compute
from t5peft.evaluation.prediction import predict
from t5peft.evaluation.ranking import Ranking, classify, rank
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import target_loss

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on the records of a split.

    Attributes:
        scores: Every score of the task's metrics by name, with ``loss`` beside perplexity.
        diagnostics: ``expected_calibration_error`` for target words, ``truncated_fraction`` for generated answers.
        per_example: The leading score of each example; of many examples in a file.
        example_metric: The metric of ``per_example``: ``sentence_bleu``, say, where the leading score is one of a corpus.
    """

    scores: dict[str, float]
    diagnostics: dict[str, float]
    per_example: Sequence[float]
    example_metric: str


class EvaluationSet:
    """Records of one split, tokenized once and scored any number of times.

    Args:
        task: The task of the records.
        records: Records with the columns of the task's source and target.
        tokenizer: The tokenizer of the models.
        max_new_tokens: Maximum tokens of a generated answer; by default the longest target of the task.

    Attributes:
        features: Token ids of sources and targets.
        references: Accepted answers of each record; of many records in a file.

    Raises:
        ValueError: Records are missing, a metric is unknown, no record has the column of references, or a record cannot be
            tokenized.
    """

    def __init__(
        self,
        task: Task,
        records: Iterable[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int | None = None,
    ) -> None:
        self.task, self.tokenizer = task, tokenizer
        self._max_new_tokens = max_new_tokens or task.max_target_length
        self._records = task.with_names(records)
        check_metrics(task)
        checks.raise_all(task.name, checks.missing_references(self._records, task.references))
        tokens = task.tokenize(self._records, tokenizer)
        self.features: Sequence[dict[str, Any]] = tokens if len(tokens) >= ROWS_IN_MEMORY else tokens.to_list()
        self.references = gathered_values(task.answers(record, tokenizer) for record in self._records)

    @property
    def texts(self) -> list[str]:
        """The text of each record's source columns, without the template."""
        return list(self._texts())

    def _texts(self) -> Iterator[str]:
        return map(self.task.content, self._records)

    @property
    def lead(self) -> str:
        """Return the name of the score that leads tables and chooses learning rates."""
        return METRICS[self.task.metrics[0]].lead

    def score(self, model: nn.Module, *, tokens_per_batch: int = TOKENS_PER_BATCH) -> EvaluationResult:
        """Rank the target words where the task has some, else generate, and score the answers.

        Args:
            model: A T5, plain or wrapped.
            tokens_per_batch: Maximum tokens per batch, including padding.

        Returns:
            The scores.
        """
        predictions, diagnostics = self._predict(model, tokens_per_batch)
        loss = "perplexity" in self.task.metrics
        more = loss_and_perplexity(model, self.features, tokens_per_batch=tokens_per_batch) if loss else {}
        found = self.score_answers(predictions)
        return replace(found, scores=found.scores | more, diagnostics=diagnostics)

    def score_answers(self, predictions: Sequence[str] | Iterator[str]) -> EvaluationResult:
        """Score answers that are given, by all metrics but perplexity.

        Args:
            predictions: One answer per record, as ``Task.read`` returns it. Many answers of a generator take no memory.

        Returns:
            The scores.
        """
        answers = gathered_values(predictions) if isinstance(predictions, Iterator) else predictions
        scores: dict[str, float] = {}
        for name in self.task.metrics:
            if name != "perplexity":
                sources = gathered_values(self._texts()) if METRICS[name].needs_sources else ()
                scores |= _score(self.task, name, answers, self.references, sources)
        sentence = METRICS[self.task.metrics[0]].sentence
        example_metric = self.lead if sentence is None else f"sentence_{self.lead}"
        return EvaluationResult(scores, {}, self.score_examples(answers), example_metric)

    def _predict(self, model: nn.Module, tokens_per_batch: int) -> tuple[Sequence[str], dict[str, float]]:
        task = self.task
        if task.verbalizer is not None:
            found: list[torch.Tensor] = []
            best = gathered_values(self._ranked(model, tokens_per_batch, found))
            columns = (task.labels.index(task.read(task.target_text(record))) for record in self._records)
            labels = torch.from_numpy(np.fromiter(columns, np.int32, len(best)))
            return best, {"expected_calibration_error": expected_calibration_error(torch.cat(found), labels)}
        cut: list[float] = []
        texts = gathered_values(self._generated(model, tokens_per_batch, cut))
        return texts, {"truncated_fraction": reduce(add, cut) / len(texts)}

    def _ranked(self, model: nn.Module, tokens_per_batch: int, found: list[torch.Tensor]) -> Iterator[str]:
        """Yield the most probable label of each record, and add the probabilities to ``found``."""
        for sources in self._sources():
            ranking = rank_targets(model, self.tokenizer, self.task, sources, tokens_per_batch=tokens_per_batch)
            found.append(ranking.probabilities)
            yield from map(self.task.labels.__getitem__, ranking.best)

    def _generated(self, model: nn.Module, tokens_per_batch: int, cut: list[float]) -> Iterator[str]:
        """Yield the answer to each record, and add the numbers of those that were truncated to ``cut``."""
        for sources in self._sources():
            answers = predict(
                model,
                self.tokenizer,
                sources,
                max_new_tokens=self._max_new_tokens,
                num_beams=self.task.num_beams,
                tokens_per_batch=tokens_per_batch,
                keep=self.task.special_tokens(self.tokenizer),
            )
            cut.append(answers.truncated_fraction * len(answers))
            yield from (self.task.read(text, self.tokenizer) for text in answers)

    def _sources(self) -> Iterator[list[list[int]]]:
        """Yield the sources, so many that they take little memory and that batches can be of like lengths."""
        for start in range(0, len(self.features), ROWS_IN_MEMORY):
            rows: Any = self.features[start : start + ROWS_IN_MEMORY]
            yield rows["input_ids"] if isinstance(self.features, Dataset) else [row["input_ids"] for row in rows]

    def score_examples(self, predictions: Iterable[str]) -> Sequence[float]:
        """Score each example by the leading metric, which paired comparisons need.

        Of BLEU and GLEU it is the form for a sentence, whose average is not the score of the corpus.

        Args:
            predictions: One answer per record.

        Returns:
            One score per record, rounded to four digits.
        """
        metric = METRICS[self.task.metrics[0]]
        pairs = zip(predictions, self.references, strict=True)
        if self.task.verbalizer is not None or metric.name == "matthews":  # the correlation of one example is 0
            return gathered_values(1.0 if prediction in answers else 0.0 for prediction, answers in pairs)
        texts = self._texts() if metric.needs_sources else repeat("")
        sentence = metric.sentence or partial(_score_of_one, metric)
        rows = zip(pairs, texts, strict=False)
        scores = (sentence(p, r, text) if metric.needs_sources else sentence(p, r) for (p, r), text in rows)
        return gathered_values(round(score, 4) for score in scores)

    def loss(self, model: nn.Module) -> float:
        """Return the mean loss over all target tokens [nats].

        Args:
            model: A T5 with a language model head, plain or wrapped.

        Returns:
            The loss.
        """
        return loss_and_perplexity(model, self.features)["loss"]


def evaluate_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    records: Iterable[Mapping[str, Any]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> dict[str, float]:
    """Evaluate a model on records with ``task.metrics``.

    A task with a verbalizer is scored by ranking its words, or by the head of a ``T5ForSequenceClassification``, whose label IDs
    follow the order of the words. Any other task is scored by generation.

    Args:
        model: A T5, plain or wrapped.
        tokenizer: Its tokenizer.
        task: The task of the records.
        records: Records with the columns of the task's source and target.
        tokens_per_batch: Maximum tokens per batch, including padding.

    Returns:
        The scores of all metrics. Also ``expected_calibration_error`` for tasks with a verbalizer, ``truncated_fraction`` for
        generated answers, and ``loss`` with perplexity.

    Raises:
        ValueError: There are no records, a metric is unknown, no record has the column of references, or a record cannot be
            tokenized.
    """
    found = EvaluationSet(task, records, tokenizer).score(model, tokens_per_batch=tokens_per_batch)
    return found.diagnostics | found.scores


def _score_of_one(metric: Metric, prediction: str, answers: list[str], text: str | None = None) -> float:
    sources = None if text is None else [text]
    return compute(metric.name, [prediction], [answers], sources=sources)[metric.lead]


def check_metrics(task: Task) -> None:
    """Raise an error for unknown metrics of a task.

    Args:
        task: The task.

    Raises:
        ValueError: A metric is not in ``METRICS``.
    """
    if unknown := [name for name in task.metrics if name not in METRICS]:
        raise ValueError(f"Got metrics {unknown} of the task {task.name!r}; expected some of {', '.join(METRICS)}.")


def _score(
    task: Task, name: str, predictions: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]
) -> dict[str, float]:
    """Compute a metric; exact match compares labels as they are: -1 is not 1, and C# is not C++."""
    if name == "exact_match" and task.verbalizer is not None:
        return {name: compute("accuracy", predictions, references)["accuracy"]}
    return compute(name, predictions, references, sources=sources)


def rank_targets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    sources: Sources,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Ranking:
    """Rank the labels of a task with target words, by their words or by the model's own head.

    Args:
        model: A T5, plain or wrapped.
        tokenizer: Its tokenizer.
        task: A task with a verbalizer.
        sources: Texts, or token ids that end in ``</s>``.
        tokens_per_batch: Maximum tokens per batch, including padding.

    Returns:
        The ranking [N, C] of N sources and C labels.

    Raises:
        ValueError: The head has another number of classes than the task has labels.
    """
    t5 = unwrap_t5(model)
    if t5.can_generate():
        return rank(model, tokenizer, sources, task.candidates, tokens_per_batch=tokens_per_batch)
    if t5.config.num_labels != len(task.labels):
        raise ValueError(
            f"Got a model whose head has {t5.config.num_labels} classes; expected {len(task.labels)}, the target words of the task "
            f"{task.name!r}. Load the backbone with num_labels={len(task.labels)}."
        )
    return classify(model, tokenizer, sources, tokens_per_batch=tokens_per_batch)


def loss_and_perplexity(
    model: nn.Module, features: Sequence[Mapping[str, Any]], *, tokens_per_batch: int = TOKENS_PER_BATCH
) -> dict[str, float]:
    """Compute the mean loss over all target tokens [nats], whatever the batches, and its exponential.

    Args:
        model: A T5 with a language model head, plain or wrapped.
        features: ``input_ids`` and ``labels``, lists of ids without padding.
        tokens_per_batch: Maximum tokens per batch, including padding.

    Returns:
        ``loss`` and ``perplexity``.

    Raises:
        ValueError: The model has no language model head.
    """
    purpose = "as perplexity is that of its targets. Leave perplexity out of the task's metrics."
    ensure_language_model(unwrap_t5(model), purpose)
    total, tokens = 0.0, 0
    with evaluating(model) as t5:
        ids = {"pad_token_id": t5.config.pad_token_id, "decoder_start_token_id": t5.config.decoder_start_token_id}
        for batch in bucket_by_length(features, tokens_per_batch):
            inputs = collate([features[i] for i in batch], **ids)
            loss, count = target_loss(model, {name: tensor.to(t5.device) for name, tensor in inputs.items()})
            total, tokens = total + float(loss), tokens + count
    return {"loss": total / tokens, "perplexity": math.exp(total / tokens)}
