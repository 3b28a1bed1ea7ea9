"""Prefixes of some rows of a batch, for the attention functions of both kinds of families.

Letters: B batch, Q queries, K keys, N heads, G heads of keys and values, D d_kv, P prefix length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

Scores = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""From queries, keys, values and a bias to the output [B, N, Q, D]."""


@dataclass(frozen=True)
class RowPrefixes:
    """Prefixes of some rows of a batch, each with its own; the other rows have none."""

    rows: slice | Tensor
    """The rows with a prefix."""
    others: slice | Tensor | None
    """The rows without one; None where there are none."""
    key: Tensor
    """[rows, G, P, D], the shorter ones filled up on the left."""
    value: Tensor
    """[rows, G, P, D]."""
    hidden: Tensor | None
    """[rows, 1, 1, P], true where a prefix is filled up; None where all have the same length."""
    _addresses: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def addresses(self, count: int) -> Tensor:
        """Return for each of ``count`` rows the length of its prefix, and where its keys and values start in memory [count, 3]."""
        if count not in self._addresses:
            index = torch.arange(count)[self.rows]
            missing = 0 if self.hidden is None else self.hidden.flatten(1).sum(1)
            table = torch.zeros(count, 3, dtype=torch.int64)
            table[index, 0] = torch.full((len(index),), self.key.shape[2]) - missing
            for column, part in enumerate((self.key, self.value), 1):
                offsets = torch.arange(len(part)) * part.stride(0) + missing * part.stride(2)
                table[index, column] = part.data_ptr() + offsets * part.element_size()
            self._addresses[count] = table
        return self._addresses[count]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores) -> Tensor:
        """Attend with the prefixes. Rows without one get exactly what they would get by themselves.

        Args:
            query: The queries.
            key: The keys, after the cache.
            value: The values, after the cache.
            bias: Position bias and masks, to add to the scores.
            scores: The attention of some rows.

        Returns:
            The output.

        Shapes:
            query, key, value: [B, N, Q, D], [B, G, K, D].
            bias: [1 or B, 1 or N, Q or 1, K].
            Output: [B, N, Q, D].
        """
        output = torch.empty_like(query)
        length = self.key.shape[2]
        own = None if bias is None else pad(_rows_of(bias, self.rows), (length, 0))
        if self.hidden is not None:
            if own is None:
                own = query.new_zeros(1, 1, 1, length + key.shape[2])
            own = own.expand(len(self.key), -1, -1, -1).clone()
            own[..., :length] = own[..., :length].masked_fill(self.hidden, torch.finfo(query.dtype).min)
        output[self.rows] = scores(
            query[self.rows],
            torch.cat([self.key.to(key.dtype), key[self.rows]], dim=2),
            torch.cat([self.value.to(value.dtype), value[self.rows]], dim=2),
            own,
        )
        if self.others is not None:
            rest = None if bias is None else _rows_of(bias, self.others)
            output[self.others] = scores(query[self.others], key[self.others], value[self.others], rest)
        return output


def _rows_of(bias: Tensor, rows: slice | Tensor) -> Tensor:
    return bias if len(bias) == 1 else bias[rows]
