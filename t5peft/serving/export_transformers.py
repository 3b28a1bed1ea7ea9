"""Exports that torch computes: folders of plain transformers, and the part that ONNX shares with them.

A folder is read by transformers 4 and 5 as it is. ``tie_word_embeddings`` of its config says whether the head is tied, by which
transformers 4 also decides whether to scale it, and transformers 5 too when it reads the file. The tokenizer is named by a class
that both have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from t5peft.data.collate import collate
from t5peft.evaluation import classify, rank
from t5peft.evaluation.inference import Sources, evaluating, length_batches, padded, source_ids
from t5peft.evaluation.ranking import Ranking
from t5peft.models.backbone import correct_config
from t5peft.models.manifest import read_json
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import IGNORED_LABEL
from t5peft.serving.bake import prompt_token
from t5peft.serving.exported import Candidates, Details, Exported, Model
from t5peft.serving.requests import Ids

WITHOUT_PROMPT = "tokenizer_without_prompt"
"""A folder in an export with a baked prompt, for texts that are not sources."""


class TorchModel(Exported):
    """A model of transformers, plain or wrapped, that answers by the library's own functions.

    Args:
        model: The model.
        tokenizer: Its tokenizer, without a baked prompt.
        details: What it is.
        prompt_ids: Tokens of a baked prompt, which come before every source.
    """

    def __init__(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, details: Details, prompt_ids: Sequence[int] = ()
    ) -> None:
        self.model, self.tokenizer, self.details, self._prompt_ids = model, tokenizer, details, list(prompt_ids)

    def answer_ids(self, sources: Ids, **options: Any) -> list[list[int]]:
        """Generate the token ids of an answer for each source; see the base."""
        with evaluating(self.model):
            return super().answer_ids(sources, **options)

    def _generate(self, rows: list[list[int]], max_new_tokens: int, num_beams: int) -> Iterator[list[int]]:
        t5: Any = unwrap_t5(self.model)
        input_ids, attention_mask = padded(rows, t5.config.pad_token_id, t5.device)
        generated = t5.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
        )
        return (_until_end(row, self.tokenizer.eos_token_id) for row in generated[:, 1:].tolist())

    def rank(self, sources: Sources, candidates: Candidates, **options: Any) -> Ranking:
        """Score every candidate target for every source; see the base."""
        self._ensure("language model", "rank", "Use classify or encode.")
        ids = source_ids(sources, self.tokenizer, options.pop("max_source_length", None))
        return rank(self.model, self.tokenizer, self._with_prompt(ids), candidates, **options)

    @torch.no_grad()
    def log_probabilities(self, sources: Ids, targets: Ids, *, tokens_per_batch: int = 8192) -> list[Tensor]:
        """Score the tokens of given targets by teacher forcing; see the base."""
        ids = self._with_prompt(sources)
        longest = max(map(len, targets), default=0)
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        config = unwrap_t5(self.model).config
        marks = {"pad_token_id": config.pad_token_id, "decoder_start_token_id": config.decoder_start_token_id}
        self.model.eval()
        for batch in length_batches(ids, tokens_per_batch, more_per_row=longest, passes=2):
            inputs = collate([{"input_ids": ids[i], "labels": list(targets[i])} for i in batch], **marks)
            labels = inputs["labels"]
            logits = self.model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels
            ).logits
            scores = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
            for i, row, label in zip(batch, scores, labels, strict=True):
                found[i] = row[label != IGNORED_LABEL]
        return found

    def classify(self, sources: Sources, **options: Any) -> Ranking:
        """Score the classes of a trained head; see the base."""
        self._ensure("classifier", "classify", "Use rank with target words.")
        return classify(self.model, self.tokenizer, sources, **options)

    @torch.no_grad()
    def encode(self, sources: Sources, *, max_source_length: int | None = None) -> list[Tensor]:
        """Return the states of an encoder; see the base."""
        self._ensure("encoder", "encode", "Use predict, rank or classify.")
        ids = source_ids(sources, self.tokenizer, max_source_length)
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        self.model.eval()
        for batch in length_batches(ids, 8192, more_per_row=1, passes=1):
            rows = [ids[i] for i in batch]
            input_ids, attention_mask = padded(rows, unwrap_t5(self.model).config.pad_token_id, self.model.device)
            states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            for i, row, one in zip(batch, rows, states, strict=True):
                found[i] = one[: len(row)]
        return found


def write_transformers(t5: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder for plain transformers.

    Args:
        t5: A model without an adapter.
        tokenizer: Its tokenizer; one that writes a baked prompt, where there is one.
        folder: An empty folder.
    """
    correct_config(t5)
    t5.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 and 5 read ``tokenizer.json`` as it is.

    Args:
        tokenizer: The tokenizer.
        folder: Where to save it.
    """
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    if tokenizer.is_fast:
        for name in ("backend", "extra_ids"):
            config.pop(name, None)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:  # a list that transformers 4 has under this name
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def read_tokenizer(folder: Path, details: Details) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return the tokenizer of an export without its baked prompt, and the ids of the prompt.

    Args:
        folder: The folder.
        details: What it holds.

    Returns:
        The tokenizer of the adapter, and the ids.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not details.prompt_length:
        return tokenizer, []
    names = [prompt_token(i) for i in range(details.prompt_length)]
    plain: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder / WITHOUT_PROMPT))
    return plain, cast(list[int], tokenizer.convert_tokens_to_ids(names))


def read_transformers(folder: Path, details: Details) -> TorchModel:
    """Read a folder that ``write_transformers`` wrote, as plain transformers does.

    Args:
        folder: The folder.
        details: What it holds.

    Returns:
        The model.
    """
    architecture = str(read_json(folder / "config.json")["architectures"][0])
    model = getattr(transformers, architecture).from_pretrained(str(folder)).eval()
    tokenizer, prompt_ids = read_tokenizer(folder, details)
    return TorchModel(model, tokenizer, details, prompt_ids)


def _until_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row
