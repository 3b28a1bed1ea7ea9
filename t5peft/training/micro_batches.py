"""Lay out the examples of an optimizer step in micro-batches that fit the memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from t5peft.compat.memory import available_bytes
from t5peft.data.collate import Feature, bucket_by_length, collate, collate_padding_free, split_evenly
from t5peft.data.collate import pack as pack_rows
from t5peft.models.families import family_of
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.attention import NAME
from t5peft.nn.kernels.attention import BiasByDistance

logger = logging.getLogger("t5peft")

Layout = Literal["padded", "padding_free", "packed"]


def supports_padding_free(model: nn.Module) -> bool:
    """Return whether steps of a model run on rows of examples without padding: on a CPU, on the kernels of this library.

    On a GPU one padded block of many examples keeps the device busier than many small ones.
    """
    t5 = unwrap_t5(model)
    return t5.device.type == "cpu" and any(isinstance(part, BiasByDistance) for part in t5.modules())


def layout_of(model: nn.Module, pack: bool | None) -> Layout:
    """Return how micro-batches of a model are laid out.

    Only the attention function "t5peft" reads the block masks of packed rows, so that others get padded rows.

    Args:
        model: The model, as it is in training.
        pack: Whether the user asks for several examples a row; None takes what is best.
    """
    if pack is not False and supports_padding_free(model):
        return "padding_free"
    return "packed" if pack and unwrap_t5(model).config._attn_implementation == NAME else "padded"


def micro_batches(
    features: Sequence[Feature], tokens: int, *, layout: Layout, pad_token_id: int, decoder_start_token_id: int
) -> list[tuple[list[int], dict[str, Any]]]:
    """Return the micro-batches of one optimizer step, each with the indices of its features.

    Args:
        features: The examples of the step.
        tokens: Most source and target tokens of a micro-batch. An example with more gets one of its own.
        layout: "padded": examples of similar length. "padding_free": end to end in one row. "packed": several in a row, kept
            apart by block masks, for a GPU.
        pad_token_id: As in the config of the model.
        decoder_start_token_id: As in the config of the model.
    """
    cut = bucket_by_length if layout == "padded" else split_evenly
    lay_out = {"padded": collate, "padding_free": collate_padding_free, "packed": pack_rows}[layout]
    return [
        (
            chosen,
            lay_out(
                [features[i] for i in chosen], pad_token_id=pad_token_id, decoder_start_token_id=decoder_start_token_id
            ),
        )
        for chosen in cut(features, tokens)
    ]


# Tokens of a micro-batch on a CPU: enough for full-speed matrix products, few enough that activations stay in the cache.
CPU_TOKENS = 2048


MIN_TOKENS = 64


# Bytes that autograd keeps for one token in one layer, in units of d_model elements: norm, four or six maps of attention and
# dropout, and the feed-forward's inner activations counted apart; measured high, as an out-of-memory costs a step.
_KEPT_PER_LAYER = 20


class TokenBudget:
    """The most source and target tokens of one micro-batch.

    Args:
        model: The model.
        tokens: The number; None chooses it from the free memory.
    """

    def __init__(self, model: nn.Module, tokens: int | None = None) -> None:
        self.tokens = tokens or _tokens_for(model)

    def halve_after(self, error: BaseException) -> bool:
        """Halve the tokens after an error, and return whether the step may start again.

        It may after an out-of-memory error, unless the tokens are few already.
        """
        if not ran_out_of_memory(error) or self.tokens <= MIN_TOKENS:
            return False
        self.tokens //= 2
        logger.warning("Out of memory: from now on, a micro-batch has at most %d tokens.", self.tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _tokens_for(model: nn.Module) -> int:
    """Count the tokens whose activations fit into half of the free memory, and on a CPU into its cache."""
    config = unwrap_t5(model).config
    elements = sum(
        stack.layers * (_KEPT_PER_LAYER * stack.d_model + 5 * stack.d_ff) for stack in family_of(config).stacks(config)
    )
    bytes_per_token = elements * torch.finfo(unwrap_t5(model).dtype).bits // 8
    on_cuda = torch.cuda.is_available()
    fitting = available_bytes(torch.device("cuda" if on_cuda else "cpu")) // 2 // bytes_per_token
    return max(MIN_TOKENS, fitting if on_cuda else min(CPU_TOKENS, fitting))
