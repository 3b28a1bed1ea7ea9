"""Collate tokenized examples into tensors, cut an optimizer step into micro-batches, pack examples into rows.

Features are dictionaries with ``input_ids`` and ``labels``, lists of token ids without padding. The loss of a step is a sum
over target tokens. How its examples are cut or packed therefore changes the padding, and not the gradient.

Letters: B rows, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from t5peft.data.features import Feature
from t5peft.models.families import family_of
from t5peft.nn.kernels.linear import row_multiple
from t5peft.nn.kernels.varlen import VarlenLayout
from t5peft.nn.loss import IGNORED_LABEL


def collate(features: Sequence[Feature], *, pad_token_id: int, decoder_start_token_id: int) -> dict[str, Tensor]:
    """Collate features of text into one padded batch.

    Shapes:
        input_ids [B, S], attention_mask [B, S], decoder_input_ids [B, T], labels [B, T] (-100 on padding), all int64.

    Raises:
        ValueError: There are no features, or one has an empty source or target.
    """
    _check_features(features)
    labels = pad_rows([feature["labels"] for feature in features], IGNORED_LABEL)
    return collate_sources(features, pad_token_id=pad_token_id) | {
        "decoder_input_ids": _shift_right(labels, pad_token_id, decoder_start_token_id),
        "labels": labels,
    }


def collate_sources(features: Sequence[Feature], *, pad_token_id: int) -> dict[str, Tensor]:
    """Collate the sources of features into one padded batch.

    Shapes:
        input_ids [B, S], attention_mask [B, S], int64.
    """
    sources = [feature["input_ids"] for feature in features]
    return {
        "input_ids": pad_rows(sources, pad_token_id),
        "attention_mask": pad_rows([[1] * len(source) for source in sources], 0),
    }


def _check_features(features: Sequence[Feature]) -> None:
    if not features:
        raise ValueError("Got no features; expected at least one. Remove empty batches.")
    empty = [index for index, feature in enumerate(features) if not feature["input_ids"] or not feature["labels"]]
    if empty:
        raise ValueError(
            f"Got features {empty[:10]} with an empty source or target; expected at least one token in `input_ids` and `labels`,"
            " such as </s>. Remove such examples, or tokenize them with </s>."
        )


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows of ids as one tensor [B, longest], filled up with ``value`` on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def _shift_right(labels: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Make decoder_input_ids [B, T] of labels [B, T]: the start token, then all labels but the last; padding for -100."""
    shifted = labels.new_full(labels.shape, decoder_start_token_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill_(shifted == IGNORED_LABEL, pad_token_id)


# --- cutting -----------------------------------------------------------------------------------------------------------

# What one more micro-batch costs whatever its size (Python, kernel starts, weights read once more), in tokens of the same
# model. An estimate for a t5-small shape on 2 CPU cores; results hardly depend on it.
OVERHEAD_TOKENS = 24


def bucket_by_length(
    features: Sequence[Feature], tokens_per_micro_batch: int, *, overhead_tokens: int = OVERHEAD_TOKENS
) -> list[list[int]]:
    """Cut the examples of one optimizer step into micro-batches of similar lengths.

    Of all ways to cut the examples in order of length, this takes the cheapest: the fewest padded tokens, source and target,
    plus ``overhead_tokens`` a micro-batch.

    Args:
        features: The examples.
        tokens_per_micro_batch: Most padded tokens of a micro-batch. A longer example gets one of its own.
        overhead_tokens: What a micro-batch costs whatever its size.

    Returns:
        Indices of the features of each micro-batch, longest examples first, so that memory peaks in the first one.

    Raises:
        ValueError: Got a budget below 1.
    """
    _check_budget(tokens_per_micro_batch)
    lengths = [(len(feature["input_ids"]), len(feature["labels"])) for feature in features]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    best_cost = [0.0] + [float("inf")] * len(order)
    best_start = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest_source = longest_target = 0
        for start in range(end - 1, -1, -1):
            source, target = lengths[order[start]]
            longest_source, longest_target = max(longest_source, source), max(longest_target, target)
            tokens = (end - start) * (longest_source + longest_target)
            if tokens > tokens_per_micro_batch and end - start > 1:
                break
            cost = best_cost[start] + tokens + overhead_tokens
            if cost < best_cost[end]:
                best_cost[end], best_start[end] = cost, start
    cuts = []
    end = len(order)
    while end:
        cuts.append(order[best_start[end] : end])
        end = best_start[end]
    return cuts[::-1]


def split_evenly(features: Sequence[Feature], tokens_per_micro_batch: int) -> list[list[int]]:
    """Cut the examples of one optimizer step into few micro-batches of about equal size.

    This is for padding-free rows and for packed ones.

    Args:
        features: The examples.
        tokens_per_micro_batch: Most tokens of a micro-batch. A longer example gets one of its own.

    Returns:
        Indices of the features of each micro-batch.

    Raises:
        ValueError: Got a budget below 1.
    """
    _check_budget(tokens_per_micro_batch)
    lengths = [len(feature["input_ids"]) + len(feature["labels"]) for feature in features]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    count = -(-sum(lengths) // tokens_per_micro_batch)
    while True:
        cuts: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for index in order:
            emptiest = sizes.index(min(sizes))
            cuts[emptiest].append(index)
            sizes[emptiest] += lengths[index]
        if all(size <= tokens_per_micro_batch or len(cut) == 1 for size, cut in zip(sizes, cuts, strict=True)):
            return [cut for cut in cuts if cut]
        count += 1


def _check_budget(tokens_per_micro_batch: int) -> None:
    if tokens_per_micro_batch < 1:
        raise ValueError(f"Got tokens_per_micro_batch={tokens_per_micro_batch}; expected at least 1. Leave it out.")


# --- rows ---------------------------------------------------------------------------------------------------------


def collate_padding_free(
    features: Sequence[Feature], *, pad_token_id: int, decoder_start_token_id: int
) -> dict[str, Any]:
    """Collate features end to end into one row, for the "t5peft" attention function, which reads the layout.

    The shortest examples come first, so that neighbors have similar lengths. One example of padding fills the row up to a
    length that the linear kernels need not fill up. There is no other padding.

    Returns:
        The batch; ``layout`` says where the examples lie.

    Shapes:
        input_ids [1, S], decoder_input_ids [1, T], labels [1, T] (-100 on padding), int64; attention_mask and
        decoder_attention_mask [1, 1, 1, 1], zero: with them T5 makes no masks of its own, which would have S x S entries.

    Raises:
        ValueError: As ``collate``.
    """
    _check_features(features)
    features = [*features, *_filling(features, pad_token_id)]
    features.sort(key=lambda feature: (len(feature["input_ids"]), len(feature["labels"])))
    sources = [feature["input_ids"] for feature in features]
    targets = [feature["labels"] for feature in features]
    starts = [(decoder_start_token_id, *target[:-1]) for target in targets]
    decoder_input_ids = torch.tensor([[token for row in starts for token in row]])
    return {
        "input_ids": torch.tensor([[token for source in sources for token in source]]),
        "attention_mask": torch.zeros(1, 1, 1, 1),
        "decoder_input_ids": decoder_input_ids.masked_fill_(decoder_input_ids == IGNORED_LABEL, pad_token_id),
        "decoder_attention_mask": torch.zeros(1, 1, 1, 1),
        "labels": torch.tensor([[token for target in targets for token in target]]),
        "layout": VarlenLayout(tuple(map(len, sources)), tuple(map(len, targets))),
    }


def _filling(features: Sequence[Feature], pad_token_id: int) -> list[Feature]:
    """Return the example of padding that a row still needs, of at least one token on each side; empty for a full row."""
    tokens = [sum(len(feature[name]) for feature in features) for name in ("input_ids", "labels")]
    multiples = list(map(row_multiple, tokens))
    source, target = (-length % multiple for length, multiple in zip(tokens, multiples, strict=True))
    if not source and not target:
        return []
    source, target = source or multiples[0], target or multiples[1]
    return [{"input_ids": [pad_token_id] * source, "labels": [IGNORED_LABEL] * target}]


# --- packing -----------------------------------------------------------------------------------------------------------


def pack(
    features: Sequence[Feature],
    *,
    pad_token_id: int,
    decoder_start_token_id: int,
    max_source_tokens: int | None = None,
    max_target_tokens: int | None = None,
) -> dict[str, Tensor]:
    """Collate features into one batch whose rows hold several examples each, kept apart by block masks.

    This is for models with the "t5peft" attention function, which reads the masks; T5's forward hands them through to it. T5
    has no absolute positions, and distances within an example do not change. So the result is that of separate rows.

    Args:
        features: The examples.
        pad_token_id: As in the config of the model.
        decoder_start_token_id: As in the config of the model.
        max_source_tokens: Most source tokens of a row; None takes the longest source.
        max_target_tokens: Most target tokens of a row; None takes the longest target.

    Shapes:
        input_ids [B, S], attention_mask [B, S] (all ones), decoder_input_ids [B, T], labels [B, T], int64;
        encoder_block_mask [B, 1, S, S], decoder_block_mask [B, 1, T, T] (causal), cross_block_mask [B, 1, T, S], bool,
        true where a position (rows) may attend to another (columns).

    Raises:
        ValueError: As ``collate``, or an example is longer than a row.
    """
    _check_features(features)
    max_source_tokens = max_source_tokens or max(len(feature["input_ids"]) for feature in features)
    max_target_tokens = max_target_tokens or max(len(feature["labels"]) for feature in features)
    rows = _fill_rows(features, max_source_tokens, max_target_tokens)
    labels = pad_rows([[token for index in row for token in features[index]["labels"]] for row in rows], IGNORED_LABEL)
    input_ids = pad_rows(
        [[token for index in row for token in features[index]["input_ids"]] for row in rows], pad_token_id
    )
    decoder_input_ids = pad_rows(
        [
            [token for index in row for token in (decoder_start_token_id, *features[index]["labels"][:-1])]
            for row in rows
        ],
        pad_token_id,
    )
    decoder_input_ids.masked_fill_(decoder_input_ids == IGNORED_LABEL, pad_token_id)
    source = pad_rows(
        [[number for number, index in enumerate(row, 1) for _ in features[index]["input_ids"]] for row in rows], 0
    )
    target = pad_rows(
        [[number for number, index in enumerate(row, 1) for _ in features[index]["labels"]] for row in rows], 0
    )
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "decoder_input_ids": decoder_input_ids,
        "labels": labels,
        "encoder_block_mask": _same_example(source, source),
        "decoder_block_mask": _same_example(target, target).tril_(),
        # Padding may attend everywhere: a row of the softmax that is masked throughout would be NaN.
        "cross_block_mask": _same_example(target, source) | (target == 0)[:, None, :, None],
    }


def _fill_rows(features: Sequence[Feature], max_source_tokens: int, max_target_tokens: int) -> list[list[int]]:
    """Put each example into the first row with room for its source and its target, the longest first."""
    lengths = [(len(feature["input_ids"]), len(feature["labels"])) for feature in features]
    long = [i for i, (source, target) in enumerate(lengths) if source > max_source_tokens or target > max_target_tokens]
    if long:
        raise ValueError(
            f"Got features {long[:10]} that do not fit into a row of {max_source_tokens} source and {max_target_tokens} target "
            "tokens; expected shorter ones. Truncate them, or allow longer rows."
        )
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: sum(lengths[index]), reverse=True):
        source, target = lengths[index]
        fits = next((n for n, (s, t) in enumerate(room) if s >= source and t >= target), None)
        if fits is None:
            rows.append([])
            room.append((max_source_tokens, max_target_tokens))
            fits = len(rows) - 1
        rows[fits].append(index)
        room[fits] = (room[fits][0] - source, room[fits][1] - target)
    return rows


