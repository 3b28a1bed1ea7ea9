"""The running batch: rows that join and leave between two steps of the decoder, and their caches.

Only distances count, between positions and within a sliding window. A row may join at the present column of the batch: columns
before its first one hold zeros and are masked. Rotary positions are those of the row, whatever its columns are. Sources are padded
on the right and masked there. Columns that no row sees any more are cut off, on the left of the self-attention and on the right of
the cross-attention. The decoder is that of transformers.

The keys and values of all layers lie in one tensor with free rows and columns. A step writes its own column, a row that joins its
own place, and nearly all other rows stay where they are.

Letters: B rows, N heads, D d_kv, S source columns, T target columns, L layers of the decoder, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from t5peft.models.families import family_of
from t5peft.serving.mixed import MixedModel
from t5peft.serving.routing import sort_key
from t5peft.serving.weights import AdapterWeights


@dataclass(eq=False, kw_only=True)
class Row:
    """One answer that is being generated."""

    source_ids: Sequence[int]
    next_id: int
    """The next token that the decoder reads; at first the start token."""
    adapter: AdapterWeights | None = None
    source_columns: int = 0
    """Columns of its source in the caches, with those of a prompt."""
    target_columns: int = 0
    """Columns of its answer in the caches."""
    ended: bool = False
    """Whether the batch may drop it."""


class Batch:
    """Rows that take their steps together, those of one adapter next to each other.

    Args:
        rows: The rows, in the order of the caches.
        targets: Keys and values of their answers in all layers.
        sources: Keys and values of their sources in all layers.

    Attributes:
        rows: The rows, in the order of the caches.

    Shapes:
        targets: [2 L, B, N, 0 or 1, D].
        sources: [2 L, B, N, S, D].
    """

    def __init__(self, rows: Sequence[Row], targets: Tensor, sources: Tensor) -> None:
        self.rows = list(rows)
        # More rows and columns than are used. Those of answers are used from the first to the last one.
        self._targets, self._sources = targets, sources
        self._first, self._last = 0, targets.shape[-2]
        self._cache: EncoderDecoderCache | None = None
        self._masks: tuple[Tensor, Tensor]

    @classmethod
    def start(cls, model: MixedModel, rows: Sequence[Row]) -> tuple[Batch, Tensor | None]:
        """Encode the sources of new rows, and take their first step where their caches come from it.

        Args:
            model: The model.
            rows: The new rows.

        Returns:
            Their batch, and the logits [B, V] of their first tokens, or None before the first step.
        """
        rows = sorted(rows, key=lambda row: sort_key(row.adapter))
        for row in rows:
            row.source_columns = len(row.source_ids) + (0 if row.adapter is None else row.adapter.prompt_length)
        if model.packs:
            return cls._start_packed(model, rows), None
        states, mask = _encode(model, rows)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = _decode(model, rows, states, mask, None, cache)
        return cls(rows, _stacked(cache.self_attention_cache), _stacked(cache.cross_attention_cache)), logits

    @classmethod
    def _start_packed(cls, model: MixedModel, rows: Sequence[Row]) -> Batch:
        """Encode sources that lie end to end, so that nothing is computed for padding, and let the first step come with others."""
        keys_and_values, lengths = model.read_packed([row.source_ids for row in rows], [row.adapter for row in rows])
        config, columns = model.t5.config, torch.arange(max(lengths))
        is_used = columns < torch.tensor(lengths)[:, None]
        shape = (len(rows), config.num_heads, len(columns), config.d_kv)
        sources = keys_and_values[0].new_zeros(len(keys_and_values), *shape)
        for place, states in zip(sources, keys_and_values, strict=True):
            place.transpose(1, 2)[is_used] = states.view(-1, config.num_heads, config.d_kv)
        return cls(rows, sources[..., :0, :], sources)

    @property
    def columns(self) -> int:
        """Return the columns of answers."""
        return self._last - self._first

    @property
    def source_columns(self) -> int:
        """Return the columns of sources."""
        return max(row.source_columns for row in self.rows)

    def step(self, model: MixedModel) -> Tensor:
        """Let the decoder read the next token of every row.

        Args:
            model: The model.

        Returns:
            The logits [B, V] of the tokens after these.
        """
        if self._last == self._targets.shape[-2]:
            self._move_targets(len(self.rows))
        if self._cache is None:
            self._cache, self._masks = self._new_cache(), self._new_masks()
        source_mask, target_mask = self._masks
        # Keys and values of the sources are in the cache. Only the shape of the encoder states counts.
        states = source_mask.new_zeros(()).expand(len(self.rows), source_mask.shape[-1], 1)
        self._last += 1
        return _decode(model, self.rows, states, source_mask, target_mask[..., : self.columns], self._cache)

    @property
    def is_wasteful(self) -> bool:
        """Return whether rows that have ended, or columns that no row sees any more, take much of a step."""
        ended = sum(row.ended for row in self.rows)
        longest = max((row.target_columns for row in self.rows if not row.ended), default=0)
        return ended * 8 > len(self.rows) or self.columns > longest + _FREE_COLUMNS // 2

    def arrange(self, joining: Batch | None = None) -> None:
        """Drop the rows that have ended, let others join, and cut off the columns that no row sees any more.

        Rows move only where others must make room for them.

        Args:
            joining: Rows that have taken no other step than the first. Their batch must not be used any more.
        """
        before = {row: i for i, row in enumerate(self.rows)}
        rows = _arranged(before, joining.rows if joining else [])
        self._first = self._last - max((row.target_columns for row in rows), default=1)
        source_columns = max((row.source_columns for row in rows), default=1)
        self._make_room(max(len(rows), len(before)), source_columns)
        kept = [(before[row], i) for i, row in enumerate(rows) if row in before and before[row] != i]
        if kept:
            origin, place = self._indices(kept)
            used = slice(self._first, self._last)
            self._targets[:, place, :, used] = self._targets[:, origin, :, used]
            self._sources[:, place, :, :source_columns] = self._sources[:, origin, :, :source_columns]
        if joining is not None:
            new = {row: i for i, row in enumerate(joining.rows)}
            self._write(joining, [(new[row], i) for i, row in enumerate(rows) if row in new])
        self.rows, self._cache = rows, None

    def _write(self, joining: Batch, moves: Sequence[tuple[int, int]]) -> None:
        """Write rows of another batch. Zeros stand where they have no column, as what was there may not be finite."""
        start = self._last - joining.columns
        for origin, place in moves:
            width = joining.rows[origin].source_columns
            self._targets[:, place, :, self._first : start] = 0
            self._targets[:, place, :, start : self._last] = joining._targets[:, origin, :, : joining.columns]
            self._sources[:, place, :, :width] = joining._sources[:, origin, :, :width]
            self._sources[:, place, :, width:] = 0

    def _make_room(self, rows: int, source_columns: int) -> None:
        """Move the caches to larger tensors where they are too small, and to smaller ones where they are far too large."""
        if not _fits(self._targets, rows, self.columns + _FREE_COLUMNS, least_columns=0):
            self._move_targets(rows)
        if not _fits(self._sources, rows, source_columns, least_columns=source_columns):
            self._sources = _resized(self._sources[..., :source_columns, :], rows, source_columns)

    def _move_targets(self, rows: int) -> None:
        """Move the caches of answers to new tensors, with free rows and columns."""
        targets = self._targets[..., self._first : self._last, :]
        self._targets = _resized(targets, rows, self.columns + _FREE_COLUMNS)
        self._first, self._last = 0, self.columns
        self._cache = None

    def _indices(self, moves: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        origin, place = torch.tensor(moves, device=self._targets.device).T
        return origin, place

    def _new_masks(self) -> tuple[Tensor, Tensor]:
        """Return additive masks of sources [B, 1, 1, S] and answers [B, 1, 1, T or more]. Free columns are visible."""
        like, source_columns = self._targets, self.source_columns
        source_ends = torch.tensor([row.source_columns for row in self.rows], device=like.device)[:, None]
        target_starts = torch.tensor([self.columns - row.target_columns for row in self.rows], device=like.device)
        source_hidden = torch.arange(source_columns, device=like.device) >= source_ends
        target_hidden = torch.arange(like.shape[-2] - self._first, device=like.device) < target_starts[:, None]
        return _additive(source_hidden, like.dtype), _additive(target_hidden, like.dtype)

    def _new_cache(self) -> EncoderDecoderCache:
        """Return the cache of transformers over the tensors of this batch."""
        targets = self._targets[:, : len(self.rows)].unflatten(0, (-1, 2))
        sources = self._sources[:, : len(self.rows), :, : self.source_columns].unflatten(0, (-1, 2))
        return EncoderDecoderCache(
            Cache(layers=[_FilledLayer(keys, values, self._first, self._last) for keys, values in targets]),
            Cache(layers=[_FilledLayer(keys, values, 0, self.source_columns) for keys, values in sources]),
        )


_FREE_COLUMNS = 32
"""So many steps are taken before the caches of answers move to other tensors."""


class _FilledLayer(DynamicLayer):
    """A layer of a cache that writes new columns into free ones, where that of transformers copies all.

    Shapes:
        keys, values: [B, N, last or more, D].
    """

    def __init__(self, keys: Tensor, values: Tensor, first: int, last: int) -> None:
        super().__init__()
        self._places, self._first, self._last = (keys, values), first, last
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._used()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        count = key_states.shape[-2]
        for place, states in zip(self._places, (key_states, value_states), strict=True):
            place.narrow(-2, self._last, count).copy_(states)
        self._last += count
        self.keys, self.values = used = self._used()
        return used

    def _used(self) -> tuple[Tensor, Tensor]:
        keys, values = (place.narrow(-2, self._first, self._last - self._first) for place in self._places)
        return keys, values


_TOKENS_OF_A_PASS = 64
"""So many tokens take about the time that a pass of the encoder takes whatever it reads."""


def _encode(model: MixedModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Encode sources, those of similar lengths in one pass, as padding takes time.

    Returns:
        States [B, S, H], and their mask [B, S].
    """
    groups = similar_lengths([row.source_columns for row in rows], _TOKENS_OF_A_PASS)
    passes = [model.encode([rows[i].source_ids for i in group], [rows[i].adapter for i in group]) for group in groups]
    if len(groups) == 1:
        return passes[0]
    longest, size = max(row.source_columns for row in rows), passes[0][0].shape[-1]
    states = passes[0][0].new_zeros(len(rows), longest, size)
    mask = passes[0][1].new_zeros(len(rows), longest)
    for group, (group_states, group_mask) in zip(groups, passes, strict=True):
        place = torch.tensor(group, device=states.device)
        states[place, : group_states.shape[1]] = group_states
        mask[place, : group_mask.shape[1]] = group_mask
    return states, mask


