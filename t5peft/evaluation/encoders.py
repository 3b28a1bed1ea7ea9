"""Predictions of encoders: embeddings of texts, labels of words, and the scores of a head for sequences.

Letters: N texts, S source tokens, E embedding size, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.data.words import tokenize_words
from t5peft.evaluation.inference import Sources, check_ids, evaluating, length_batches, padded, source_ids
from t5peft.models.encoders import mean_over_tokens
from t5peft.models.unwrap import unwrap_t5


def embed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    *,
    tokens_per_batch: int = 8192,
    max_source_length: int | None = None,
) -> Tensor:
    """Return a unit-length embedding for each text. The product of two embeddings is their cosine similarity.

    Args:
        model: An encoder from ``load_backbone(name, head="embedding")``, plain or wrapped. With ``head="states"``, the mean of
            the hidden states is used.
        tokenizer: Its tokenizer.
        sources: Texts, or token IDs from ``Task.tokenize``.
        tokens_per_batch: Maximum of rows x longest source per batch.
        max_source_length: Truncate sources to this many tokens, including ``</s>``.

    Returns:
        Embeddings [N, E] in float32, on the CPU.

    Raises:
        ValueError: The model is not an encoder that returns embeddings.
    """
    ids = source_ids(sources, tokenizer, max_source_length)

    def of(t5: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        outputs: Any = t5(**batch)
        if "pooler_output" in outputs:
            return outputs.pooler_output.float()
        return normalize(mean_over_tokens(outputs.last_hidden_state, batch["attention_mask"]), dim=-1)

    rows = _of_each(model, ids, ("EncoderForEmbedding", "EncoderModel"), of, tokens_per_batch)
    config = unwrap_t5(model).config
    return torch.stack(rows) if rows else torch.empty(0, getattr(config, "embedding_size", None) or config.d_model)


def head_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    *,
    tokens_per_batch: int = 8192,
    max_source_length: int | None = None,
) -> Tensor:
    """Return the outputs of a head for sequences: the numbers of a regression, or the logits of labels.

    Args:
        model: A T5 or an encoder with a head for sequences, plain or wrapped. For one class per text, use ``classify``.
        tokenizer: Its tokenizer.
        sources: As for ``embed``.
        tokens_per_batch: As for ``embed``.
        max_source_length: As for ``embed``.

    Returns:
        Scores [N, L] in float32, on the CPU.

    Raises:
        ValueError: The model has no head for sequences.
    """
    ids = source_ids(sources, tokenizer, max_source_length)
    rows = _of_each(
        model, ids, ("ForSequenceClassification",), lambda t5, batch: t5(**batch).logits.float(), tokens_per_batch
    )
    return torch.stack(rows) if rows else torch.empty(0, int(unwrap_t5(model).config.num_labels or 0))


def tag(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[Iterable[str]],
    *,
    tokens_per_batch: int = 8192,
) -> list[list[int]]:
    """Return the label ID of each word.

    Args:
        model: An encoder from ``load_backbone(name, head="tokens", num_labels=L)``, plain or wrapped.
        tokenizer: Its tokenizer.
        sentences: The words of each sentence, as for ``tokenize_words``; ``list("MKV")`` for the residues of a protein.
        tokens_per_batch: As for ``embed``.

    Returns:
        The label ids of the words of each sentence.

    Raises:
        ValueError: The model has no head for tokens, or a sentence has no words.
    """
    features = tokenize_words(sentences, tokenizer)
    ids = [feature["input_ids"] for feature in features]
    best = _of_each(
        model, ids, ("ForTokenClassification",), lambda t5, batch: t5(**batch).logits.argmax(-1), tokens_per_batch
    )
    return [row[feature["first"]].tolist() for row, feature in zip(best, features, strict=True)]


def _of_each(
    model: nn.Module,
    ids: Sequence[Sequence[int]],
    ends: tuple[str, ...],
    compute: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor],
    tokens_per_batch: int,
) -> list[Tensor]:
    """Return a row of ``compute`` for each source, in their order."""
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    with evaluating(model) as t5:
        if not type(t5).__name__.endswith(ends):
            raise ValueError(
                f"Got a {type(t5).__name__}; expected a class that ends in {' or '.join(ends)}. Load the backbone by "
                "load_backbone(name, head=...)."
            )
        check_ids(ids, t5)
        for batch in length_batches(ids, tokens_per_batch, more_per_row=1, passes=1):
            input_ids, attention_mask = padded([ids[i] for i in batch], t5.config.pad_token_id, t5.device)
            rows = compute(t5, {"input_ids": input_ids, "attention_mask": attention_mask}).cpu()
            for i, row in zip(batch, rows, strict=True):
                found[i] = row
    return found
