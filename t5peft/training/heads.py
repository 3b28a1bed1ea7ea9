"""Describe what a model learns by its head: text, a class or numbers of an example, a class of each token, a span.

A head collates features into a batch that is an input of the model, splits such a batch again, says which features the model
cannot take, and computes the loss. A loss is always a sum over items together with their number: target tokens, labeled
tokens or examples. The examples of a step can then be cut and dealt out in any way.

Letters: B batch, S source tokens, T target tokens, V vocabulary, L labels of the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel

from t5peft.compat.peft import adds_to_loss
from t5peft.data.collate import (
    bucket_by_length,
    collate,
    collate_for_head,
    collate_for_spans,
    collate_for_tokens,
    collate_sources,
    with_room,
)
from t5peft.data.features import (
    LabelLayout,
    are_numbers,
    is_aligned,
    is_one_number,
    is_whole_number,
    kind_problems,
    range_problems,
    source_problems,
    target_problems,
    unpadded,
)
from t5peft.models.families import family_of
from t5peft.nn.loss import IGNORED_LABEL, logits_loss, target_loss

Feature = Mapping[str, Any]
Batch = dict[str, Any]


class Head:
    """The head of one model.

    Args:
        config: The config of the model.
    """

    labels: ClassVar[tuple[str, ...]] = ("labels",)
    layout: ClassVar[LabelLayout] = "whole"
    name: ClassVar[str | None] = None  # of the module in T5, where pretraining did not train it
    reads_source_only: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config

    @property
    def module(self) -> str | None:
        """The name of a head that pretraining did not train."""
        return self.name and family_of(self.config).class_heads.get(self.name, self.name)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the forward pass; models that read the last token of a source take none."""
        takes_none = self.reads_source_only or (self.name and family_of(self.config).class_reads_last_token)
        return {} if takes_none else {"use_cache": False}

    @property
    def classes(self) -> int:
        """The number of labels of the head."""
        return int(self.config.num_labels or 0)

    # --- features and batches ---------------------------------------------------------------------------------------

    def unpad(self, feature: Feature) -> dict[str, Any]:
        """Return a feature of the user's without padding."""
        return unpadded(feature, self.config.pad_token_id, self.layout)

    def is_labeled(self, feature: Feature) -> bool:
        """Return whether a feature, or a batch, has all of its labels."""
        return all(feature.get(name) is not None for name in self.labels)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features without padding into a batch, with labels where all have them."""
        raise NotImplementedError

    def split(self, batch: Batch) -> list[dict[str, Any]]:
        """Split a batch of tensors into its features, the inverse of ``collate``."""
        names = [name for name in ("input_ids", "attention_mask", *self.labels) if batch.get(name) is not None]
        columns = [batch[name].tolist() for name in names]
        return [self.unpad(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]

    def cut(self, features: Sequence[Feature], tokens: int) -> list[list[int]]:
        """Cut features into micro-batches of at most so many tokens; return the indices of each."""
        return bucket_by_length([{"input_ids": f["input_ids"], "labels": [0]} for f in features], tokens)

    def check(self, features: Sequence[Feature], *, labeled: bool = True) -> None:
        """Check that the model can take features.

        Args:
            features: Without padding.
            labeled: Whether they need labels.

        Raises:
            ValueError: It cannot; names all problems.
        """
        needed = ("input_ids", *self.labels) if labeled else ("input_ids",)
        if any(name not in feature for feature in features for name in needed):
            raise ValueError(self.columns_error({name for feature in features for name in feature}))
        problems = source_problems(features, self.config.vocab_size)
        problems += self.label_problems(features) if labeled else []
        if problems:
            raise ValueError(
                f"Got examples that the model cannot take: {'; '.join(problems)}; expected examples without these problems."
            )

    def columns_error(self, columns: Iterable[str]) -> str:
        """Return the error for examples with other columns than the model needs."""
        expected = " and ".join(f"`{name}`" for name in ("input_ids", *self.labels))
        return (
            f"Got examples that the model cannot take: the columns are {sorted(columns)}; expected {expected} "
            "(Task.tokenize makes them from records)."
        )

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the model cannot learn these labels; empty if it can."""
        raise NotImplementedError

    def count(self, batch: Batch) -> float:
        """Count the items of a batch."""
        return int((batch["labels"] != IGNORED_LABEL).sum())

    def without_labels(self, batch: Batch) -> Batch:
        """Return a batch whose loss and gradient are zero."""
        return batch | {name: torch.full_like(batch[name], IGNORED_LABEL) for name in self.labels}

    # --- loss -------------------------------------------------------------------------------------------------------

    def loss(
        self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> tuple[Tensor, float]:
        """Return the loss [] summed over the items of a batch, and their number."""
        loss, items, _ = self.loss_and_outputs(model, batch, label_smoothing=label_smoothing, z_loss=z_loss)
        return loss, items

    def loss_and_outputs(
        self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> tuple[Tensor, float, Any]:
        """Return the summed loss [], the number of items, and what the model returned.

        Some tuners of peft add to the loss of the model. Their addition counts once a step, as in the mean that the model
        itself returns.
        """
        items = self.count(batch)
        adds = items > 0 and adds_to_loss(model)
        inputs = batch if adds else {name: value for name, value in batch.items() if name not in self.labels}
        outputs = model(**inputs, **self.options)
        loss = self.loss_of(outputs, batch, label_smoothing, z_loss)
        if adds:
            loss = loss + items * (outputs.loss - self.loss_of(outputs, batch, 0.0, 0.0) / items)
        return loss, items, outputs

    def loss_of(self, outputs: Any, batch: Batch, label_smoothing: float, z_loss: float) -> Tensor:
        """Return the summed loss [] of what the model returned for a batch."""
        raise NotImplementedError

    def predictions(self, outputs: Any, batch: Batch) -> Any:
        """Return the scores in what the model returned, a tensor or a tuple of them, each [B, ..]."""
        return outputs.logits


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
        return target_problems(features, self.config.vocab_size)

    def loss(
        self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> tuple[Tensor, float]:
        """Return the loss [] summed over the target tokens, without making all logits, and their number."""
        if adds_to_loss(model):
            return super().loss(model, batch, label_smoothing=label_smoothing, z_loss=z_loss)
        return target_loss(model, batch, label_smoothing=label_smoothing, z_loss=z_loss)

    def loss_and_outputs(
        self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> tuple[Tensor, float, Any]:
        """Return the summed loss [], the number of target tokens, and the outputs of the model with all logits."""
        if "decoder_input_ids" not in batch and "decoder_inputs_embeds" not in batch:
            labels = batch["labels"]
            shifted = torch.cat(
                [labels.new_full((len(labels), 1), self.config.decoder_start_token_id), labels[:, :-1]], 1
            )
            batch = batch | {
                "decoder_input_ids": shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)
            }
        return super().loss_and_outputs(model, batch, label_smoothing=label_smoothing, z_loss=z_loss)

    def loss_of(self, outputs: Any, batch: Batch, label_smoothing: float, z_loss: float) -> Tensor:
        """Return the loss [] of logits [B, T, V], summed over the target tokens."""
        return logits_loss(outputs.logits, batch["labels"], label_smoothing=label_smoothing, z_loss=z_loss)


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

    def loss_of(self, outputs: Any, batch: Batch, label_smoothing: float, z_loss: float) -> Tensor:
        """Return the loss [] of logits [B, L], summed over the examples; several numbers of an example are averaged."""
        logits, labels = _exact(outputs.logits), batch["labels"]
        if self.config.problem_type is None:  # as the model does at its first loss
            if not labels.is_floating_point():
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification" if logits.shape[-1] > 1 else "regression"
        if not labels.is_floating_point():
            return cross_entropy(logits, labels.flatten(), label_smoothing=label_smoothing, reduction="sum")
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
        return collate_for_tokens(features, pad_token_id=self.config.pad_token_id)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the labels are not one class a source token."""
        pairs = [(f["labels"], len(f["input_ids"])) for f in features]
        if wrong := kind_problems(
            pairs, "labels", is_aligned, "a list with one class for each of so many source tokens"
        ):
            return wrong
        labels = set().union(*(labels for labels, _ in pairs))
        return range_problems(labels, "labels", self.classes, "the model's config has num_labels")

    def loss_of(self, outputs: Any, batch: Batch, label_smoothing: float, z_loss: float) -> Tensor:
        """Return the loss [] of logits [B, S, L], summed over the labeled tokens."""
        logits = _exact(outputs.logits).flatten(0, 1)
        return cross_entropy(logits, batch["labels"].flatten(), label_smoothing=label_smoothing, reduction="sum")


class SpanHead(Head):
    """A head that points to the first and the last source token of an answer.

    A position outside the source does not count. Padding is never pointed to, so that it does not change the loss.
    """

    labels = ("start_positions", "end_positions")
    name = "qa_outputs"

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; positions are int64 [B]."""
        return collate_for_spans(features, pad_token_id=self.config.pad_token_id)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the positions are not whole numbers."""
        return [
            problem
            for name in self.labels
            for problem in kind_problems(
                [f[name] for f in features], name, is_whole_number, "one position, a whole number"
            )
        ]

    def count(self, batch: Batch) -> float:
        """Count the examples with a span, where half a span is a start or an end."""
        return sum(int((batch[name] != IGNORED_LABEL).sum()) for name in self.labels) / 2

    def loss_of(self, outputs: Any, batch: Batch, label_smoothing: float, z_loss: float) -> Tensor:
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


HEADS: dict[str, type[Head]] = {
    "ForConditionalGeneration": TextHead,
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
