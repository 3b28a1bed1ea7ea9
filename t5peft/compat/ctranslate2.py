"""The converter of CTranslate2 for a model in memory, whose two vocabularies may differ.

Its converter reads a folder and makes one list of tokens for both sides. ``_load`` is the method that a converter implements, and
``_vocabularies`` is where a specification keeps the lists; no public name reaches them once they are made.

Its weights of 8 bits take the whole range. On processors without VNNI, CTranslate2 sums two products in 16 bits, and such sums are
cut. ``eight_bits`` leaves room for them, so that an export answers the same on every processor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def convert(
    t5: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    vocabularies: dict[str, list[str]],
    quantization: Literal["int8"] | None,
) -> None:
    """Write a model as CTranslate2 reads it.

    Args:
        t5: The model; ``tie_word_embeddings`` of its config says whether CTranslate2 scales the outputs.
        tokenizer: Its tokenizer, for the names of special tokens.
        folder: Where to write.
        vocabularies: The names of all rows of the tables, of ``source`` and ``target``.
        quantization: ``"int8"`` stores tables and linear maps in 8 bits.

    Raises:
        ValueError: CTranslate2 does not know the model.
    """
    from ctranslate2.converters import TransformersConverter
    from ctranslate2.specs.model_spec import visit_spec

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
            if quantization == "int8":
                visit_spec(spec, _quantize)
            return spec

    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        t5.config.save_pretrained(place)  # the converter chooses its loader by it
        Converter(place).convert(str(folder), force=True)


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 8 bits, so that no sum of two neighboring products with inputs of 8 bits exceeds 16 bits.

    Neighbors of one sign sum to at most 128, and an unsigned input is at most 255. A row takes the whole range where its neighbors
    leave it.

    Args:
        weight: A weight [M, K].

    Returns:
        The rounded weight [M, K], and the scales [M] by which it was multiplied.
    """
    pairs = nn.functional.pad(weight.detach().float(), (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    largest = torch.maximum(pairs.clamp(min=0).sum(-1), -pairs.clamp(max=0).sum(-1)).amax(-1)
    scale = 127 / largest.clamp(min=1e-30)
    return (weight * scale[:, None]).round().to(torch.int8), scale


def _quantize(spec: Any, name: str, weight: Any) -> None:
    name = name.rpartition("/")[-1]
    if isinstance(weight, Tensor) and hasattr(spec, f"{name}_scale"):
        rounded, scale = eight_bits(weight)
        setattr(spec, name, rounded)
        setattr(spec, f"{name}_scale", scale)