def _same_example(queries: Tensor, keys: Tensor) -> Tensor:
    """Compare the numbers of the examples at each position, [B, Q] and [B, K], to [B, 1, Q, K]."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


# --- heads -------------------------------------------------------------------------------------------------------------


def collate_for_head(
    features: Sequence[Feature], *, pad_token_id: int, eos_token_id: int, label_type: torch.dtype = torch.long
) -> dict[str, Tensor]:
    """Collate features for ``T5ForSequenceClassification`` into one padded batch.

    The model takes the state at the last ``</s>`` and needs the same number of them in each example, so each example gets
    exactly one, at its end.

    Shapes:
        input_ids [B, S], attention_mask [B, S], labels [B] or [B, L] for lists of L labels, where all features have some.
    """
    ended = [[*(token for token in f["input_ids"] if token != eos_token_id), eos_token_id] for f in features]
    batch = collate_sources([{"input_ids": source} for source in ended], pad_token_id=pad_token_id)
    if all("labels" in feature for feature in features):
        batch["labels"] = torch.tensor([feature["labels"] for feature in features], dtype=label_type)
    return batch


def with_room(batch: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Add a column of padding to a batch for a head that reads the state after the last token of each source.

    Without it the longest source of a batch would be read one token earlier than the others.

    Args:
        batch: With ``input_ids`` and ``attention_mask`` [B, S].
        config: The config of the model.
    """
    if not family_of(config).class_reads_last_token:
        return batch
    columns = {"input_ids": config.pad_token_id, "attention_mask": 0}
    return batch | {name: torch.nn.functional.pad(batch[name], (0, 1), value=value) for name, value in columns.items()}


def collate_with_labels(features: Sequence[Feature], *, pad_token_id: int) -> dict[str, Tensor]:
    """Collate sources with a list of labels each, a class of each token or the tokens of a target, into one padded batch.

    Shapes:
        input_ids [B, S], attention_mask [B, S], labels [B, T] (-100 on padding) where all features have some.
    """
    batch = collate_sources(features, pad_token_id=pad_token_id)
    if all("labels" in feature for feature in features):
        batch["labels"] = pad_rows([feature["labels"] for feature in features], IGNORED_LABEL)
    return batch
