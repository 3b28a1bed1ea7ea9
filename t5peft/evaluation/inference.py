"""Evaluation mode with merged weights, token ids of sources, and batches by tokens, for prediction and ranking."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.data.collate import OVERHEAD_TOKENS, bucket_by_length
from t5peft.data.truncation import encode
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import kernels
from t5peft.nn.kernels.linear import Linear

Sources = Sequence[str] | Sequence[Sequence[int]]
"""Texts, or token ids that end in ``</s>``, as ``Task.tokenize`` makes them."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Put ``model`` in evaluation mode for the block: no gradients, merged weights and, on a CPU, the trainer's kernels.

    After the block every module has its own training flag again, and every weight its own bits.

    Args:
        model: A T5, plain or wrapped.

    Yields:
        The T5 inside ``model``.
    """
    flags = [(module, module.training) for module in model.modules()]
    t5 = unwrap_t5(model)
    try:
        model.eval()
        with torch.no_grad(), merged(model), kernels(model) if t5.device.type == "cpu" else nullcontext():
            yield t5
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def merged(model: nn.Module) -> Iterator[bool]:
    """Merge LoRA and IA3 into the weights that they change for the block, so that they do not slow down a forward pass.

    Only float32 weights are merged: in bfloat16 or quantized ones the sum would lose part of the adapter. The weights are put
    back, not computed back.

    Args:
        model: A T5, plain or wrapped.

    Yields:
        Whether there was anything to merge.
    """
    kept: list[tuple[BaseTunerLayer, nn.Linear, Tensor]] = []
    tied = {id(parameter) for parameter in _embedding_tables(model)}
    try:
        for layer in model.modules():
            if isinstance(layer, LoraLayer | IA3Layer) and _can_merge(layer, tied):
                base = layer.get_base_layer()
                kept.append((layer, base, base.weight.data))
                layer.merge(safe_merge=True)  # "safe" makes a new tensor, so what was kept is not written to
        yield bool(kept)
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unmerge result can be inaccurate")
            for layer, base, weight in kept:
                if layer.merged:
                    layer.unmerge()
                base.weight.data = weight


def _can_merge(layer: BaseTunerLayer, tied: set[int]) -> bool:
    """Return whether an active, unmerged adapter is on a plain float32 linear map that no other module shares."""
    base = layer.get_base_layer()
    if type(base) not in (nn.Linear, Linear) or base.bias is not None or layer.disable_adapters or layer.merged:
        return False
    return base.weight.dtype == torch.float32 and type(base.weight.data) is Tensor and id(base.weight) not in tied


def _embedding_tables(model: nn.Module) -> Iterator[Tensor]:
    return (module.weight for module in model.modules() if isinstance(module, nn.Embedding))


def source_ids(
    sources: Sources, tokenizer: PreTrainedTokenizerBase, max_source_length: int | None = None
) -> list[list[int]]:
    """Token ids of each source, ending in `</s>`, at most `max_source_length` of them.

    Raises:
        ValueError: one text came where a list of texts is expected, or a length below 2.
    """
    if isinstance(sources, str):
        raise ValueError(f"one text came as sources, {sources[:60]!r}; a list of texts is expected: write [text]")
    if max_source_length is not None and max_source_length < 2:
        raise ValueError(f"max_source_length is {max_source_length}; at least 2 are needed, a token and </s>")
    if all(isinstance(source, str) for source in sources):
        ids = encode(cast(Sequence[str], sources), tokenizer)
    else:
        ids = [list(source) for source in cast(Sequence[Sequence[int]], sources)]
    if max_source_length is None:
        return ids
    return [one if len(one) <= max_source_length else [*one[: max_source_length - 1], one[-1]] for one in ids]


def length_batches(
    sources: Sequence[Sequence[int]], tokens_per_batch: int, *, more_per_row: int, passes: int, copies: int = 1
) -> list[list[int]]:
    """Group sources of like lengths into batches, longest first, with little padding.

    Args:
        sources: Token ids of each source.
        tokens_per_batch: Most rows x copies x (longest source + more_per_row); a single row may exceed it.
        more_per_row: Tokens that every row has besides its source.
        passes: Forward passes of a batch, each of which costs something whatever its size.
        copies: How often a row is computed: its beams.

    Returns:
        Indices of sources, one list per batch.

    Raises:
        ValueError: The budget is below 1.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"Got tokens_per_batch={tokens_per_batch}; expected at least 1.")
    features = [{"input_ids": source, "labels": range(more_per_row)} for source in sources]
    budget = max(1, tokens_per_batch // copies)
    return bucket_by_length(features, budget, overhead_tokens=OVERHEAD_TOKENS * passes)


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the right.

    Args:
        rows: Token ids of each row.
        pad_token_id: The token to pad with.
        device: Where the tensors go.

    Returns:
        ``input_ids`` [B, S] and ``attention_mask`` [B, S].
    """
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return input_ids, (torch.arange(longest, device=device) < lengths[:, None]).long()
