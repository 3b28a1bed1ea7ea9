"""Exports for CTranslate2: its own converter, with heads scaled as the model scales them, and the answers of its translator.

CTranslate2 scales the outputs of a T5 whose config says that it is tied, and transformers 5 says so of every T5. The converter gets
a config that says what the model does.

A search with several beams ends as that of transformers does with ``early_stopping=True``: once as many answers as beams are
complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.compat.ctranslate2 import convert
from t5peft.compat.extras import require
from t5peft.models.backbone import has_untied_head
from t5peft.serving.export_transformers import read_tokenizer, save_tokenizer
from t5peft.serving.exported import Details, Exported, Quantize
from t5peft.serving.requests import Ids

SETTINGS = ("length_penalty", "repetition_penalty", "no_repeat_ngram_size")
"""Settings of a search in a generation config that CTranslate2 has under the same name."""


def generation_settings(t5: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of the search of ``t5`` that CTranslate2 knows and that are not its defaults."""
    found = {name: getattr(t5.generation_config, name, None) for name in SETTINGS}
    return {name: value for name, value in found.items() if value is not None}


def write_ct2(t5: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, quantize: Quantize | None) -> None:
    """Convert a model.

    Args:
        t5: A model without an adapter. The table of its encoder may be longer than that of its decoder.
        tokenizer: Its tokenizer; one that writes a baked prompt, where there is one.
        folder: An empty folder.
        quantize: How to store the weights.

    Raises:
        ImportError: CTranslate2 is not installed.
    """
    require("ctranslate2", "export")
    tables = {"source": t5.get_encoder(), "target": t5.get_decoder()}
    vocabularies = {
        side: _vocabulary(tokenizer, len(stack.get_input_embeddings().weight)) for side, stack in tables.items()
    }
    says_tied = t5.config.tie_word_embeddings
    scales = bool(getattr(t5.config, "scale_decoder_outputs", not has_untied_head(t5)))
    t5.config.tie_word_embeddings = scales
    try:
        convert(t5, tokenizer, folder, vocabularies=vocabularies, quantization=quantize)
    finally:
        t5.config.tie_word_embeddings = says_tied
    save_tokenizer(tokenizer, folder)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Return the names of all rows of a table; those that the tokenizer does not have get one."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    return [by_id.get(i, f"<spare_{i}>") for i in range(size)]


class CT2Model(Exported):
    """A converted model.

    Args:
        folder: What ``write_ct2`` wrote.
        details: What it holds.

    Raises:
        ImportError: CTranslate2 is not installed.
    """

    def __init__(self, folder: Path, details: Details) -> None:
        require("ctranslate2", "export")
        import ctranslate2

        self.details = details
        self.tokenizer, self._prompt_ids = read_tokenizer(folder, details)
        self._translator = ctranslate2.Translator(str(folder), device="cpu", intra_threads=torch.get_num_threads())
        self._source_tokens = _read_vocabulary(folder, "source")
        self._target_tokens = _read_vocabulary(folder, "target")
        self._target_ids = {token: index for index, token in enumerate(self._target_tokens)}

    def _generate(self, rows: list[list[int]], max_new_tokens: int, num_beams: int) -> Iterator[list[int]]:
        results = self._translator.translate_batch(
            self._tokens(rows),
            beam_size=num_beams,
            max_decoding_length=max_new_tokens,
            min_decoding_length=0,
            max_input_length=0,
            return_end_token=True,
            **self.details.generation,
        )
        return ([self._target_ids[token] for token in result.hypotheses[0]] for result in results)

    def log_probabilities(self, sources: Ids, targets: Ids, *, tokens_per_batch: int = 8192) -> list[Tensor]:
        """Score the tokens of given targets by teacher forcing; see the base."""
        results = self._translator.score_batch(
            self._tokens(self._with_prompt(sources)),
            [[self._target_tokens[token] for token in target[:-1]] for target in targets],  # it adds </s> itself
            max_batch_size=tokens_per_batch,
            batch_type="tokens",
            max_input_length=0,
        )
        return [torch.tensor(result.log_probs) for result in results]

    def _tokens(self, sources: Ids) -> list[list[str]]:
        return [[self._source_tokens[token] for token in source] for source in sources]


def _read_vocabulary(folder: Path, side: str) -> list[str]:
    shared = folder / "shared_vocabulary.json"
    path = shared if shared.is_file() else folder / f"{side}_vocabulary.json"
    return list(json.loads(path.read_text(encoding="utf-8")))
