"""The attention function of T5Gemma and T5Gemma 2 that knows prefixes, registered as ``"t5peft_grouped"``.

Heads of queries share those of keys and values, scores are scaled and may have a softcap, and positions are rotated into queries
and keys before this function is called. A prefix stands before the keys and values. It is not rotated, as the keys that the
decoder of T5Gemma 2 makes of encoder states are not, and queries meet it at their own positions. The mask gets as many zero columns
on the left, so every query sees all of the prefix, whatever its window. In T5Gemma 2, whose decoder attends to itself and to the
encoder at once, it stands before the keys of both.

Letters: B batch, Q queries, K keys, N heads, G heads of keys and values, D d_kv, P prefix length.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t5peft.nn.row_prefixes import RowPrefixes

GROUPED = "t5peft_grouped"


def attend_grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    prefix: tuple[Tensor, Tensor] | RowPrefixes | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend with an optional prefix and an optional softcap of the scores.

    Args:
        module: The attention.
        query: The queries.
        key: The keys, after the cache.
        value: The values, after the cache.
        attention_mask: Additive.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores; None for D^-0.5.
        softcap: Scores are bent to stay below this size; None for no bound.
        prefix: Keys and values that stand before those of every row, or of some rows in evaluation.

    Returns:
        The output, and None, as the attention weights are not returned.

    Shapes:
        query: [B, N, Q, D].
        key, value: [B, G, K, D].
        attention_mask: [B, 1, Q, K].
        prefix: [B, G, P, D], keys and values.
        Output: [B, Q, N, D].
    """
    scores = partial(_attend, dropout=dropout if module.training else 0.0, scaling=scaling, softcap=softcap)
    if isinstance(prefix, RowPrefixes):
        return prefix.attend(query, key, value, attention_mask, scores).transpose(1, 2).contiguous(), None
    if prefix is not None:
        key = torch.cat([prefix[0].to(key.dtype), key], dim=2)
        value = torch.cat([prefix[1].to(value.dtype), value], dim=2)
        attention_mask = None if attention_mask is None else pad(attention_mask, (prefix[0].shape[2], 0))
    return scores(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Return the output [B, N, Q, D]."""
    if (
        softcap is not None or torch.onnx.is_in_onnx_export()
    ):  # whose operator takes as many heads of keys as of queries
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if softcap is None:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=not torch.onnx.is_in_onnx_export(),
        )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    weights = scores.softmax(-1, dtype=exact).to(query.dtype)
    return (drop(weights, dropout) if dropout else weights) @ value


ALL_ATTENTION_FUNCTIONS.register(GROUPED, attend_grouped)
# That of SDPA may leave out the mask of a causal attention, whose triangle the columns of a prefix would shift.
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, eager_mask)
