"""Sentences of a token store, and the words in them.

Everything works on token ids. A sentence ends at a full stop, question or exclamation mark before a capital letter; punctuation
stays with the word before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from t5peft.pretraining.tokens import TokenStore

Ids = list[int]


class Sentences:
    """Sentences of a token store and the words in them.

    Attributes:
        ends: position after the last token of each sentence, over all documents.
        documents: for each sentence the number of its document.

    Raises:
        ValueError: a tokenizer of bytes, or of another kind whose pieces do not say where words begin.
    """

    def __init__(self, store: TokenStore, tokenizer: PreTrainedTokenizerFast, *, limit_tokens: int = 1 << 25) -> None:
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.tokens = store.tokens[:limit_tokens]
        self.begins_word = np.array([piece.startswith("▁") for piece in pieces])
        if not self.begins_word.any():
            raise ValueError(
                "the tokenizer has no pieces that begin a word by '▁', as SentencePiece's have and the tasks need; leave them "
                "out (task_rows=0)."
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
        """Sentence `index`, without the newlines that stand around it."""
        begin = self.ends[index - 1] if index else 0
        ids = self.tokens[begin : self.ends[index]]
        return [int(i) for i in ids if i != self.newline]

    def draw(self, generator: np.random.Generator, *, shortest: int = 8, longest: int = 40) -> int:
        """Number of a random sentence of `shortest` to `longest` tokens.

        Raises:
            ValueError: none found in 1,000 draws.
        """
        for index in generator.integers(1, len(self), size=1000):
            if shortest <= self.ends[index] - self.ends[index - 1] <= longest:
                return int(index)
        raise ValueError(f"no sentence of {shortest} to {longest} tokens in 1,000 draws; is the text prose?")

    def words(self, ids: Ids) -> list[Ids]:
        """The tokens grouped into words; punctuation stays with the word before it."""
        found: list[Ids] = []
        for token in ids:
            if self.begins_word[token] or not found:
                found.append([])
            found[-1].append(token)
        return found

    def bare(self, word: Ids) -> Ids:
        """The word without what is neither letter nor digit at its end."""
        end = len(word)
        while end > 1 and not (self.letters[word[end - 1]] or self.digit[word[end - 1]]):
            end -= 1
        return word[:end]

    def kind(self, word: Ids) -> str:
        """number, name or word."""
        if self.digit[word].any():
            return "number"
        return "name" if self.capital[word[0]] else "word"

    def is_content(self, word: Ids) -> bool:
        """Names, numbers and words of five letters and more."""
        return self.kind(word) != "word" or bool(self.letters[word].sum() > 4)


def joined(words: Sequence[Ids]) -> Ids:
    """The words' tokens in one list."""
    return [token for word in words for token in word]
