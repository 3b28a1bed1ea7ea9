"""What prediction and ranking share: evaluation mode with merged weights, token ids of sources, batches by tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.compat.torch import is_hooked
from t5peft.data.collate import OVERHEAD_TOKENS, bucket_by_length
from t5peft.data.padding import pad_rows
from t5peft.data.sources import read_sources, without_padding
from t5peft.data.truncation import encode
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import fast_kernels
from t5peft.nn.kernels.linear import FastLinear

Sources = Iterable[str] | Iterable[Sequence[int]] | Iterable[Tensor]
"""Texts, or token ids that end in `</s>`, as `Task.tokenize` makes them."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[PreTrainedModel]:
    """The T5 inside `model` in evaluation mode, without gradients, with merged weights and, on a CPU, the trainer's kernels.

    After the block all is as before: every module gets its own training flag back, and every weight its own bits.
    """
    flags = [(module, module.training) for module in model.modules()]
    t5 = unwrap_t5(model)
    try:
        model.eval()
        with torch.no_grad(), merged(model), fast_kernels(model) if t5.device.type == "cpu" else nullcontext():
            yield t5
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def merged(model: nn.Module) -> Iterator[bool]:
    """Inside the block LoRA and IA3 are part of the weights that they change, so that a forward pass costs nothing more.

    Only float32 weights are merged: in bfloat16 or quantised ones the sum would lose part of the adapter. The weights
    are put back, not computed back. Yields whether there was anything to merge.
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
    """Whether an active, unmerged adapter sits on a plain float32 linear map that no other module shares."""
    base = layer.get_base_layer()
    if is_hooked(
        *cast(nn.Module, layer).modules()
    ):  # Hooks of a part of the adapter are called only while it is apart.
        return False
    if type(base) not in (nn.Linear, FastLinear) or base.bias is not None or layer.disable_adapters or layer.merged:
        return False
    return base.weight.dtype == torch.float32 and type(base.weight.data) is Tensor and id(base.weight) not in tied


def _embedding_tables(model: nn.Module) -> Iterator[Tensor]:
    return (module.weight for module in model.modules() if isinstance(module, nn.Embedding))


def source_ids(
    sources: Sources, tokenizer: PreTrainedTokenizerBase, max_source_length: int | None = None
) -> list[list[int]]:
    """Return the token ids of each source, ending in ``</s>``, at most ``max_source_length`` of them.

    Args:
        sources: Any iterable of texts, or of token ids; padding around token ids goes.
        tokenizer: Of the model.
        max_source_length: Tokens, with ``</s>``; ``None`` keeps all.

    Raises:
        ValueError: See ``read_sources``; a length below 2.
    """
    if max_source_length is not None and max_source_length < 2:
        raise ValueError(f"Got max_source_length={max_source_length}; expected at least 2, a token and </s>.")
    found = read_sources(sources)
    texts = [source for source in found if isinstance(source, str)]
    if texts:
        ids = encode(texts, tokenizer)
    else:
        ids = [without_padding(source, tokenizer.pad_token_id) for source in found if not isinstance(source, str)]
    if max_source_length is None:
        return ids
    return [one if len(one) <= max_source_length else [*one[: max_source_length - 1], one[-1]] for one in ids]


def length_batches(
    sources: Sequence[Sequence[int]], tokens_per_batch: int, *, more_per_row: int, passes: int, copies: int = 1
) -> list[list[int]]:
    """Indices of sources in batches of like lengths, longest first, with little padding.

    Args:
        tokens_per_batch: most rows x copies x (longest source + more_per_row); a row alone may be over it.
        more_per_row: tokens that every row has besides its source.
        passes: forward passes that a batch takes, each of which costs something whatever its size.
        copies: how often a row is computed, its beams.

    Raises:
        ValueError: a budget below 1.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}; expected at least 1")
    features = [{"input_ids": source, "labels": range(more_per_row)} for source in sources]
    budget = max(1, tokens_per_batch // copies)
    return bucket_by_length(features, budget, overhead_tokens=OVERHEAD_TOKENS * passes)


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return input_ids [B, S] and attention_mask [B, S], padded on the right."""
    attention_mask = pad_rows([[1] * len(row) for row in rows], 0)
    return pad_rows(rows, pad_token_id).to(device), attention_mask.to(device)
