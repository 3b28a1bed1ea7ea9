"""Train embeddings on pairs: each source is near its target, and far from the other targets of the step (Sentence-T5).

The loss of a source i with the target i is the cross-entropy of its cosines with all targets, divided by a temperature t:

    loss_i = -log( exp(cos(s_i, t_i) / t) / sum_j exp(cos(s_i, t_j) / t) )

Other targets with the tokens of t_i are left out of the sum. The targets of all processes and of all accumulated batches count, see
``contrastive_step.py``.

Letters: B pairs, C candidates, S source tokens, T target tokens, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig

from t5peft.data.collate import collate_with_labels
from t5peft.data.features import token_problems
from t5peft.nn.loss import IGNORED_LABEL
from t5peft.training.head import PLAIN, Added, Batch, Feature, Head

ROWS = 1024  # of the table of cosines that are computed at once in an evaluation


def contrastive_loss(sources: Tensor, targets: Tensor, keys: Sequence[Any], temperature: float) -> Tensor:
    """Return the loss [] summed over sources.

    Args:
        sources: Embeddings of unit length of the sources.
        targets: Those of the targets, the one of source i in row i.
        keys: One object a target; targets with equal ones are not negatives of each other's sources.
        temperature: What cosines are divided by.

    Shapes:
        sources: [B, E].
        targets: [C, E], with C at least B.
    """
    numbers: dict[Any, int] = {}
    group = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], device=targets.device)
    place = torch.arange(len(targets), device=targets.device)
    total = sources.new_zeros(())
    for start in range(0, len(sources), ROWS):
        rows = place[start : min(start + ROWS, len(sources))]
        scores = sources[rows] @ targets.T / temperature
        repeated = (group[rows, None] == group) & (rows[:, None] != place)
        total = total + cross_entropy(scores.masked_fill(repeated, -torch.inf), rows, reduction="sum")
    return total


class EmbeddingHead(Head):
    """A head that makes embeddings of sources and of targets, which are texts alike."""

    layout = "target"
    name: str | None = "embedding_projection"
    reads_source_only = True
    temperature = 0.05

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if getattr(config, "embedding_size", None) is None:
            self.name = None

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; labels are the token ids of the targets, int64 [B, T]."""
        return collate_with_labels(features, pad_token_id=self.config.pad_token_id)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the targets are not lists of token ids of the model."""
        return token_problems(features, "labels", self.config.vocab_size)

    def count(self, batch: Batch) -> float:
        """Count the pairs."""
        return int((batch["labels"] != IGNORED_LABEL).any(-1).sum())

    def embeddings(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return embeddings of the sources [B, E], and of the targets [B, E] where a batch has them."""
        sources = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        if batch.get("labels") is None:
            return sources, None
        present = batch["labels"] != IGNORED_LABEL
        ids = batch["labels"].masked_fill(~present, self.config.pad_token_id)
        return sources, model(input_ids=ids, attention_mask=present.long()).pooler_output

    def loss_and_outputs(self, model: nn.Module, batch: Batch, added: Added = PLAIN) -> tuple[Tensor, float, Any]:
        """Return the loss [] summed over the pairs of one batch, their number, and both embeddings."""
        items, outputs = self.count(batch), self.embeddings(model, batch)
        if items == 0:
            return outputs[0].sum() * 0, 0, outputs
        return self.loss_of(outputs, batch, added), items, outputs

    def loss_of(self, outputs: Any, batch: Batch, added: Added) -> Tensor:
        """Return the loss [] of embeddings ([B, E], [B, E]), summed over the pairs, each against all targets given."""
        present = batch["labels"] != IGNORED_LABEL
        rows = present.any(-1).nonzero().flatten()
        keys = [tuple(batch["labels"][row][present[row]].tolist()) for row in rows]
        sources, targets = outputs
        return contrastive_loss(sources[rows], targets[rows], keys, self.temperature)

    def predictions(self, outputs: Any, batch: Batch) -> Any:
        """Return the embeddings."""
        return outputs[0] if outputs[1] is None else outputs
