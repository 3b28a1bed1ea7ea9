"""Evaluation mode with merged weights, token ids of sources, and batches by tokens, for prediction and ranking."""

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
from t5peft.data.collate import OVERHEAD_TOKENS, bucket_by_length, pad_rows
from t5peft.data.sources import read_sources, without_padding
from t5peft.data.truncation import encode
from t5peft.models.unwrap import evaluation_mode, unwrap_t5
from t5peft.nn.fast import fast_kernels
from t5peft.nn.kernels.linear import FastLinear

Sources = Iterable[str] | Iterable[Sequence[int]] | Iterable[Tensor]
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
    t5 = unwrap_t5(model)
    kernels = fast_kernels(model) if t5.device.type == "cpu" else nullcontext()
    with evaluation_mode(model), torch.no_grad(), merged(model), kernels:
        yield t5


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
    kept: list[tuple[LoraLayer | IA3Layer, nn.Linear, Tensor]] = []
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    try:
        for layer in model.modules():
            if isinstance(layer, LoraLayer | IA3Layer) and _can_merge(layer, tied):
                base = cast(nn.Linear, layer.get_base_layer())  # by ``_can_merge``
                kept.append((layer, base, base.weight.data))
                layer.merge(safe_merge=True)  # "safe" makes a new tensor, so what was kept is not written to
        yield bool(kept)
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unmerge result can be inaccurate")
            for merged_layer, base, weight in kept:
                if merged_layer.merged:
                    merged_layer.unmerge()
                base.weight.data = weight


def _can_merge(layer: BaseTunerLayer, tied: set[int]) -> bool:
    """Return whether an active, unmerged adapter is on a plain float32 linear map that no other module shares."""
    base = layer.get_base_layer()
    if is_hooked(*cast(nn.Module, layer).modules()):  # Merged, hooks of A and B would not be called.
        return False
    if type(base) not in (nn.Linear, FastLinear) or base.bias is not None or layer.disable_adapters or layer.merged:
        return False
    return base.weight.dtype == torch.float32 and type(base.weight.data) is Tensor and id(base.weight) not in tied


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


def check_ids(ids: Sequence[Sequence[int]], t5: PreTrainedModel) -> None:
    """Check that a model has every token of sources or candidates; a GPU would only say so in a way that ends the process.

    Args:
        ids: Token ids of each text.
        t5: The model.

    Raises:
        ValueError: A token id is not below the size of its vocabulary.
    """
    highest = max((max(row) for row in ids if row), default=0)
    if highest >= t5.config.vocab_size:
        raise ValueError(
            f"Got the token id {highest}; expected ids below {t5.config.vocab_size}, the vocabulary of the model. Give "
            "the tokenizer that belongs to the model; load_with_tokens loads an adapter with the tokens that it brings."
        )


def ensure_language_model(t5: PreTrainedModel, purpose: str) -> None:
    """Raise ValueError for a T5 without a language model head, with what it is for and what to do instead."""
    if not t5.can_generate():
        raise ValueError(f"Got a {type(t5).__name__}, which has no language model head; expected one, {purpose}")


def check_generation(max_new_tokens: int, num_beams: int) -> None:
    """Raise one ValueError for numbers of tokens and beams that are not whole numbers of at least 1."""
    if not all(isinstance(number, int) and number >= 1 for number in (max_new_tokens, num_beams)):
        raise ValueError(
            f"Got max_new_tokens={max_new_tokens!r} and num_beams={num_beams!r}; expected whole numbers, at least 1 of each."
        )


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
    attention_mask = pad_rows([[1] * len(row) for row in rows], 0)
    return pad_rows(rows, pad_token_id).to(device), attention_mask.to(device)
