"""Where the examples of a padding-free row lie, and how attention groups them.

A row holds examples end to end, sources in the encoder and targets in the decoder. Attention goes through them in groups. A
group of one example is a slice of the row. A group of several examples of similar lengths is copied into a padded block,
because many short examples cost more in calls than in arithmetic.

Letters: G examples in a group, M longest of them, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

# The cost of one more group, in scores of one attention: about 25 calls, less the copies that a padded block takes.
GROUP_COST = 300


@dataclass(frozen=True)
class Segment:
    """The sources, or the targets, of one group: neighbors in the row, from token ``start`` on."""

    start: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> slice:
        """The part of the row that the group takes."""
        return slice(self.start, self.start + sum(self.lengths))

    @property
    def max_length(self) -> int:
        """The longest example, M."""
        return max(self.lengths)

    @cached_property
    def mask(self) -> Tensor | None:
        """The positions of the padded block that hold a token, [G, M]. None where all of them do."""
        if len(set(self.lengths)) == 1:
            return None
        return torch.arange(self.max_length) < torch.tensor(self.lengths)[:, None]

    @cached_property
    def hidden(self) -> Tensor | None:
        """The mask for scores, [G, 1, 1, M]: minus infinity at padding. None where there is no padding."""
        return (
            None
            if self.mask is None
            else torch.zeros(self.mask.shape).masked_fill_(~self.mask, -torch.inf)[:, None, None]
        )

    def to_block(self, heads: int) -> Tensor:
        """Return for each entry of a block [G, N, M] its (token, head) in the row. Padding repeats the first token."""
        starts = torch.tensor(self.lengths).cumsum(0) - torch.tensor(self.lengths) + self.start
        tokens = starts[:, None] + torch.arange(self.max_length)
        if self.mask is not None:
            tokens = tokens.masked_fill(~self.mask, self.start)
        return (tokens[:, None] * heads + torch.arange(heads)[:, None]).flatten()

    def from_block(self, heads: int) -> Tensor:
        """Return for each (token, head) of the group's part of the row its entry in a block [G, N, M]."""
        entries = torch.arange(len(self.lengths) * heads * self.max_length)
        entries = entries.view(len(self.lengths), heads, self.max_length).transpose(1, 2)
        return (entries if self.mask is None else entries[self.mask]).flatten()


class Examples:
    """Where the queries, keys and scores of each example lie, without padding.

    Args:
        queries: The queries of each example.
        keys: The keys of each example, without a prefix.
        heads: The heads of the attention.
        prefix: The length of the prefix.

    Attributes:
        places: Where the scores [N, Q, P + K] of each example start.
        scores: The number of all scores.
    """

    def __init__(self, queries: Sequence[int], keys: Sequence[int], heads: int, prefix: int) -> None:
        self.heads, self.prefix = heads, prefix
        self.queries, self.keys = torch.tensor(queries), torch.tensor(keys)
        self.query_starts, self.key_starts = (lengths.cumsum(0) - lengths for lengths in (self.queries, self.keys))
        scores = heads * self.queries * (prefix + self.keys)
        self.places, self.scores = scores.cumsum(0) - scores, int(scores.sum())
        self._totals, self._longest = (sum(queries), sum(keys)), (max(queries), max(keys))

    def fit(self, query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
        """Return whether the examples lie within query [Q.., N, D], key [K.., N, D] and bias [N, Q, K]."""
        enough = zip((len(query), len(key)), self._totals, strict=True)
        wide = zip(bias.shape[1:], self._longest, strict=True) if bias is not None else ()
        return all(have >= need for have, need in (*enough, *wide))


@dataclass(frozen=True)
class VarlenLayout:
    """The examples of a row, by source and target length, in groups of neighbors."""

    source_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    _indices: dict[tuple[Segment, int], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)
    _examples: dict[tuple[int, ...], Examples] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def groups(self) -> list[tuple[Segment, Segment]]:
        """The sources and the targets of each group."""
        groups: list[tuple[Segment, Segment]] = []
        source_start = target_start = 0
        for size in _group_sizes(self.source_lengths, self.target_lengths):
            done = sum(len(source.lengths) for source, _ in groups)
            source = Segment(source_start, self.source_lengths[done : done + size])
            target = Segment(target_start, self.target_lengths[done : done + size])
            groups.append((source, target))
            source_start, target_start = source.tokens.stop, target.tokens.stop
        return groups

    def with_prompt(self, length: int) -> VarlenLayout:
        """Return the layout of the same row with a prompt of ``length`` before each source."""
        return VarlenLayout(tuple(tokens + length for tokens in self.source_lengths), self.target_lengths)

    def indices(self, segment: Segment, heads: int) -> tuple[Tensor, Tensor]:
        """Return ``segment.to_block(heads)`` and ``segment.from_block(heads)``, made once per row for all layers."""
        if (segment, heads) not in self._indices:
            self._indices[segment, heads] = (segment.to_block(heads), segment.from_block(heads))
        return self._indices[segment, heads]

    def examples(self, sides: tuple[int, int], heads: int, prefix: int) -> Examples:
        """Return where the scores of an attention lie, made once per row for all layers.

        Args:
            sides: Whether queries and keys are sources (0) or targets (1).
            heads: The heads of the attention.
            prefix: The length of the prefix.
        """
        key = (*sides, heads, prefix)
        if key not in self._examples:
            queries, keys = ((self.source_lengths, self.target_lengths)[side] for side in sides)
            self._examples[key] = Examples(queries, keys, heads, prefix)
        return self._examples[key]


def _group_sizes(source_lengths: Sequence[int], target_lengths: Sequence[int]) -> list[int]:
    """Cut the examples, in their order, into groups. A new group must save more scores of padding than it costs."""
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