def similar_lengths(lengths: Sequence[int], tokens_of_a_pass: int) -> list[list[int]]:
    """Group rows so that the tokens of all passes, with padding and the fixed cost of a pass, are as few as possible.

    Args:
        lengths: Tokens of each row.
        tokens_of_a_pass: What a pass costs beside its tokens.

    Returns:
        The indices of the rows of each pass, ascending.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], [0]  # of the best passes over the first rows, and where the last of these passes starts
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, start = min((costs[at] + (end - at) * longest + tokens_of_a_pass, at) for at in range(end))
        costs.append(cost)
        starts.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[starts[end] : end]))
        end = starts[end]
    return groups


def _decode(
    model: MixedModel,
    rows: Sequence[Row],
    states: Tensor,
    source_mask: Tensor,
    target_mask: Tensor | None,
    cache: EncoderDecoderCache,
) -> Tensor:
    """Let the decoder read the next token of every row, and return logits [B, V]."""
    with model.rows([row.adapter for row in rows]):
        logits: Tensor = model.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=source_mask,
            decoder_input_ids=torch.tensor([[row.next_id] for row in rows], device=states.device),
            past_key_values=cache,
            use_cache=True,
            **_places(model, rows, target_mask),
        ).logits
    for row in rows:
        row.target_columns += 1
    return logits[:, -1]


def _places(model: MixedModel, rows: Sequence[Row], mask: Tensor | None) -> dict[str, Any]:
    """Return the arguments of a step that say what each row sees [B, 1, 1, T] and at which position it is."""
    family = family_of(model.t5.config)
    if family.positions == "relative bias":
        return {"decoder_attention_mask": mask}
    positions = torch.tensor([[row.target_columns] for row in rows], device=model.t5.device)
    if mask is None or (window := family.sliding_window(model.t5.config)) is None:
        return {"decoder_attention_mask": mask, "decoder_position_ids": positions}
    near = mask.clone()
    near[..., : max(0, mask.shape[-1] - window)] = torch.finfo(mask.dtype).min
    masks = {"full_attention": mask, "sliding_attention": near}
    return {"decoder_attention_mask": masks, "decoder_position_ids": positions}


def _arranged(before: Mapping[Row, int], new: Sequence[Row]) -> list[Row]:
    """Return rows that have not ended, sorted by adapter. Those of one adapter keep their places where they can."""
    groups: dict[Any, list[Row]] = {}
    for row in (*before, *new):
        if not row.ended:
            groups.setdefault(sort_key(row.adapter), []).append(row)
    rows: list[Row] = []
    for key in sorted(groups):
        places = range(len(rows), len(rows) + len(groups[key]))
        staying = {before[row]: row for row in groups[key] if before.get(row, -1) in places}
        moving = (row for row in groups[key] if before.get(row, -1) not in places)
        rows += [staying[place] if place in staying else next(moving) for place in places]
    return rows


def _stacked(cache: Cache) -> Tensor:
    """Return the keys and values of all layers [2 L, B, N, columns, D]."""
    layers = cast(Sequence[Any], cache.layers)
    return torch.stack([tensor for layer in layers for tensor in (layer.keys, layer.values)])


def _fits(tensor: Tensor, rows: int, columns: int, *, least_columns: int) -> bool:
    """Return whether a cache [2 L, places, N, columns, D] has place for so many rows and columns, and not four times as much."""
    _, row_places, _, column_places, _ = tensor.shape
    enough = row_places >= rows and column_places >= least_columns
    return enough and row_places * column_places <= 4 * rows * columns


def _resized(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Return a copy [2 L, rows and more, N, columns, D], filled up by zeros."""
    layers, _, heads, _, size = tensor.shape
    tensor = tensor[:, :rows]
    larger = tensor.new_zeros(layers, rows + rows // 4, heads, columns, size)
    larger[:, : tensor.shape[1], :, : tensor.shape[3]] = tensor
    return larger


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an additive mask [B, 1, 1, columns] of what is hidden [B, columns]."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]
