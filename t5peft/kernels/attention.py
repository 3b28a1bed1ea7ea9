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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from t5peft.kernels.dropout import DropMask

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


def _spans(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


class _RowAttention(torch.autograd.Function):
    """Attention of each example in a row to itself, or to its source."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        query_lengths: Sequence[int],
        key_lengths: Sequence[int],
        p: float,
    ) -> Tensor:
        """query [N, Q.., D], key and value [N, K.., D], bias [N, >=Q, >=K], prefixes [N, P, D] -> [Q.., N, D]."""
        prefix = 0 if prefix_key is None else prefix_key.shape[1]
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        scores = sum(q * (prefix + k) for q, k in zip(query_lengths, key_lengths, strict=True)) * len(query)
        mask = DropMask(scores, p) if p else None
        examples, start = [], 0
        for queries, keys in zip(_spans(query_lengths), _spans(key_lengths), strict=True):
            probabilities = _probabilities(query[:, queries], _after(prefix_key, key[:, keys]), bias, prefix)
            factors = None
            if mask is not None:
                factors = mask.factors(start, probabilities)
                start += probabilities.numel()
            dropped = probabilities if factors is None else factors.mul_(probabilities)
            output[queries].transpose(0, 1).copy_(torch.bmm(dropped, _after(prefix_value, value[:, keys])))
            examples.append((queries, keys, probabilities))
        ctx.save_for_backward(query, key, value, bias, prefix_key, prefix_value)
        ctx.examples, ctx.mask, ctx.prefix = examples, mask, prefix
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, prefix_key, prefix_value = ctx.saved_tensors
        grads = [
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        grad_query, grad_key, grad_value, grad_bias, grad_prefix_key, grad_prefix_value = grads
        start = 0
        for queries, keys, probabilities in ctx.examples:
            grad_output = grad[queries].transpose(0, 1)
            factors = None if ctx.mask is None else ctx.mask.factors(start, probabilities)
            start += probabilities.numel()
            if ctx.needs_input_grad[2] or ctx.needs_input_grad[5]:
                dropped = probabilities if factors is None else probabilities * factors
                _add(grad_prefix_value, grad_value, keys, torch.bmm(dropped.transpose(1, 2), grad_output), ctx.prefix)
            grad_scores = torch.bmm(grad_output, _after(prefix_value, value[:, keys]).transpose(1, 2))
            if factors is not None:
                grad_scores.mul_(factors)
            grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)
            if grad_bias is not None:
                own = grad_scores[:, :, ctx.prefix :]
                grad_bias[:, : own.shape[1], : own.shape[2]] += own
            if grad_query is not None:
                grad_query[:, queries] = torch.bmm(grad_scores, _after(prefix_key, key[:, keys]))
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[4]:
                grad_keys = torch.bmm(grad_scores.transpose(1, 2), query[:, queries])
                _add(grad_prefix_key, grad_key, keys, grad_keys, ctx.prefix)
        return *grads, None, None, None


def _probabilities(query: Tensor, key: Tensor, bias: Tensor | None, prefix: int) -> Tensor:
    """Softmax of query [N, Q, D] over key [N, P + K, D], with bias on the keys after the prefix: [N, Q, P + K]."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        scores[:, :, prefix:].add_(bias[:, : scores.shape[1], : scores.shape[2] - prefix])
    return torch.softmax(scores, -1)


def _after(prefix: Tensor | None, tokens: Tensor) -> Tensor:
    """Prefix [N, P, D] and tokens [N, K, D] to [N, P + K, D]."""
    return tokens if prefix is None else torch.cat([prefix, tokens], 1)


def _add(grad_prefix: Tensor | None, grad_tokens: Tensor | None, span: slice, grad: Tensor, prefix: int) -> None:
    """Hand the gradient [N, P + K, D] of one example to prefix and tokens."""
    if grad_prefix is not None:
        grad_prefix += grad[:, :prefix]
    if grad_tokens is not None:
        grad_tokens[:, span] = grad[:, prefix:]


def attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    prefix: Prefix | None,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    p: float,
) -> Tensor:
    """Attention within each example of one row.

    Args:
        query, key, value: [1, N, Q.., D] and [1, N, K.., D], examples end to end.
        bias: [1, N, longest Q, longest K], that of an example alone; None: none.
        prefix: keys and values [1, N, P, D] before those of every example.
        query_lengths, key_lengths: tokens of each example, in the order of the row.
        p: probability of dropping a weight; 0 outside of training.

    Returns:
        [1, Q.., N, D].
    """
    prefix_key, prefix_value = (None, None) if prefix is None else (part[0].to(key.dtype) for part in prefix)
    bias = None if bias is None else bias[0]
    return _RowAttention.apply(
        query[0], key[0], value[0], bias, prefix_key, prefix_value, query_lengths, key_lengths, p
    ).unsqueeze(0)


class _Attention(torch.autograd.Function):
    """Attention of a padded batch, with dropout."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float) -> Tensor:
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
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
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
