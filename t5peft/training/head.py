"""The base of the heads: what a head does for the Trainer.

A head collates features into a batch that is an input of the model, splits such a batch again, says which features the model
cannot take, and computes the loss. A loss is always a sum over items together with their number: target tokens, labeled
tokens or examples. The examples of a step can then be cut and dealt out in any way.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from t5peft.compat.peft import adds_to_loss
from t5peft.data.collate import bucket_by_length
from t5peft.data.features import Feature, LabelLayout, token_problems, unpadded
from t5peft.models.families import family_of
from t5peft.models.unwrap import has_own_forward
from t5peft.nn.loss import IGNORED_LABEL

Batch = dict[str, Any]


class Added(NamedTuple):
    """Weights of what a training adds to the loss."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


PLAIN = Added()
"""Nothing is added, as in an evaluation."""


class Head:
    """The head of one model.

    Args:
        config: The config of the model.
    """

    labels: ClassVar[tuple[str, ...]] = ("labels",)
    layout: ClassVar[LabelLayout] = "whole"
    name: str | None = None  # of the module in T5, where pretraining did not train it
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
        for name in needed:
            without = sum(name not in feature for feature in features)
            if 0 < without < len(features):
                raise ValueError(
                    f"Got examples of which {without} of {len(features)} have no `{name}`; expected it in all, or in none. Leave "
                    "those out, or evaluate them apart."
                )
        if any(name not in feature for feature in features for name in needed):
            raise ValueError(self.columns_error({name for feature in features for name in feature}))
        problems = token_problems(features, "input_ids", self.config.vocab_size)
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
            "(Task.tokenize creates them from records)."
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

    def loss(self, model: nn.Module, batch: Batch, added: Added = PLAIN) -> tuple[Tensor, float]:
        """Return the loss [] summed over the items of a batch, and their number."""
        loss, items, _ = self.loss_and_outputs(model, batch, added)
        return loss, items

    def loss_and_outputs(self, model: nn.Module, batch: Batch, added: Added = PLAIN) -> tuple[Tensor, float, Any]:
        """Return the summed loss [], the number of items, and what the model returned.

        Some tuners of peft add to the loss of the model, and a user's own forward may give any loss. What is added counts once a
        step, as in the mean that the model itself returns.
        """
        items = self.count(batch)
        adds = items > 0 and self.asks_model(model)
        inputs = batch if adds else {name: value for name, value in batch.items() if name not in self.labels}
        outputs = model(**inputs, **self.options)
        loss = self.loss_of(outputs, batch, added)
        if adds:
            loss = loss + items * (own_loss(outputs) - self.loss_of(outputs, batch, PLAIN) / items)
        return loss, items, outputs

    def asks_model(self, model: nn.Module) -> bool:
        """Return whether the loss is that which the model returns: a tuner or code of the user's may have changed it."""
        return adds_to_loss(model) or has_own_forward(model)

    def loss_of(self, outputs: Any, batch: Batch, added: Added) -> Tensor:
        """Return the summed loss [] of what the model returned for a batch."""
        raise NotImplementedError

    def predictions(self, outputs: Any, batch: Batch) -> Any:
        """Return the scores in what the model returned, a tensor or a tuple of them, each [B, ..]."""
        return outputs.logits


def own_loss(outputs: Any) -> Tensor:
    """Return the loss [] that a model returned."""
    return outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
