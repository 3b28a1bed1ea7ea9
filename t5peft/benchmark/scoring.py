"""Scores of a split, and of each example in it, which the paired comparisons need.

Letters: B rows, T target tokens, V vocabulary, C candidates, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.data.collate import collate
from t5peft.evaluation import METRICS, compute, loss_and_perplexity, predict, rank
from t5peft.evaluation.scores import score_of
from t5peft.methods.base import has_peft_prompt
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import IGNORED_LABEL


@dataclass(frozen=True)
class Scored:
    """Every score of the task's metrics over a split, and the leading one of each example."""

    scores: dict[str, float]
    per_example: list[float]
    example_metric: str
    """What `per_example` holds: `sentence_bleu`, say, where the leading score itself is one of a corpus."""


class Split:
    """Records of one split, tokenised once, to be scored any number of times."""

    def __init__(self, task: Task, records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.features: list[dict[str, Any]] = task.tokenize(records, tokenizer).to_list()
        self.references = [task.answers(record, tokenizer) for record in records]
        self.texts = [task.content(record) for record in records]

    def score(self, model: nn.Module) -> Scored:
        """Ranks the target words where there are some, else generates."""
        sources = [feature["input_ids"] for feature in self.features]
        if self.task.verbalizer is not None:
            best = _best_candidates(model, self.tokenizer, sources, self.task.candidates)
            predictions = [self.task.labels[i] for i in best]
        else:
            answers = predict(
                model,
                self.tokenizer,
                sources,
                max_new_tokens=self.task.max_target_length,
                num_beams=self.task.num_beams,
                keep=self.task.special_tokens(self.tokenizer),
            )
            predictions = [self.task.read(text, self.tokenizer) for text in answers]
        scores: dict[str, float] = {}
        for name in self.task.metrics:
            if name == "perplexity":
                loss = self.loss(model)
                scores |= {"loss": loss, "perplexity": math.exp(loss)}
            else:
                scores |= score_of(self.task, name, predictions, self.references, self.texts)
        metric = METRICS[self.task.metrics[0]]
        example_metric = metric.lead if metric.sentence is None else f"sentence_{metric.lead}"
        return Scored(scores, [round(score, 4) for score in self._lead_by_example(predictions)], example_metric)

    def _lead_by_example(self, predictions: list[str]) -> list[float]:
        """The leading metric of each example alone; for BLEU and GLEU, in a sentence's form, its mean is not the score."""
        metric = METRICS[self.task.metrics[0]]
        if self.task.verbalizer is not None or metric.name == "matthews":  # which is 0 for any example alone
            return [float(p in r) for p, r in zip(predictions, self.references, strict=True)]
        rows = zip(predictions, self.references, self.texts, strict=True)
        if metric.sentence is not None:
            return [metric.sentence(p, r, t) if metric.needs_sources else metric.sentence(p, r) for p, r, t in rows]
        return [compute(metric.name, [p], [r], sources=[t])[metric.lead] for p, r, t in rows]

    def loss(self, model: nn.Module) -> float:
        """Mean loss over all target tokens."""
        if not _is_peers_prompt_learning(model):
            return loss_and_perplexity(model, self.features)["loss"]
        total, tokens = 0.0, 0
        for start in range(0, len(self.features), 32):
            batch = _collated(model, self.features[start : start + 32])
            total -= float(_target_log_probabilities(model, batch).sum())
            tokens += int((batch["labels"] != IGNORED_LABEL).sum())
        return total / tokens

    @property
    def lead(self) -> str:
        """The key of the score that leads tables and chooses learning rates."""
        return METRICS[self.task.metrics[0]].lead


def _is_peers_prompt_learning(model: nn.Module) -> bool:
    """peft's own prefix and prompt tuning live in `PeftModel.forward`, not inside the T5 as everything else does."""
    return has_peft_prompt(model)


def _best_candidates(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, sources: list[list[int]], candidates: Sequence[str]
) -> list[int]:
    """The most probable candidate of each source [N]."""
    if not _is_peers_prompt_learning(model):
        return rank(model, tokenizer, sources, candidates).best
    targets = tokenizer(list(candidates)).input_ids
    scores = torch.empty(len(sources), len(targets))
    for start in range(0, len(sources), 32):
        rows = sources[start : start + 32]
        for column, target in enumerate(targets):
            batch = _collated(model, [{"input_ids": row, "labels": target} for row in rows])
            scores[start : start + len(rows), column] = _target_log_probabilities(model, batch)
    best: list[int] = scores.argmax(dim=1).tolist()
    return best


def _collated(model: nn.Module, features: list[dict[str, Any]]) -> dict[str, Tensor]:
    t5 = unwrap_t5(model)
    ids = {"pad_token_id": t5.config.pad_token_id, "decoder_start_token_id": t5.config.decoder_start_token_id}
    return {name: tensor.to(t5.device) for name, tensor in collate(features, **ids).items()}


def _target_log_probabilities(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log-probability of each row's target [B], by the whole forward pass."""
    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
    model.train(was_training)
    found = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return found.masked_fill(labels == IGNORED_LABEL, 0).sum(dim=1).cpu()
