"""The converter of CTranslate2 for a model in memory, whose two vocabularies may differ.

Its converter reads a folder and makes one list of tokens for both sides. ``_load`` is the method that a converter implements, and
``_vocabularies`` is where a specification keeps the lists; no public name reaches them once they are made.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def convert(
    t5: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    vocabularies: dict[str, list[str]],
    quantization: str | None,
) -> None:
    """Write a model as CTranslate2 reads it.

    Args:
        t5: The model; ``tie_word_embeddings`` of its config says whether CTranslate2 scales the outputs.
        tokenizer: Its tokenizer, for the names of special tokens.
        folder: Where to write.
        vocabularies: The names of all rows of the tables, of ``source`` and ``target``.
        quantization: As CTranslate2 takes it.

    Raises:
        ValueError: CTranslate2 does not know the model.
    """
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_model(self, *args: Any, **options: Any) -> PreTrainedModel:
            return t5

        def load_tokenizer(self, *args: Any, **options: Any) -> PreTrainedTokenizerBase:
            return tokenizer

        def _load(self) -> Any:
            spec = super()._load()
            for side, tokens in vocabularies.items():
                spec._vocabularies[side][:] = [tokens]
            spec.config.layer_norm_epsilon = t5.config.layer_norm_epsilon
            return spec

    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        t5.config.save_pretrained(place)  # the converter chooses its loader by it
        Converter(place).convert(str(folder), quantization=quantization, force=True)
