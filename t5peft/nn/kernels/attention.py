"""Attention with relative position bias and dropout on a CPU: padded batches, and rows of examples without padding.

torch's own attention falls back to plain products in training, for the dropout, and draws its mask element by element. Here
one operation computes the scores, adds the bias in place, and keeps for the backward pass the probabilities and one byte
an element for the mask.

`attend_row` takes one row in which examples lie end to end. Every linear map, norm and dropout of T5 treats tokens one by
one, so they never see padding; attention alone must know the examples, and goes through them one after another. Nothing is
padded, no score of two examples is ever computed, and no mask exists.

Letters: B batch, N heads, D d_kv, P prefix length; Q queries and K keys of one example, Q.. and K.. of all in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.dropout import DropMask
from t5peft.nn.kernels.varlen import Side, VarlenLayout

Prefix = tuple[Tensor, Tensor]


class BiasByDistance(nn.Module):
    """An attention of T5 whose position bias is that of each distance once, not of each pair.

    The attention function "t5peft" spreads it out where it needs the pairs; a row of examples needs few of them.
    """

    def compute_bias(
        self, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
    ) -> Tensor:
        """Bias of the distances from -(Q - 1) - past to K - 1 - past: [1, N, 1, Q + K - 1]."""
        return super().compute_bias(  # type: ignore[misc]
            1, query_length + key_length - 1, device=device, past_seen_tokens=past_seen_tokens + query_length - 1
        )


def toeplitz(table: Tensor, queries: int, keys: int) -> Tensor:
    """A bias by distance, [.., 1, Q + K - 1], to the bias of every pair, [.., Q, K]: entry (i, j) is table[j - i + Q - 1]."""
    return table.unfold(-1, keys, 1).squeeze(-3).flip(-2)


class _RowAttention(torch.autograd.Function):
    """Attention of each example in a row to itself, or to its source, group by group."""

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
        """query [Q.., N, D], key and value [K.., N, D], bias [N, >=Q, >=K], prefixes [N, P, D] -> [Q.., N, D]."""
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
                dropped = mask.factors(start, probabilities).mul_(probabilities)
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
                _hand_out(block, grad_keys, grad_key, grad_prefix_key)
            if grad_value is not None or grad_prefix_value is not None:
                dropped = probabilities if factors is None else factors.mul_(probabilities)
                grad_values = torch.matmul(dropped.transpose(-1, -2), grad_output)
                _hand_out(block, grad_values, grad_value, grad_prefix_value)
        return grad_query, grad_key, grad_value, grad_bias, grad_prefix_key, grad_prefix_value, None, None


@dataclass(frozen=True)
class _Block:
    """One group's queries and keys, taken out of the row and put back.

    A group of one example is a slice, [N, L, D]; a group of several a padded copy, [G, N, L, D].
    """

    layout: VarlenLayout
    queries: Side
    keys: Side

    def scores(self, heads: int, prefix: int) -> int:
        return len(self.keys.lengths) * heads * self.queries.longest * (prefix + self.keys.longest)

    def queries_of(self, row: Tensor, padding_is_zero: bool = False) -> Tensor:
        """row [Q.., N, D] to the group's queries."""
        block = self._take(self.queries, row)
        if padding_is_zero and self.queries.kept is not None:
            block.mul_(self.queries.kept[:, None, :, None])
        return block

    def keys_of(self, row: Tensor) -> Tensor:
        """row [K.., N, D] to the group's keys."""
        return self._take(self.keys, row)

    def put_queries(self, row: Tensor, block: Tensor) -> None:
        self._put(self.queries, row, block)

    def put_keys(self, row: Tensor, block: Tensor) -> None:
        self._put(self.keys, row, block)

    def bias(self, scores: Tensor, bias: Tensor | None, prefix: int) -> None:
        """Add bias [N, >=Q, >=K] to scores [.., N, Q, P + K] after the prefix, in place; hide padded keys."""
        own = scores[..., prefix:]
        if bias is not None:
            own.add_(bias[:, : own.shape[-2], : own.shape[-1]])
        if self.keys.kept is not None:
            hidden = torch.zeros(self.keys.kept.shape).masked_fill_(~self.keys.kept, -torch.inf)
            own.add_(hidden[:, None, None])

    def _take(self, side: Side, row: Tensor) -> Tensor:
        if len(side.lengths) == 1:
            return row[side.tokens].transpose(0, 1)
        index, _ = self.layout.indices(side, row.shape[1])
        block = row.reshape(-1, row.shape[2]).index_select(0, index)
        return block.view(len(side.lengths), row.shape[1], side.longest, row.shape[2])

    def _put(self, side: Side, row: Tensor, block: Tensor) -> None:
        if len(side.lengths) == 1:
            row[side.tokens] = block.transpose(0, 1)
            return
        _, index = self.layout.indices(side, row.shape[1])
        torch.index_select(block.reshape(-1, row.shape[2]), 0, index, out=row[side.tokens].view(-1, row.shape[2]))


