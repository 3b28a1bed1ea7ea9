"""Generated answers for many sources, sorted by length, in batches by tokens, returned in the order of the sources."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.data.decoding import decode
from t5peft.evaluation.inference import (
    Sources,
    check_generation,
    check_ids,
    ensure_language_model,
    evaluating,
    length_batches,
    padded,
    source_ids,
)
from t5peft.methods.base import has_peft_prompt


class Predictions(list[str]):
    """One text per source.

    Attributes:
        truncated_fraction: Fraction of the texts that ended at ``max_new_tokens`` and not by themselves.
    """

    def __init__(self, texts: Iterable[str], truncated_fraction: float) -> None:
        super().__init__(texts)
        self.truncated_fraction = truncated_fraction


def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    tokens_per_batch: int = 8192,
    max_source_length: int | None = None,
    progress: bool = False,
    keep: Collection[str] = (),
) -> Predictions:
    """Generate an answer for each source.

    Args:
        model: A T5 with a language model head, plain or wrapped. Its training mode is restored afterwards.
        tokenizer: Its tokenizer.
        sources: Texts, or token IDs from ``Task.tokenize``.
        max_new_tokens: Maximum tokens of an answer, including ``</s>``.
        num_beams: Number of beams; 1 for greedy search. Other settings come from the model's generation config, without sampling.
        tokens_per_batch: Maximum of rows x beams x (longest source + max_new_tokens) per batch; a single long source may exceed it.
        max_source_length: Truncate sources to this many tokens, including ``</s>``.
        progress: Whether to show a progress bar.
        keep: Special tokens to keep in the texts, such as ``Task.special_tokens``.

    Returns:
        The texts in the order of the sources, without other special tokens, and the fraction that was truncated.

    Raises:
        ValueError: The model has no language model head, or a number is below 1.
    """
    check_generation(max_new_tokens, num_beams)
    ids = source_ids(sources, tokenizer, max_source_length)
    batches = length_batches(
        ids, tokens_per_batch, more_per_row=max_new_tokens, passes=1 + max_new_tokens, copies=num_beams
    )
    texts, cut = [""] * len(ids), 0
    with evaluating(model) as t5:
        ensure_language_model(t5, "to generate. Use classify.")
        check_ids(ids, t5)
        for batch in tqdm(batches, desc="predict", unit="batch", disable=not progress):
            generated = _generate(model, t5, [ids[i] for i in batch], max_new_tokens, num_beams)
            cut += _unfinished(generated, t5)
            for i, text in zip(batch, decode(generated, tokenizer, keep=keep), strict=True):
                texts[i] = text
    return Predictions(texts, cut / len(ids) if ids else 0.0)


def _generate(
    model: nn.Module, t5: PreTrainedModel, rows: list[list[int]], max_new_tokens: int, num_beams: int
) -> Tensor:
    """Return generated ids [B, up to 1 + max_new_tokens], the start token first."""
    input_ids, attention_mask = padded(rows, t5.config.pad_token_id, t5.device)
    # peft's own prompts work only in PeftModel.generate. Every other adapter is inside the T5, whose generate patches nothing.
    generator: Any = model if has_peft_prompt(model) else t5
    return generator.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=False,
    )


def _unfinished(generated: Tensor, t5: PreTrainedModel) -> int:
    """Count the rows of ``generated`` [B, T] without an end token."""
    end = torch.as_tensor(t5.generation_config.eos_token_id, device=generated.device)
    return int((~torch.isin(generated[:, 1:], end).any(dim=1)).sum())
