"""The attention function of T5 that knows prefixes and packed rows, registered with transformers as ``"t5peft"``.

transformers 5 computes the attention of T5 by a function that it looks up by name, after the cache was updated, and hands
it every keyword argument that the model was called with. That is the seam used here: nothing of T5 is copied or patched.

*Prefixes* stand before the keys and values of one attention (Li and Liang 2021): the mask and the relative position bias
get as many zero columns on the left, so every query sees the whole prefix and no distance changes.

*Packed rows* hold several examples: a block mask says which positions belong together. A distance within a block is that of
the example alone, so T5 needs no position ids for it.

*Rows of examples* hold several examples end to end too, but say so by a layout: each example then attends to itself
alone, and no score of two examples is computed. Where a whole step lies in one row, nothing at all is padded.

Letters: B batch, Q queries, K keys, S source tokens, T target tokens, N heads, D d_kv, P prefix length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t5peft.nn.kernels.attention import BiasByDistance, attend_row, attend_with_dropout, toeplitz
from t5peft.nn.kernels.varlen import VarlenLayout

NAME = "t5peft"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
    encoder_block_mask: Tensor | None = None,
    decoder_block_mask: Tensor | None = None,
    cross_block_mask: Tensor | None = None,
    layout: VarlenLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with relative position bias, an optional prefix, and optional block masks or a layout.

    Shapes: query [B, N, Q, D]; key, value [B, N, K, D]; attention_mask [B, 1, Q or 1, K], additive, or boolean; position_bias
    [1 or B, N, Q, K], or by distance, [1, N, 1, Q + K - 1]; prefix: keys and values, each [B, N, P, D];
    encoder_block_mask [B, 1, S, S], decoder_block_mask [B, 1, T, T], cross_block_mask [B, 1, T, S], boolean, true where a
    position may be seen; layout: the one row holds these examples, which see themselves alone.

    Returns the output [B, Q, N, D] and None, as this function never makes the attention weights.
    """
    if layout is not None:
        return _attend_row(module, query, key, value, dropout, position_bias, prefix, layout), None
    bias = position_bias
    if bias is not None and bias.shape[-2] != query.shape[2]:
        bias = toeplitz(bias, query.shape[2], key.shape[2])
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = _additive(attention_mask, query)
        bias = attention_mask if bias is None else bias + attention_mask
    block_mask = (
        cross_block_mask if _is_cross(module) else decoder_block_mask if module.is_causal else encoder_block_mask
    )
    if block_mask is not None:
        hidden = torch.finfo(query.dtype).min
        bias = _additive(block_mask, query) if bias is None else torch.where(block_mask, bias, hidden)
    if prefix is not None:
        prefix_key, prefix_value = prefix
        key = torch.cat([prefix_key.to(key.dtype), key], dim=2)
        value = torch.cat([prefix_value.to(value.dtype), value], dim=2)
        bias = None if bias is None else pad(bias, (prefix_key.shape[2], 0))
    if bias is not None:
        bias = bias.to(query.dtype)
    if dropout and query.device.type == "cpu" and isinstance(module, BiasByDistance):
        output = attend_with_dropout(query, key, value, bias, dropout)
    else:
        output = scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    """A boolean mask, true where a position may be seen, as one to add."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return zero.masked_fill(~visible, torch.finfo(like.dtype).min)


def _attend_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    position_bias: Tensor | None,
    prefix: tuple[Tensor, Tensor] | None,
    layout: VarlenLayout,
) -> Tensor:
    """Attention of each example in a row: query [1, N, Q, D], key and value [1, N, K, D] -> [1, Q, N, D]."""
    sides = (int(bool(module.is_decoder)), int(bool(module.is_decoder and module.is_causal)))
    if position_bias is None or _is_cross(module):
        return attend_row(query, key, value, None, prefix, layout, sides, dropout)
    longest, total = max(layout.target_lengths if module.is_decoder else layout.source_lengths), query.shape[2]
    if position_bias.shape[-2] == total:
        bias = position_bias[..., :longest, :longest]
    else:
        bias = toeplitz(position_bias[..., total - longest : total + longest - 1], longest, longest)
    if module.is_causal:
        future = torch.ones(longest, longest, dtype=torch.bool, device=bias.device).triu_(1)
        bias = bias.masked_fill(future, -torch.inf)
    return attend_row(query, key, value, bias, prefix, layout, sides, dropout)


def _is_cross(module: nn.Module) -> bool:
    """A decoder's attention that is not causal looks at the encoder."""
    return bool(module.is_decoder and not module.is_causal)


def use_attention(model: PreTrainedModel) -> None:
    """Make every T5 attention of ``model`` call :func:`attend`, in place. Calling it twice changes nothing."""
    model.set_attn_implementation(NAME)


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
# SDPA's own mask function may leave the mask out for a causal attention; the columns of a prefix would then shift the
# triangle without an error. The eager mask is always there, and additive.
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
