"""Attention and LoRA of the rows of a batch in a step of generation, by the compiled functions of ``rows.c``.

Letters: B rows, T tokens, N heads, D d_kv, K keys, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from t5peft.nn.kernels.native import Queries, call, takes_native, takes_strided
from t5peft.nn.row_prefixes import RowPrefixes


class LowRankRows:
    """LoRA matrices of rows of a batch, where every adapter has rows next to each other.

    Args:
        parts: The first row, the number of rows, and their matrices.

    Shapes:
        parts: a [R, I], contiguous, and b [O, R], the transposed of a contiguous tensor.
    """

    def __init__(self, parts: Sequence[tuple[int, int, Tensor, Tensor]]) -> None:
        self._kept = parts
        lines = [(first, count, len(a), a.data_ptr(), b.data_ptr()) for first, count, a, b in parts]
        self._table = torch.tensor(lines, dtype=torch.int64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add ``B A x`` to the rows of y [B, .., O], in place, for x [B, .., I]."""
        table, tokens = self._table, x.shape[1:-1].numel()
        if tokens > 1:
            table = table * torch.tensor([tokens, tokens, 1, 1, 1])
        if call("add_low_rank", table, len(table), x, x.shape[-1], y, y.shape[-1], torch.get_num_threads()):
            raise MemoryError("Got no memory for LoRA; expected some. Take fewer rows at once.")


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    prefix: RowPrefixes | None,
    scale: float | None,
) -> Tensor | None:
    """Attend with one query of each row, or return None where the compiled function does not take the tensors.

    Shapes:
        query: [B, N, 1, D].
        key, value: [B, N, K, D].
        bias: [1 or B, N, 1, K].
        mask: [B, 1, 1, K], additive.
        Output: [B, 1, N, D].
    """
    rows, heads, queries, size = query.shape
    keys = key.shape[2]
    if queries != 1 or torch.is_grad_enabled() or scale is None or key.shape[:2] != query.shape[:2]:
        return None
    if bias is not None and bias.shape not in ((1, heads, 1, keys), (rows, heads, 1, keys)):
        return None
    if mask is not None and mask.shape not in ((1, 1, 1, keys), (rows, 1, 1, keys)):
        return None
    bias = None if bias is None else bias.contiguous()  # T5 looks it up by keys and heads
    # The prefix of one row counts, as those of others may be the same memory.
    prefixes = () if prefix is None else (prefix.key[0], prefix.value[0])
    if not takes_strided(query, key, value, bias, mask) or not takes_native(*prefixes):
        return None
    output = query.new_empty(rows, 1, heads, size)
    table, length = (None, 0) if prefix is None else (prefix.addresses(rows), prefix.key.shape[2])
    described = Queries(
        *(rows, heads, size, keys, *query.stride()[:2], *key.stride()[:3], *value.stride()[:3]),
        *((None, 0, 0) if bias is None else (bias.data_ptr(), bias.stride(0) if len(bias) > 1 else 0, bias.stride(1))),
        *((None, 0) if mask is None else (mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0)),
        *(None if table is None else table.data_ptr(), length, length * size),
        *(scale, torch.get_num_threads()),
    )
    if call("attend_rows", ctypes.byref(described), query, key, value, output):
        raise MemoryError("Got no memory for attention; expected some. Take fewer rows at once.")
    return output