def _after(prefix: Tensor | None, tokens: Tensor) -> Tensor:
    """Prefix [N, P, D] before tokens [.., N, K, D]: [.., N, P + K, D]."""
    if prefix is None:
        return tokens
    return torch.cat([prefix.expand(*tokens.shape[:-2], -1, -1), tokens], -2)


def _hand_out(block: _Block, grad: Tensor, grad_row: Tensor | None, grad_prefix: Tensor | None) -> None:
    """Hand the gradient [.., N, P + K, D] of a group's keys or values to the row and the prefix."""
    prefix = grad.shape[-2] - block.keys.longest
    if grad_prefix is not None:
        grad_prefix += grad[..., :prefix, :].sum(0) if grad.ndim == 4 else grad[:, :prefix]
    if grad_row is not None:
        block.put_keys(grad_row, grad[..., prefix:, :])


def attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    prefix: Prefix | None,
    layout: VarlenLayout,
    sides: tuple[int, int],
    p: float,
) -> Tensor:
    """Attention within each example of one row.

    Args:
        query, key, value: [1, N, Q.., D] and [1, N, K.., D], examples end to end.
        bias: [1, N, longest Q, longest K], that of an example alone; None: none.
        prefix: keys and values [1, N, P, D] before those of every example.
        layout: the examples of the row.
        sides: whether queries and keys are sources (0) or targets (1).
        p: probability of dropping a weight; 0 outside of training.

    Returns:
        [1, Q.., N, D].
    """
    dtype = query.dtype
    # Every group has a shape of its own, for each of which oneDNN would prepare and keep products in bfloat16; those in
    # float32 are MKL's, and the arithmetic of attention is little. Autocast would make them bfloat16 again.
    inside = torch.float32 if dtype is torch.bfloat16 else dtype
    prefix_key, prefix_value = (None, None) if prefix is None else (part[0].to(inside) for part in prefix)
    query, key, value = (part[0].transpose(0, 1).to(inside) for part in (query, key, value))
    blocks = [_Block(layout, group[sides[0]], group[sides[1]]) for group in layout.groups]
    bias = None if bias is None else bias[0].to(inside)
    with torch.autocast("cpu", enabled=False):
        attended = _RowAttention.apply(query, key, value, bias, prefix_key, prefix_value, blocks, p)
    return attended.unsqueeze(0).to(dtype)


class _Attention(torch.autograd.Function):
    """Attention of a padded batch, with dropout."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float) -> Tensor:
        """query [B, N, Q, D], key and value [B, N, K, D], bias [1 or B, N, Q, K] -> [B, N, Q, D]."""
        scores = torch.matmul(query, key.transpose(2, 3))
        if bias is not None:
            scores.add_(bias)
        probabilities = torch.softmax(scores, -1)
        ctx.mask = DropMask(probabilities.numel(), p)
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(query, key, value, probabilities)
        return torch.matmul(ctx.mask.factors(0, probabilities).mul_(probabilities), value)

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
    """softmax(query key^T + bias), dropped with probability p, times value, in one operation for the CPU.

    Shapes: query [B, N, Q, D], key and value [B, N, K, D], bias [1 or B, 1 or N, 1 or Q, K] -> [B, N, Q, D].
    """
    return _Attention.apply(query, key, value, bias, p)
