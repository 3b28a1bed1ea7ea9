"""Attention with relative position bias and dropout on a CPU, for padded batches and for padding-free rows.

The attention of torch falls back to plain products in training, because of the dropout, and draws its mask element by element.
Here one operation computes the scores and adds the bias in place. For the backward pass it keeps the probabilities and one
byte per element for the mask.

``varlen_attention`` takes one row in which examples lie end to end. The linear maps, norms and dropouts of T5 treat tokens one by
one, so they never see padding. Only attention must know the examples, and goes through them group by group. No score of two
examples is computed.

Letters: B batch, N heads, D d_kv, P prefix length, G examples in a group, M longest of them; Q queries and K keys of one
example, Q.. and K.. of all examples in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.dropout import DropMask
from t5peft.nn.kernels.module import FastModule
from t5peft.nn.kernels.native_attention import native_attention
from t5peft.nn.kernels.varlen import Segment, VarlenLayout
from t5peft.nn.row_prefixes import RowPrefixes

Prefix = tuple[Tensor, Tensor]


class BiasByDistance(FastModule):
    """An attention of T5 that computes its position bias once per distance, not once per pair.

    The attention function "t5peft" spreads the bias over the pairs where it needs them. A padding-free row needs few of them.
    """

    def compute_bias(
        self, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
    ) -> Tensor:
        """Return the bias [1, N, 1, Q + K - 1] of the distances from -(Q - 1) - past to K - 1 - past."""
        return cast(
            Tensor,
            super().compute_bias(  # type: ignore[misc]  # The plain class behind this one has it.
                1, query_length + key_length - 1, device=device, past_seen_tokens=past_seen_tokens + query_length - 1
            ),
        )


def toeplitz(table: Tensor, queries: int, keys: int) -> Tensor:
    """Return the bias of every pair, where entry (i, j) is ``table[j - i + Q - 1]``.

    Shapes:
        table: [.., 1, Q + K - 1].
        Output: [.., Q, K].
    """
    return table.unfold(-1, keys, 1).squeeze(-3).flip(-2)


class _VarlenAttention(torch.autograd.Function):
    """Attention of each example in a row to itself or to its source, group by group."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        blocks: Sequence[_Block],
        p: float,
    ) -> Tensor:
        """Map query [Q.., N, D], key and value [K.., N, D], bias [N, >=Q, >=K], prefixes [N, P, D] -> [Q.., N, D]."""
        prefix = 0 if prefix_key is None else prefix_key.shape[1]
        output = query.new_empty(query.shape)
        mask = DropMask(sum(block.scores(query.shape[1], prefix) for block in blocks), p) if p else None
        kept, start = [], 0
        for block in blocks:
            keys = _after(prefix_key, block.keys_of(key))
            scores = torch.matmul(block.queries_of(query), keys.transpose(-1, -2))
            block.bias(scores, bias, prefix)
            probabilities = torch.softmax(scores, -1)
            dropped = probabilities
            if mask is not None:
                dropped = mask.drop(probabilities, start)
                start += probabilities.numel()
            block.put_queries(output, torch.matmul(dropped, _after(prefix_value, block.keys_of(value))))
            kept.append(probabilities)
        ctx.save_for_backward(query, key, value, bias, prefix_key, prefix_value, *kept)
        ctx.blocks, ctx.mask = blocks, mask
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, prefix_key, prefix_value, *kept = ctx.saved_tensors
        grad_query, grad_key, grad_value = (
            tensor.new_empty(tensor.shape) if needed else None
            for tensor, needed in zip((query, key, value), ctx.needs_input_grad, strict=False)
        )
        grad_bias, grad_prefix_key, grad_prefix_value = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((bias, prefix_key, prefix_value), ctx.needs_input_grad[3:], strict=False)
        )
        prefix, start = 0 if prefix_key is None else prefix_key.shape[1], 0
        for block, probabilities in zip(ctx.blocks, kept, strict=True):
            grad_output = block.queries_of(grad, padding_is_zero=True)
            factors = None if ctx.mask is None else ctx.mask.factors(start, probabilities)
            start += probabilities.numel()
            grad_scores = torch.matmul(grad_output, _after(prefix_value, block.keys_of(value)).transpose(-1, -2))
            if factors is not None:
                grad_scores.mul_(factors)
            grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)
            if grad_bias is not None:
                own = grad_scores[..., prefix:]
                grad_bias[:, : own.shape[-2], : own.shape[-1]] += own.sum(0) if own.ndim == 4 else own
            if grad_query is not None:
                keys = _after(prefix_key, block.keys_of(key))
                block.put_queries(grad_query, torch.matmul(grad_scores, keys))
            if grad_key is not None or grad_prefix_key is not None:
                grad_keys = torch.matmul(grad_scores.transpose(-1, -2), block.queries_of(query))
                _add_to(block, grad_keys, grad_key, grad_prefix_key)
            if grad_value is not None or grad_prefix_value is not None:
                dropped = probabilities if factors is None else factors.mul_(probabilities)
                grad_values = torch.matmul(dropped.transpose(-1, -2), grad_output)
                _add_to(block, grad_values, grad_value, grad_prefix_value)
        return grad_query, grad_key, grad_value, grad_bias, grad_prefix_key, grad_prefix_value, None, None


