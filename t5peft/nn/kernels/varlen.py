"""Where the examples of a row lie, and how attention groups them.

A row holds examples end to end, sources in the encoder and targets in the decoder. Attention goes through them in groups: a
group of one is a slice of the row; a group of several, of similar lengths, is copied into a padded block, because many
short examples cost more in calls than in arithmetic.

Letters: G examples in a group, L longest of them, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

# What one more group costs, in scores of one attention: some 25 calls, less the copies that a padded block takes.
GROUP_COST = 300


@dataclass(frozen=True)
class Side:
    """The sources, or the targets, of one group: tokens from `start` on, examples of `lengths`."""

    start: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> slice:
        """The group's part of the row."""
        return slice(self.start, self.start + sum(self.lengths))

    @property
    def longest(self) -> int:
        """L."""
        return max(self.lengths)

    @cached_property
    def kept(self) -> Tensor | None:
        """Which positions of the padded block hold a token, [G, L]; None where all do."""
        if len(set(self.lengths)) == 1:
            return None
        return torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]

    def to_block(self, heads: int) -> Tensor:
        """For each entry of a block [G, N, L]: which (token, head) of the row it is; padding repeats the first token."""
        starts = torch.tensor(self.lengths).cumsum(0) - torch.tensor(self.lengths) + self.start
        tokens = starts[:, None] + torch.arange(self.longest)
        if self.kept is not None:
            tokens = tokens.masked_fill(~self.kept, self.start)
        return (tokens[:, None] * heads + torch.arange(heads)[:, None]).flatten()

    def from_block(self, heads: int) -> Tensor:
        """For each (token, head) of the group's part of the row: which entry of a block [G, N, L] it is."""
        entries = torch.arange(len(self.lengths) * heads * self.longest).view(len(self.lengths), heads, self.longest)
        entries = entries.transpose(1, 2)
        return (entries if self.kept is None else entries[self.kept]).flatten()


@dataclass(frozen=True)
class VarlenLayout:
    """The examples of a row, by source and target length, in groups of neighbours."""

    source_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    _indices: dict[tuple[Side, int], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def groups(self) -> list[tuple[Side, Side]]:
        """Source and target side of each group."""
        groups: list[tuple[Side, Side]] = []
        source_start = target_start = 0
        for size in _group_sizes(self.source_lengths, self.target_lengths):
            done = sum(len(source.lengths) for source, _ in groups)
            source = Side(source_start, self.source_lengths[done : done + size])
            target = Side(target_start, self.target_lengths[done : done + size])
            groups.append((source, target))
            source_start, target_start = source.tokens.stop, target.tokens.stop
        return groups

    def with_prompt(self, length: int) -> VarlenLayout:
        """The layout of the same row with a prompt of `length` before each source."""
        return VarlenLayout(tuple(tokens + length for tokens in self.source_lengths), self.target_lengths)

    def indices(self, side: Side, heads: int) -> tuple[Tensor, Tensor]:
        """`side.to_block(heads)` and `side.from_block(heads)`, made once a row: every layer needs them."""
        if (side, heads) not in self._indices:
            self._indices[side, heads] = (side.to_block(heads), side.from_block(heads))
        return self._indices[side, heads]


def _group_sizes(source_lengths: Sequence[int], target_lengths: Sequence[int]) -> list[int]:
    """Cut the examples, in their order, into groups: as few scores of padding as a group is worth."""
    count = len(source_lengths)
    cost, first = [0.0] + [float("inf")] * count, [0] * (count + 1)
    for end in range(1, count + 1):
        source = target = 0
        for start in range(end - 1, -1, -1):
            source, target = max(source, source_lengths[start]), max(target, target_lengths[start])
            scores = (end - start) * (source * source + target * target + source * target)
            if cost[start] + scores + 3 * GROUP_COST < cost[end]:
                cost[end], first[end] = cost[start] + scores + 3 * GROUP_COST, start
    sizes, end = [], count
    while end:
        sizes.append(end - first[end])
        end = first[end]
    return sizes[::-1]
