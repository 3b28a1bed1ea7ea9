"""Describe what a model learns by its head: text, a class or numbers of an example, a class of each token, a span.

Embeddings are in ``contrastive.py``.

Letters: B batch, S source tokens, T target tokens, V vocabulary, L labels of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedModel

from t5peft.data.collate import (
    bucket_by_length,
    collate,
    collate_for_head,
    collate_sources,
    collate_with_labels,
    with_room,
)
from t5peft.data.features import (
    are_numbers,
    is_aligned,
    is_one_number,
    is_whole_number,
    kind_problems,
    range_problems,
    token_problems,
)
from t5peft.nn.loss import IGNORED_LABEL, logits_loss, target_loss
from t5peft.training.contrastive import EmbeddingHead
from t5peft.training.head import PLAIN, Added, Batch, Feature, Head, own_loss


class TextHead(Head):
    """A language model head: the target is text."""

    layout = "target"

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; those without targets get no labels and no decoder inputs."""
        config = self.config
        if not all(self.is_labeled(feature) for feature in features):
            return collate_sources(features, pad_token_id=config.pad_token_id)
        return collate(features, pad_token_id=config.pad_token_id, decoder_start_token_id=config.decoder_start_token_id)

    def split(self, batch: Batch) -> list[dict[str, Any]]:
        """Split a batch into its features; one without a target token, as ``without_labels`` makes, keeps one of -100."""
        return [
            {**feature, "labels": feature["labels"] or [IGNORED_LABEL]} if "labels" in feature else feature
            for feature in super().split(batch)
        ]

    def cut(self, features: Sequence[Feature], tokens: int) -> list[list[int]]:
        """Cut features into micro-batches of similar lengths."""
        return bucket_by_length(features, tokens)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the targets are not lists of token ids of the model."""
        return token_problems(features, "labels", self.config.vocab_size)

    def loss(self, model: nn.Module, batch: Batch, added: Added = PLAIN) -> tuple[Tensor, float]:
        """Return the loss [] summed over the target tokens, without making all logits, and their number."""
        if self.asks_model(model):
            return super().loss(model, batch, added)
        return target_loss(model, batch, **added._asdict())

    def loss_and_outputs(self, model: nn.Module, batch: Batch, added: Added = PLAIN) -> tuple[Tensor, float, Any]:
        """Return the summed loss [], the number of target tokens, and the outputs of the model with all logits."""
        if "decoder_input_ids" not in batch and "decoder_inputs_embeds" not in batch:
            labels = batch["labels"]
            shifted = torch.cat(
                [labels.new_full((len(labels), 1), self.config.decoder_start_token_id), labels[:, :-1]], 1
            )
            batch = batch | {
                "decoder_input_ids": shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)
            }
        return super().loss_and_outputs(model, batch, added)

    def loss_of(self, outputs: Any, batch: Batch, added: Added) -> Tensor:
        """Return the loss [] of logits [B, T, V], summed over the target tokens."""
        return logits_loss(outputs.logits, batch["labels"], **added._asdict())


class SequenceHead(Head):
    """A head with one class, several labels or some numbers an example, as ``config.problem_type`` says.

    Without one, transformers' rule holds: one number where the head has one label, several labels where an example has a
    list of them, and else one class.
    """

    name = "classification_head"

    def problem(self, features: Sequence[Feature]) -> str:
        """Return the problem type of the config, or else that of the labels."""
        if self.config.problem_type is not None:
            return str(self.config.problem_type)
        if self.classes == 1:
            return "regression"
        several = any(isinstance(feature.get("labels"), list) for feature in features)
        return "multi_label_classification" if several else "single_label_classification"

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; labels are int64 [B] for classes, else float32 [B] or [B, L]."""
        config, single = self.config, self.problem(features) == "single_label_classification"
        end = config.eos_token_id
        batch = collate_for_head(
            features,
            pad_token_id=config.pad_token_id,
            eos_token_id=end[0] if isinstance(end, list) else end,
            label_type=torch.long if single else torch.float32,
        )
        return with_room(batch, config)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the labels are not those of the problem type."""
        labels, count, problem = [f["labels"] for f in features], self.classes, self.problem(features)
        if problem == "single_label_classification":
            if wrong := kind_problems(labels, "labels", is_whole_number, "one class, a whole number"):
                return wrong
            return range_problems(set(labels), "labels", count, "the model's config has num_labels")
        if problem == "regression":
            if count == 1:
                return kind_problems(labels, "labels", is_one_number, "one number")
            return kind_problems(labels, "labels", lambda row: are_numbers(row, count), f"a list of {count} numbers")
        expected = f"a list of {count} labels from 0 to 1"
        return kind_problems(labels, "labels", lambda row: are_numbers(row, count, 0, 1), expected)

    def count(self, batch: Batch) -> float:
        """Count the examples with a label."""
        return int(_counted(batch["labels"]).sum())

    def without_labels(self, batch: Batch) -> Batch:
        """Return a batch without a label: -100 for classes, NaN for numbers, of which -100 may be one."""
        labels = batch["labels"]
        return batch | {
            "labels": torch.full_like(labels, float("nan") if labels.is_floating_point() else IGNORED_LABEL)
        }

    def loss_of(self, outputs: Any, batch: Batch, added: Added) -> Tensor:
        """Return the loss [] of logits [B, L], summed over the examples; several numbers of an example are averaged."""
        logits, labels = _exact(outputs.logits), batch["labels"]
        if self.config.problem_type is None:  # as the model does at its first loss
            if not labels.is_floating_point():
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification" if logits.shape[-1] > 1 else "regression"
        if not labels.is_floating_point():
            return cross_entropy(logits, labels.flatten(), label_smoothing=added.label_smoothing, reduction="sum")
        counted = _counted(labels)
        logits, labels = logits[counted], labels[counted].reshape(-1, logits.shape[-1]).to(logits.dtype)
        if self.config.problem_type == "multi_label_classification":
            return binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
        return (logits - labels).square().mean(-1).sum()


class TokenHead(Head):
    """A head with one class a source token."""

    layout = "aligned"
    name = "classifier"
    reads_source_only = True

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; labels are int64 [B, S]."""
        return collate_with_labels(features, pad_token_id=self.config.pad_token_id)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the labels are not one class a source token."""
        pairs = [(f["labels"], len(f["input_ids"])) for f in features]
        if wrong := kind_problems(
            pairs, "labels", is_aligned, "a list with one class for each of so many source tokens"
        ):
            return wrong
        labels = set().union(*(labels for labels, _ in pairs))
        return range_problems(labels, "labels", self.classes, "the model's config has num_labels")

    def loss_of(self, outputs: Any, batch: Batch, added: Added) -> Tensor:
        """Return the loss [] of logits [B, S, L], summed over the labeled tokens."""
        logits = _exact(outputs.logits).flatten(0, 1)
        return cross_entropy(logits, batch["labels"].flatten(), label_smoothing=added.label_smoothing, reduction="sum")


class SpanHead(Head):
    """A head that points to the first and the last source token of an answer.

    A position outside the source does not count. Padding is never pointed to, so that it does not change the loss.
    """

    labels = ("start_positions", "end_positions")
    name = "qa_outputs"

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; positions are int64 [B], -100 for one outside its source."""
        batch = collate_sources(features, pad_token_id=self.config.pad_token_id)
        for name in self.labels:
            if all(name in feature for feature in features):
                inside = [0 <= feature[name] < len(feature["input_ids"]) for feature in features]
                positions = [f[name] if there else IGNORED_LABEL for f, there in zip(features, inside, strict=True)]
                batch[name] = torch.tensor(positions)
        return batch

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the positions are not whole numbers."""
        return [
            problem
            for name in self.labels
            for problem in kind_problems(
                [f[name] for f in features], name, is_whole_number, "one position, a whole number"
            )
        ]

    def loss_and_outputs(self, model: nn.Module, batch: Batch, added: Added = PLAIN) -> tuple[Tensor, float, Any]:
        """Return the summed loss [], the number of spans, and what the model returned.

        A user's own forward may give any loss. It reads positions that do not count as transformers does: S, behind the source.
        """
        items = self.count(batch)
        if not (items and self.asks_model(model)):
            return super().loss_and_outputs(model, batch, added)
        behind = batch["input_ids"].shape[1]
        spans = {name: batch[name].masked_fill(batch[name] == IGNORED_LABEL, behind) for name in self.labels}
        outputs = model(**batch | spans, **self.options)
        return items * own_loss(outputs), items, outputs

    def count(self, batch: Batch) -> float:
        """Count the examples with a span, where half a span is a start or an end."""
        return sum(int((batch[name] != IGNORED_LABEL).sum()) for name in self.labels) / 2

    def loss_of(self, outputs: Any, batch: Batch, added: Added) -> Tensor:
        """Return half the loss [] of start and end scores [B, S], summed over the examples."""
        outside = batch["attention_mask"] == 0
        losses = [
            cross_entropy(_exact(scores).masked_fill(outside, -torch.inf), batch[name], reduction="sum")
            for scores, name in zip((outputs.start_logits, outputs.end_logits), self.labels, strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def predictions(self, outputs: Any, batch: Batch) -> Any:
        """Return start and end scores, each [B, S], with -100 on padding."""
        outside = batch["attention_mask"] == 0
        return tuple(s.masked_fill(outside, IGNORED_LABEL) for s in (outputs.start_logits, outputs.end_logits))


class EncoderSequenceHead(SequenceHead):
    """A ``SequenceHead`` over the mean of the states of an encoder."""

    name = "classifier"
    reads_source_only = True


HEADS: dict[str, type[Head]] = {
    "ForConditionalGeneration": TextHead,
    "EncoderForSequenceClassification": EncoderSequenceHead,
    "EncoderForEmbedding": EmbeddingHead,
    "ForSequenceClassification": SequenceHead,
    "ForTokenClassification": TokenHead,
    "ForQuestionAnswering": SpanHead,
}
"""The heads that can be trained, by the end of the name of the model's class."""


def head_of(t5: PreTrainedModel) -> Head | None:
    """Return the head of a T5, or None for a model without one."""
    names = [kind.__name__ for kind in type(t5).__mro__]  # a class of the user's may stand before transformers' own
    return next((head(t5.config) for end, head in HEADS.items() if any(name.endswith(end) for name in names)), None)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _counted(labels: Tensor) -> Tensor:
    """Whether each example has a label, [B]."""
    if labels.is_floating_point():
        return ~labels.flatten(1).isnan().any(-1) if labels.ndim > 1 else ~labels.isnan()
    return labels.flatten() != IGNORED_LABEL