@dataclass(frozen=True)
class _Block:
    """The queries and keys of one group, taken out of the row and put back.

    A group of one example is a slice [N, M, D]. A group of several is a padded copy [G, N, M, D].
    """

    layout: VarlenLayout
    queries: Segment
    keys: Segment

    def scores(self, heads: int, prefix: int) -> int:
        return len(self.keys.lengths) * heads * self.queries.max_length * (prefix + self.keys.max_length)

    def queries_of(self, row: Tensor, padding_is_zero: bool = False) -> Tensor:
        """Take the queries of the group from row [Q.., N, D]."""
        block = self._take(self.queries, row)
        if padding_is_zero and self.queries.mask is not None:
            block.mul_(self.queries.mask[:, None, :, None])
        return block

    def keys_of(self, row: Tensor) -> Tensor:
        """Take the keys of the group from row [K.., N, D]."""
        return self._take(self.keys, row)

    def put_queries(self, row: Tensor, block: Tensor) -> None:
        self._put(self.queries, row, block)

    def put_keys(self, row: Tensor, block: Tensor) -> None:
        self._put(self.keys, row, block)

    def bias(self, scores: Tensor, bias: Tensor | None, prefix: int) -> None:
        """Add bias [N, >=Q, >=K] to scores [.., N, Q, P + K] behind the prefix, in place, and hide padded keys."""
        own = scores[..., prefix:]
        if bias is not None:
            own.add_(bias[:, : own.shape[-2], : own.shape[-1]])
        if self.keys.hidden is not None:
            own.add_(self.keys.hidden)

    def _take(self, segment: Segment, row: Tensor) -> Tensor:
        if len(segment.lengths) == 1:
            return row[segment.tokens].transpose(0, 1)
        index, _ = self.layout.indices(segment, row.shape[1])
        block = row.reshape(-1, row.shape[2]).index_select(0, index)
        return block.view(len(segment.lengths), row.shape[1], segment.max_length, row.shape[2])

    def _put(self, segment: Segment, row: Tensor, block: Tensor) -> None:
        if len(segment.lengths) == 1:
            row[segment.tokens] = block.transpose(0, 1)
            return
        _, index = self.layout.indices(segment, row.shape[1])
        torch.index_select(block.reshape(-1, row.shape[2]), 0, index, out=row[segment.tokens].view(-1, row.shape[2]))


def _after(prefix: Tensor | None, tokens: Tensor) -> Tensor:
    """Put prefix [N, P, D] before tokens [.., N, K, D]: [.., N, P + K, D]."""
    if prefix is None:
        return tokens
    return torch.cat([prefix.expand(*tokens.shape[:-2], -1, -1), tokens], -2)


