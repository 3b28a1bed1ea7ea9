"""Sentences of a token store, and the words in them.

Everything works on token ids. A sentence ends at a full stop, question mark or exclamation mark before a capital letter.
Punctuation belongs to the word before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from t5peft.pretraining.tokens import TokenStore

Ids = list[int]


class Sentences:
    """Sentences of a token store and the words in them.

    Attributes:
        ends: Position after the last token of each sentence, over all documents.
        documents: Index of the document of each sentence.

    Raises:
        ValueError: The pieces of the tokenizer do not show where words begin, as in a byte tokenizer.
    """

    def __init__(self, store: TokenStore, tokenizer: PreTrainedTokenizerBase, *, limit_tokens: int = 1 << 25) -> None:
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.tokens = store.tokens[:limit_tokens]
        self.begins_word = np.array([piece.startswith("▁") for piece in pieces])
        if not self.begins_word.any():
            raise ValueError(
                "Got a tokenizer without pieces that begin with '▁'; expected a SentencePiece tokenizer, which the tasks need. "
                "Leave the tasks out (task_rows=0)."
            )
        self.capital = np.array([piece[1:2].isupper() and piece[0] == "▁" for piece in pieces])
        self.digit = np.array([piece.strip("▁").isdigit() for piece in pieces])
        self.letters = np.array([sum(map(str.isalpha, piece)) for piece in pieces])
        self.newline = tokenizer.get_vocab().get("\n", -1)
        self.ends, self.documents = self._find(store, [piece in (".", "!", "?") for piece in pieces])

    def _find(self, store: TokenStore, stops: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        last = np.array(stops)[self.tokens]
        next_one = np.roll(self.tokens, -1)
        capital = self.capital | (np.arange(len(self.capital)) == self.newline)
        boundary = last & capital[next_one]
        offsets = store.offsets[store.offsets <= len(self.tokens)]
        boundary[offsets[1:] - 1] = True
        ends = np.flatnonzero(boundary) + 1
        return ends, np.searchsorted(offsets, ends, side="left")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Ids:
        """Return sentence ``index`` without the newlines around it."""
        begin = self.ends[index - 1] if index else 0
        ids = self.tokens[begin : self.ends[index]]
        return [int(i) for i in ids if i != self.newline]

    def draw(self, generator: np.random.Generator, *, shortest: int = 8, longest: int = 40) -> int:
        """Return the index of a random sentence of ``shortest`` to ``longest`` tokens.

        Raises:
            ValueError: None was found in 1,000 draws.
        """
        for index in generator.integers(1, len(self), size=1000):
            if shortest <= self.ends[index] - self.ends[index - 1] <= longest:
                return int(index)
        raise ValueError(
            f"Got no sentence of {shortest} to {longest} tokens in 1,000 draws; expected prose. Check the text."
        )

    def words(self, ids: Ids) -> list[Ids]:
        """Group the tokens into words; punctuation belongs to the word before it."""
        found: list[Ids] = []
        for token in ids:
            if self.begins_word[token] or not found:
                found.append([])
            found[-1].append(token)
        return found

    def bare(self, word: Ids) -> Ids:
        """Return the word without trailing tokens that are neither letter nor digit."""
        end = len(word)
        while end > 1 and not (self.letters[word[end - 1]] or self.digit[word[end - 1]]):
            end -= 1
        return word[:end]

    def kind(self, word: Ids) -> str:
        """Return ``"number"``, ``"name"`` or ``"word"``."""
        if self.digit[word].any():
            return "number"
        return "name" if self.capital[word[0]] else "word"

    def is_content(self, word: Ids) -> bool:
        """Return whether the word is a name, a number, or has five letters or more."""
        return self.kind(word) != "word" or bool(self.letters[word].sum() > 4)


def joined(words: Sequence[Ids]) -> Ids:
    """Return the tokens of all words in one list."""
    return [token for word in words for token in word]
