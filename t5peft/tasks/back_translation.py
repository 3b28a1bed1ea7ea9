"""Back-translation: a text into another language and back says the same in other words (Sennrich et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from t5peft.backbone import MINI

Translate = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class BackTranslation:
    """Translate into another language and back. The random generators have no part: beams decide.

    Args:
        forward: texts to their translations.
        backward: translations to texts.
        name: what tells these two from others, for the cache.
    """

    forward: Translate
    backward: Translate
    name: str

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"back-translation {self.name}"

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """See ``Rewording``. A text that comes back empty stays as it was."""
        there = self.forward(texts)
        back = self.backward(there)
        if not len(texts) == len(there) == len(back):
            raise ValueError(
                f"back-translation of {len(texts)} texts gave {len(there)} translations and {len(back)} texts back; a "
                "translator must return one text for each"
            )
        return [new if new.strip() else old for old, new in zip(texts, back, strict=True)]

    @classmethod
    def of_checkpoints(
        cls, forward: str, backward: str, *, forward_prefix: str = "", backward_prefix: str = ""
    ) -> BackTranslation:
        """By any two sequence-to-sequence checkpoints, or one that does both under two prefixes (T5, mT5).

        They are loaded when the first text comes, so a cached result loads none.

        Args:
            forward: a hub name or a folder.
            backward: a hub name or a folder; the same as ``forward`` loads once.
            forward_prefix: what to put before a text, such as ``"translate English to German: "``.
            backward_prefix: what to put before a translation.
        """
        there = Checkpoint(forward)
        back = there if backward == forward else Checkpoint(backward)
        name = f"{forward} {forward_prefix!r} {backward} {backward_prefix!r}"
        return cls(Translator(there, forward_prefix), Translator(back, backward_prefix), name)


class Checkpoint:
    """A sequence-to-sequence model and its tokenizer, loaded when they are first needed."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model, in evaluation mode, and tokenizer.

        Raises:
            FileNotFoundError: nothing is found under the name.
        """
        path = str(MINI) if self.name == "mini" else self.name
        try:
            return AutoModelForSeq2SeqLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
        except OSError as error:
            raise FileNotFoundError(
                f"no sequence-to-sequence checkpoint under {self.name!r} ({str(error).splitlines()[0]}); give a local "
                "folder, or with a network a hub name such as 'Helsinki-NLP/opus-mt-en-de'"
            ) from error


@dataclass(frozen=True)
class Translator:
    """Texts through one sequence-to-sequence checkpoint, by beams."""

    checkpoint: Checkpoint
    prefix: str = ""
    num_beams: int = 4
    max_new_tokens: int = 256
    batch_size: int = 16

    def __call__(self, texts: list[str]) -> list[str]:
        """One translation for each text, in order."""
        model, tokenizer = self.checkpoint.loaded
        translations: list[str] = []
        for start in range(0, len(texts), self.batch_size):
            sources = [self.prefix + text for text in texts[start : start + self.batch_size]]
            batch = tokenizer(sources, padding=True, truncation=True, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                ids = model.generate(**batch, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens)
            translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return translations
