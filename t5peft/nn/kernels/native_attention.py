"""Attention within the examples of a padding-free row, by the compiled functions of ``native.c``.

Letters: E examples, N heads, D d_kv, P prefix length; Q.. and K.. queries and keys of all examples.
"""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.dropout import DropMask
from t5peft.nn.kernels.native import Layout, call, takes_native
from t5peft.nn.kernels.varlen import Examples, VarlenLayout
from t5peft.nn.row_prefixes import RowPrefixes


def _described(
    examples: Examples, size: int, bias: Tensor | None, mask: DropMask | None, own: RowPrefixes | None = None
) -> Layout:
    """Return the structure for heads of ``size``, bias [N, longest Q, longest K], ``mask`` and prefixes of each example."""
    lists = (examples.query_starts, examples.queries, examples.key_starts, examples.keys, examples.places)
    return Layout(
        *(len(examples.queries), examples.heads, size, examples.prefix),
        *(tensor.data_ptr() for tensor in lists),
        *((None, 0, 0) if bias is None else (bias.data_ptr(), bias.stride(0), bias.stride(1))),
        *((None, 0, 0.0) if mask is None else (mask.bytes.data_ptr(), mask.threshold, mask.scale)),
        torch.get_num_threads(),
        *((None, 0) if own is None else (own.addresses(len(examples.queries)).data_ptr(), own.key.stride(1))),
    )


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        examples: Examples,
        own: RowPrefixes | None,
        p: float,
        keeps: bool,
    ) -> Tensor:
        """Map query [Q.., N, D], key and value [K.., N, D], bias [N, >=Q, >=K], prefixes [N, P, D] -> [Q.., N, D]."""
        mask = DropMask(examples.scores, p) if p else None
        output, probabilities = torch.empty_like(query), query.new_empty(examples.scores) if keeps else None
        layout = _described(examples, query.shape[-1], bias, mask, own)
        inputs = (query, key, value, prefix_key, prefix_value)
        _call("attention_forward", layout, *inputs, output, probabilities)
        ctx.save_for_backward(*inputs, bias, probabilities)
        ctx.examples, ctx.mask = examples, mask
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, bias, probabilities = ctx.saved_tensors
        layout = _described(ctx.examples, grad.shape[-1], bias, ctx.mask)
        needed = ctx.needs_input_grad
        query, key, value = (
            torch.empty_like(tensor) if need else None for tensor, need in zip(inputs[:3], needed[:3], strict=True)
        )
        prefix_key, prefix_value = (
            tensor.new_empty(len(ctx.examples.queries), *tensor.shape) if need else None
            for tensor, need in zip(inputs[3:], needed[4:6], strict=True)
        )
        scores = torch.empty_like(probabilities) if needed[3] else None
        grads = (query, key, value, prefix_key, prefix_value, scores)
        _call("attention_backward", layout, *inputs, probabilities, grad.contiguous(), *grads)
        grad_bias = None
        if scores is not None:
            grad_bias = torch.zeros_like(bias)
            call("bias_backward", ctypes.byref(layout), scores, grad_bias)
        sums = (None if grads is None else grads.sum(0) for grads in (prefix_key, prefix_value))
        return query, key, value, grad_bias, *sums, None, None, None, None


def _call(name: str, layout: Layout, *tensors: Tensor | None) -> None:
    if call(name, ctypes.byref(layout), *tensors):
        raise MemoryError(f"Got no memory for {name.replace('_', ' ')}; expected some. Take fewer tokens in a step.")


def native_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    prefix: tuple[Tensor | None, Tensor | None] | RowPrefixes,
    layout: VarlenLayout,
    sides: tuple[int, int],
    p: float,
) -> Tensor | None:
    """Attend as ``varlen_attention`` does, or return None where the compiled functions do not take the tensors.

    Shapes:
        query: [Q.., N, D].
        key, value: [K.., N, D].
        bias: [N, max Q, max K].
        prefix: [N, P, D], keys and values of all examples; those of each are for evaluation.
        Output: [Q.., N, D].
    """
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    bias = None if bias is None else bias.contiguous()
    own, shared = (prefix, (None, None)) if isinstance(prefix, RowPrefixes) else (None, prefix)
    prefix_key, prefix_value = (None if part is None else part.contiguous() for part in shared)
    tensors = (query, key, value, bias, prefix_key, prefix_value)
    if not takes_native(*tensors, *(() if own is None else (own.key, own.value))):
        return None
    longest = prefix_key if own is None else own.key
    prefix_length = 0 if longest is None else longest.shape[-2]
    examples = layout.examples(sides, query.shape[1], prefix_length)
    if not examples.fit(query, key, bias):
        return None
    keeps = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return cast(Tensor, _NativeAttention.apply(*tensors, examples, own, p, keeps))
