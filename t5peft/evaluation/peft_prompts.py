"""Scores of peft's own prefix and prompt tuning.

They live in ``PeftModel.forward``, not inside the T5 as every other adapter does, so only the whole forward pass has them.

Letters: N examples, B rows of a batch, T target tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t5peft.data.collate import collate
from t5peft.models.unwrap import evaluation_mode, unwrap_t5
from t5peft.nn.loss import IGNORED_LABEL

ROWS = 32


def target_log_probabilities(model: nn.Module, features: Sequence[Mapping[str, Any]]) -> Tensor:
    """Compute the log-probability of each target by the whole forward pass.

    Args:
        model: A wrapped T5 with a language model head.
        features: ``input_ids`` and ``labels``, lists of ids without padding.

    Returns:
        Sums over the tokens of each target [N], in float32 on the CPU.
    """
    config = unwrap_t5(model).config
    ids = {"pad_token_id": config.pad_token_id, "decoder_start_token_id": config.decoder_start_token_id}
    found = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(features), ROWS):
            batch = collate(features[start : start + ROWS], **ids)
            inputs = {
                name: batch[name].to(unwrap_t5(model).device) for name in ("input_ids", "attention_mask", "labels")
            }
            logits = model(**inputs).logits
            labels = inputs["labels"]
            scores = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
            found.append(scores.masked_fill(labels == IGNORED_LABEL, 0).sum(dim=1).cpu())
    return torch.cat(found) if found else torch.empty(0)
