"""The running batch: rows that join and leave between two steps of the decoder, and their caches.

The positions of T5 are relative, so only distances count. A row may join at the present column of the batch: columns before its
first one hold zeros and are masked. Sources are padded on the right and masked there. Columns that no row sees any more are cut
off, on the left of the self-attention and on the right of the cross-attention. The decoder is that of transformers.

Letters: B rows, N heads, D d_kv, S source columns, T target columns, H d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

if TYPE_CHECKING:
    from t5peft.serving.adapter import AdapterWeights
    from t5peft.serving.mixed import MixedModel


@dataclass(eq=False, kw_only=True)
class Row:
    """One answer that is being generated."""

    source_ids: Sequence[int]
    adapter: AdapterWeights | None
    next_id: int
    """The next token that the decoder reads; at first the start token."""
    source_columns: int = 0
    """Columns of its source in the caches, with those of a prompt."""
    target_columns: int = 0
    """Columns of its answer in the caches."""
    ended: bool = False
    """Whether the batch may drop it."""

    def by_adapter(self) -> tuple[str, int]:
        """Return the key by which rows of one adapter stand next to each other."""
        return ("", 0) if self.adapter is None else (self.adapter.name, id(self.adapter))


@dataclass(eq=False)
class Batch:
    """Rows that take their steps together, sorted by adapter.

    Attributes:
        rows: The rows, in the order of the caches.
        cache: Keys and values of their answers [B, N, T, D] and sources [B, N, S, D].
        source_mask: Additive [B, 1, 1, S].
        target_mask: Additive [B, 1, 1, T or more]; columns to come are visible.
        columns: T.
    """

    rows: list[Row]
    cache: EncoderDecoderCache
    source_mask: Tensor
    target_mask: Tensor
    columns: int = 0
    _states: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._states = self.source_mask.new_zeros(1, 1, 1)

    @classmethod
    def start(cls, model: MixedModel, rows: Sequence[Row]) -> tuple[Batch, Tensor]:
        """Encode the sources of new rows and take their first step.

        Args:
            model: The model.
            rows: The new rows.

        Returns:
            Their batch, and the logits [B, V] of their first tokens.
        """
        rows = sorted(rows, key=Row.by_adapter)
        states, mask = model.encode([row.source_ids for row in rows], [row.adapter for row in rows])
        for row, source_columns in zip(rows, mask.sum(dim=1).tolist(), strict=True):
            row.source_columns, row.target_columns = source_columns, 0
        batch = cls(
            rows,
            EncoderDecoderCache(DynamicCache(), DynamicCache()),
            _additive(mask.bool(), states.dtype)[:, None, None],
            states.new_zeros(len(rows), 1, 1, 1),
        )
        return batch, batch._decode(model, states)

    def step(self, model: MixedModel) -> Tensor:
        """Let the decoder read the next token of every row.

        Args:
            model: The model.

        Returns:
            The logits [B, V] of the tokens after these.
        """
        hidden_size = model.t5.config.d_model
        # The keys and values of the sources are in the cache. Only the shape of the encoder states counts.
        return self._decode(model, self._states.expand(len(self.rows), self.source_mask.shape[-1], hidden_size))

    def _decode(self, model: MixedModel, states: Tensor) -> Tensor:
        self.columns += 1
        if self.columns > self.target_mask.shape[-1]:
            self.target_mask = pad(self.target_mask, (0, _SPARE_COLUMNS))
        with model.rows([row.adapter for row in self.rows]):
            logits: Tensor = model.t5(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=self.source_mask,
                decoder_input_ids=torch.tensor([[row.next_id] for row in self.rows], device=states.device),
                decoder_attention_mask=self.target_mask[..., : self.columns],
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        for row in self.rows:
            row.target_columns += 1
        return logits[:, -1]


_SPARE_COLUMNS = 16


def joined(batches: Sequence[Batch]) -> Batch | None:
    """Make one batch of the rows that have not ended, in one pass over the caches.

    Args:
        batches: The running batch and batches that join it.

    Returns:
        The new batch; None where no row is left. The caches of ``batches`` must not be used any more.
    """
    places = [
        (row, first + i)
        for first, batch in zip(_starts(batches), batches, strict=True)
        for i, row in enumerate(batch.rows)
        if not row.ended
    ]
    if not places:
        return None
    places.sort(key=lambda place: place[0].by_adapter())
    rows = [row for row, _ in places]
    order = torch.tensor([place for _, place in places], device=batches[0].source_mask.device)
    targets, sources = max(row.target_columns for row in rows), max(row.source_columns for row in rows)
    hidden = torch.finfo(batches[0].source_mask.dtype).min

    def left(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (0, 0, targets - tensor.shape[-2], 0)) for tensor in tensors]).index_select(
            0, order
        )

    def right(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (0, 0, 0, sources - tensor.shape[-2])) for tensor in tensors]).index_select(
            0, order
        )

    caches = [batch.cache for batch in batches]
    return Batch(
        rows,
        EncoderDecoderCache(
            _joined_caches([cache.self_attention_cache for cache in caches], left),
            _joined_caches([cache.cross_attention_cache for cache in caches], right),
        ),
        torch.cat(
            [pad(batch.source_mask, (0, sources - batch.source_mask.shape[-1]), value=hidden) for batch in batches]
        ).index_select(0, order),
        torch.cat(
            [
                pad(batch.target_mask[..., : batch.columns], (targets - batch.columns, 0), value=hidden)
                for batch in batches
            ]
        ).index_select(0, order),
        targets,
    )


def _joined_caches(caches: Sequence[Cache], join: Callable[[Sequence[Tensor]], Tensor]) -> DynamicCache:
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return DynamicCache(
        [(join([layer.keys for layer in group]), join([layer.values for layer in group])) for group in layers]
    )


def _starts(batches: Sequence[Batch]) -> list[int]:
    """Return the index of the first row of each batch, where their rows stand one after another."""
    starts = [0]
    for batch in batches[:-1]:
        starts.append(starts[-1] + len(batch.rows))
    return starts


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
