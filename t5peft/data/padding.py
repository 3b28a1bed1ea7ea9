"""Padding: rows of unlike lengths become one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows of ids as one tensor, filled up with ``value`` on the right.

    Args:
        rows: Rows of any lengths, at least one.
        value: Put where a row is shorter than the longest.

    Shapes:
        rows: [B][T of each row]
        returns: [B, T of the longest row], int64
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)