def _add_to(block: _Block, grad: Tensor, grad_row: Tensor | None, grad_prefix: Tensor | None) -> None:
    """Add the gradient [.., N, P + K, D] of a group's keys or values to those of the row and the prefix."""
    prefix = grad.shape[-2] - block.keys.max_length
    if grad_prefix is not None:
        grad_prefix += grad[..., :prefix, :].sum(0) if grad.ndim == 4 else grad[:, :prefix]
    if grad_row is not None:
        block.put_keys(grad_row, grad[..., prefix:, :])


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    prefix: Prefix | RowPrefixes | None,
    layout: VarlenLayout,
    sides: tuple[int, int],
    p: float,
) -> Tensor:
    """Attend within each example of one padding-free row.

    Args:
        query: Of all examples, end to end.
        key: Of all examples, end to end.
        value: Of all examples, end to end.
        bias: For the longest example; None for no bias.
        prefix: Keys and values that stand before those of every example. Prefixes of each example need the compiled functions.
        layout: The examples of the row.
        sides: Whether queries and keys are sources (0) or targets (1).
        p: Probability of dropping a weight; 0 outside of training.

    Shapes:
        query: [1, N, Q.., D].
        key, value: [1, N, K.., D].
        bias: [1, N, max Q, max K].
        prefix: [1, N, P, D], keys and values.
        Output: [1, Q.., N, D].
    """
    dtype = query.dtype
    # Every group has another shape, and oneDNN would prepare and keep bfloat16 products for each of them. Products in float32
    # are those of MKL, and the arithmetic of attention is little. Autocast would turn them into bfloat16 again.
    inside = torch.float32 if dtype is torch.bfloat16 else dtype
    own = prefix if isinstance(prefix, RowPrefixes) else None
    prefix_key, prefix_value = (part[0].to(inside) for part in prefix) if isinstance(prefix, tuple) else (None, None)
    query, key, value = (part[0].transpose(0, 1).to(inside) for part in (query, key, value))
    bias = None if bias is None else bias[0].to(inside)
    attended = native_attention(query, key, value, bias, own or (prefix_key, prefix_value), layout, sides, p)
    if attended is not None:
        return attended.unsqueeze(0).to(dtype)
    assert own is None  # as sources are packed only where the compiled functions take them
    blocks = [_Block(layout, group[sides[0]], group[sides[1]]) for group in layout.groups]
    with torch.autocast("cpu", enabled=False):
        attended = _VarlenAttention.apply(query, key, value, bias, prefix_key, prefix_value, blocks, p)
    return cast(Tensor, attended).unsqueeze(0).to(dtype)


class _Attention(torch.autograd.Function):
    """Attention of a padded batch, with dropout."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float) -> Tensor:
        """Map query [B, N, Q, D], key and value [B, N, K, D], bias [1 or B, N, Q, K] -> [B, N, Q, D]."""
        scores = torch.matmul(query, key.transpose(2, 3))
        if bias is not None:
            scores.add_(bias)
        probabilities = torch.softmax(scores, -1)
        ctx.mask = DropMask(probabilities.numel(), p)
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(query, key, value, probabilities)
        return torch.matmul(ctx.mask.drop(probabilities), value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities = ctx.saved_tensors
        factors = ctx.mask.factors(0, probabilities)
        grad_query = grad_key = grad_value = grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_value = torch.matmul((probabilities * factors).transpose(2, 3), grad)
        grad_scores = torch.matmul(grad, value.transpose(2, 3)).mul_(factors)
        grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)
        if ctx.needs_input_grad[0]:
            grad_query = torch.matmul(grad_scores, key)
        if ctx.needs_input_grad[1]:
            grad_key = torch.matmul(grad_scores.transpose(2, 3), query)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_scores.sum_to_size(ctx.bias_shape)
        return grad_query, grad_key, grad_value, grad_bias, None


def attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float) -> Tensor:
    """Return softmax(query key^T + bias), dropped with probability p, times value, in one operation for the CPU.

    Shapes:
        query: [B, N, Q, D].
        key, value: [B, N, K, D].
        bias: [1 or B, 1 or N, 1 or Q, K].
        Output: [B, N, Q, D].
    """
    return cast(Tensor, _Attention.apply(query, key, value, bias, p))
