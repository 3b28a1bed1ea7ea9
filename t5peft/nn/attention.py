"""The attention function of T5 that knows prefixes, packed batches and padding-free rows, registered as ``"t5peft"``.

transformers 5 looks up the attention function of T5 by name, calls it after the cache was updated, and hands it every keyword
argument of the model's call. This file uses that seam only. Nothing of T5 is copied or patched.

*Prefixes* stand before the keys and values of one attention (Li and Liang 2021). The mask and the relative position bias get
as many zero columns on the left, so every query sees the whole prefix and no distance changes.

*Packed batches* hold several examples per row, and a block mask says which positions belong together. A distance within a
block is that within the example, so T5 needs no position ids.

*Padding-free rows* hold several examples end to end and come with a layout. Each example attends only to itself, and no score
of two examples is computed. Where a whole step lies in one row, nothing is padded.

Letters: B batch, Q queries, K keys, S source tokens, T target tokens, N heads, D d_kv, P prefix length.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t5peft.models.families import family_of
from t5peft.nn.grouped_attention import GROUPED
from t5peft.nn.kernels.attention import BiasByDistance, attend_with_dropout, toeplitz, varlen_attention
from t5peft.nn.kernels.module import runs_on_cpu
from t5peft.nn.kernels.native_rows import attend_rows
from t5peft.nn.kernels.varlen import VarlenLayout
from t5peft.nn.row_prefixes import RowPrefixes

NAME = "t5peft"
KNOW_PREFIXES = (NAME, GROUPED)
"""The attention functions that take a prefix."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    prefix: tuple[Tensor, Tensor] | RowPrefixes | None = None,
    encoder_block_mask: Tensor | None = None,
    decoder_block_mask: Tensor | None = None,
    cross_block_mask: Tensor | None = None,
    layout: VarlenLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend with relative position bias, an optional prefix, and optional block masks or a layout.

    Args:
        module: The attention of T5.
        query: The queries.
        key: The keys, after the cache.
        value: The values, after the cache.
        attention_mask: Additive or boolean.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores.
        position_bias: Of each pair, or of each distance, as ``BiasByDistance`` computes it.
        prefix: Keys and values that stand before those of every row, or of some rows in evaluation.
        encoder_block_mask: True where an encoder position may be seen.
        decoder_block_mask: True where a decoder position may be seen.
        cross_block_mask: True where a source position may be seen.
        layout: The examples of the only row.

    Returns:
        The output, and None, as this function never makes the attention weights.

    Shapes:
        query: [B, N, Q, D].
        key, value: [B, N, K, D].
        attention_mask: [B, 1, Q or 1, K].
        position_bias: [1 or B, N, Q, K] by pairs, or [1, N, 1, Q + K - 1] by distances.
        prefix: [B, N, P, D], keys and values.
        encoder_block_mask, decoder_block_mask, cross_block_mask: [B, 1, S, S], [B, 1, T, T], [B, 1, T, S].
        Output: [B, Q, N, D].
    """
    if layout is not None:
        return _attend_varlen(module, query, key, value, dropout, position_bias, prefix, layout), None
    block_mask = (
        cross_block_mask if _is_cross(module) else decoder_block_mask if module.is_causal else encoder_block_mask
    )
    if query.shape[2] == 1 and block_mask is None and not dropout:
        output = attend_rows(query, key, value, position_bias, attention_mask, _of_rows(prefix), scaling)
        if output is not None:
            return output, None
    bias = _bias_of_scores(query, key, attention_mask, position_bias, block_mask)
    if isinstance(prefix, RowPrefixes):
        bias = None if bias is None else bias.to(query.dtype)
        scores = partial(_plain, scaling=scaling)
        return prefix.attend(query, key, value, bias, scores).transpose(1, 2).contiguous(), None
    if prefix is not None:
        prefix_key, prefix_value = prefix
        key = torch.cat([prefix_key.to(key.dtype), key], dim=2)
        value = torch.cat([prefix_value.to(value.dtype), value], dim=2)
        bias = None if bias is None else pad(bias, (prefix_key.shape[2], 0))
    if bias is not None:
        bias = bias.to(query.dtype)
    if dropout and runs_on_cpu(query) and isinstance(module, BiasByDistance):
        output = attend_with_dropout(query, key, value, bias, dropout)
    else:
        output = scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _of_rows(prefix: tuple[Tensor, Tensor] | RowPrefixes | None) -> RowPrefixes | None:
    """Return a prefix of all rows as one of each."""
    return RowPrefixes(slice(None), None, *prefix, None) if isinstance(prefix, tuple) else prefix


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float | None) -> Tensor:
    """Attend without dropout."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)


def _bias_of_scores(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, position_bias: Tensor | None, block_mask: Tensor | None
) -> Tensor | None:
    """Return the sum of position bias and masks, by pairs; None where there is none of them."""
    bias = position_bias
    if bias is not None and bias.shape[-2] != query.shape[2]:
        bias = toeplitz(bias, query.shape[2], key.shape[2])
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = _additive(attention_mask, query)
        bias = attention_mask if bias is None else bias + attention_mask
    if block_mask is not None:
        hidden = torch.finfo(query.dtype).min
        bias = _additive(block_mask, query) if bias is None else torch.where(block_mask, bias, hidden)
    return bias


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    """Turn a boolean mask, true where a position may be seen, into an additive one."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return zero.masked_fill(~visible, torch.finfo(like.dtype).min)


def _attend_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    position_bias: Tensor | None,
    prefix: tuple[Tensor, Tensor] | RowPrefixes | None,
    layout: VarlenLayout,
) -> Tensor:
    """Attend within each example of a row: query [1, N, Q, D], key and value [1, N, K, D] -> [1, Q, N, D]."""
    sides = (int(bool(module.is_decoder)), int(bool(module.is_decoder and module.is_causal)))
    if position_bias is None or _is_cross(module):
        return varlen_attention(query, key, value, None, prefix, layout, sides, dropout)
    longest, total = max(layout.target_lengths if module.is_decoder else layout.source_lengths), query.shape[2]
    if position_bias.shape[-2] == total:
        bias = position_bias[..., :longest, :longest]
    else:
        bias = toeplitz(position_bias[..., total - longest : total + longest - 1], longest, longest)
    if module.is_causal:
        future = torch.ones(longest, longest, dtype=torch.bool, device=bias.device).triu_(1)
        bias = bias.masked_fill(future, -torch.inf)
    return varlen_attention(query, key, value, bias, prefix, layout, sides, dropout)


def _is_cross(module: nn.Module) -> bool:
    """Return whether ``module`` looks at the encoder: a decoder's attention that is not causal."""
    return bool(module.is_decoder and not module.is_causal)


def use_attention(model: PreTrainedModel) -> None:
    """Let every attention of the text stacks of ``model`` call the function that knows prefixes, in place.

    That is ``attend`` for a relative position bias, and ``attend_grouped`` for rotary positions. Calling this twice changes
    nothing.

    Args:
        model: A T5.
    """
    family = family_of(model.config)
    model.set_attn_implementation(family.attention_setting(NAME if family.positions == "relative bias" else GROUPED))


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
# The mask function of SDPA may leave out the mask of a causal attention. The columns of a prefix would then shift the triangle
# without an error. The eager mask is always there, and additive.
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
