"""Back-translation: a text goes into another language and back, for other words (Sennrich et al. 2016)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from t5peft.models.backbone import load_tokenizer
from t5peft.models.embedded import resolve_backbone

logger = logging.getLogger("t5peft")

Translate = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class BackTranslation:
    """Translate into another language and back, by beam search; the random generators are not used.

    Args:
        forward: Returns the translations of texts.
        backward: Returns the texts of translations.
        name: Identifies the two, for the cache.
    """

    forward: Translate
    backward: Translate
    name: str

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"back-translation {self.name}"

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """See ``Rewording``. A text whose translation, there or back, is empty stays as it was."""
        there = self.forward(texts)
        back = self.backward(there)
        if not len(texts) == len(there) == len(back):
            raise ValueError(
                f"Got {len(there)} translations of {len(texts)} texts, and {len(back)} texts back; expected one for each text. "
                "Fix the translators."
            )
        return [
            new if middle.strip() and new.strip() else old for old, middle, new in zip(texts, there, back, strict=True)
        ]

    @classmethod
    def of_checkpoints(
        cls, forward: str, backward: str, *, forward_prefix: str = "", backward_prefix: str = ""
    ) -> BackTranslation:
        """Translate by two sequence-to-sequence checkpoints, or by one that does both under two prefixes (T5, mT5).

        They are loaded when the first text comes, so a cached result loads none.

        Args:
            forward: A hub name or a folder.
            backward: A hub name or a folder; the same as ``forward`` is loaded once.
            forward_prefix: Put before a text, such as ``"translate English to German: "``.
            backward_prefix: Put before a translation.
        """
        there = Checkpoint(forward)
        back = there if backward == forward else Checkpoint(backward)
        name = f"{forward} {_version(forward)}{forward_prefix!r} {backward} {_version(backward)}{backward_prefix!r}"
        return cls(Translator(there, forward_prefix), Translator(back, backward_prefix), name)


def _version(checkpoint: str) -> str:
    """Return a text that changes when a folder's model is saved again; empty for a hub name."""
    files = sorted(Path(checkpoint).glob("*")) if Path(checkpoint).is_dir() else []
    return "".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns} " for file in files)


class Checkpoint:
    """A sequence-to-sequence model and its tokenizer, loaded when they are first needed."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, in evaluation mode, and the tokenizer.

        Raises:
            FileNotFoundError: Nothing is found under the name.
        """
        path = resolve_backbone(self.name)
        try:
            return AutoModelForSeq2SeqLM.from_pretrained(path).eval(), load_tokenizer(path)
        except OSError as error:
            raise FileNotFoundError(
                f"Got no sequence-to-sequence checkpoint under {self.name!r} ({str(error).splitlines()[0]}); expected a local "
                "folder, or with a network a hub name such as 'Helsinki-NLP/opus-mt-en-de'."
            ) from error


@dataclass(frozen=True)
class Translator:
    """Translate texts with one sequence-to-sequence checkpoint, by beam search.

    Args:
        checkpoint: The model and its tokenizer.
        prefix: Put before each text.
        num_beams: Beams.
        max_new_tokens: The longest translation.
        batch_size: Texts at once.
    """

    checkpoint: Checkpoint
    prefix: str = ""
    num_beams: int = 4
    max_new_tokens: int = 256
    batch_size: int = 16

    def __call__(self, texts: list[str]) -> list[str]:
        """Return a translation for each text, in order; empty where the text or its translation would be truncated."""
        if not texts:
            return []
        model, tokenizer = self.checkpoint.loaded
        generator: Any = model  # PreTrainedModel has no generate; every sequence-to-sequence model does
        sources = tokenizer([self.prefix + text for text in texts])["input_ids"]
        whole = [row for row, source in enumerate(sources) if len(source) <= tokenizer.model_max_length]
        ends = torch.tensor(model.generation_config.eos_token_id, device=model.device)
        translations = [""] * len(texts)
        for start in range(0, len(whole), self.batch_size):
            rows = whole[start : start + self.batch_size]
            batch = tokenizer.pad({"input_ids": [sources[row] for row in rows]}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                targets = generator.generate(**batch, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens)
            for row, target in zip(rows, targets, strict=True):
                if torch.isin(target[1:], ends).any():  # not its first token, which is the end for some models
                    [translations[row]] = tokenizer.batch_decode([target], skip_special_tokens=True)
        if cut := translations.count(""):
            logger.warning(
                "%d of %d texts have no translation by %s: it is empty, or longer than %d tokens, or the text is longer than the "
                "%d that the tokenizer allows.",
                cut,
                len(texts),
                self.checkpoint.name,
                self.max_new_tokens,
                tokenizer.model_max_length,
            )
        return translations
