"""Label sentences by the valence of their words: distant supervision with a sentiment lexicon.

A sentence is used if it has a word of the lexicon that its other words do not outweigh. A denial shortly before the word turns the
label around. Half of the sentences are cut to the words around it. Half are in lower case, as in people's own short texts. A
third have a gap in place of the word, so that its context is learned as well.

A few words are built in. A lexicon of thousands, such as that of VADER (Hutto and Gilbert 2014), has many more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from t5peft.pretraining.sentences import Ids, Sentences, joined

_PRAISE = """
    good great best better excellent beautiful wonderful happy perfect successful strong fine nice lovely friendly sweet
    bright love enjoy praised favorite superb remarkable outstanding impressive powerful safe success pleasure fresh
    warm brilliant charming delightful fascinating interesting pleasant
    """
_BLAME = """
    bad worst worse terrible horrible awful poor sad ugly wrong weak angry evil cruel difficult dangerous fear afraid
    pain failed failure lost criticized negative problem problems trouble disaster destroyed damaged broken cold dark
    harsh poverty boring stupid dull
    """
VALENCES: dict[str, float] = dict.fromkeys(_PRAISE.split(), 1.0) | dict.fromkeys(_BLAME.split(), -1.0)
_DENIALS = ("not", "never", "no", "without", "nor", "hardly", "cannot")
_DENIED_WITHIN = 3  # words


def read_valences(path: str | Path, *, least: float = 1.0) -> dict[str, float]:
    """Read words and valences from lines of ``word<TAB>number``; the rest of a line is ignored.

    Only single words in lower case with an absolute valence of at least ``least`` are kept.

    Raises:
        ValueError: A line has no number, or no word is left.
    """
    found = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        try:
            word, valence = fields[0], float(fields[1])
        except (IndexError, ValueError):
            raise ValueError(
                f"Got {line[:60]!r} in line {number} of {path}; expected word<TAB>valence, as `good<TAB>1.9`."
            ) from None
        if word.isascii() and word.isalpha() and word.islower() and len(word) > 2 and abs(valence) >= least:
            found[word] = valence
    if not found:
        raise ValueError(
            f"Got no word in {path}; expected words in lower case with an absolute valence of at least {least}."
        )
    return found


class Sentiment:
    """Draw sentences with a positive or negative label.

    Attributes:
        words: For positive (True) and negative (False): the tokens of each word, its valence, and its places in the text.
    """

    def __init__(self, sentences: Sentences, tokenizer: PreTrainedTokenizerBase, valences: Mapping[str, float]) -> None:
        self.sentences = sentences
        (self.gap,) = cast(Ids, tokenizer.convert_tokens_to_ids(["<extra_id_0>"]))
        vocabulary = tokenizer.get_vocab()
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.small = np.array([vocabulary.get(piece.lower(), at) for at, piece in enumerate(pieces)])
        self.denials = {tuple(ids) for ids in tokenizer(list(_DENIALS), add_special_tokens=False).input_ids}
        encoded = tokenizer(list(valences), add_special_tokens=False).input_ids
        self.valences = {tuple(ids): valence for ids, valence in zip(encoded, valences.values(), strict=True)}
        self.words: dict[bool, list[tuple[Ids, float, np.ndarray]]] = {True: [], False: []}
        order = np.argsort(sentences.tokens, kind="stable")
        firsts = np.searchsorted(sentences.tokens[order], [[ids[0], ids[0] + 1] for ids in encoded])
        for ids, valence, (first, last) in zip(encoded, valences.values(), firsts, strict=True):
            places = self._whole_words(order[first:last], ids)
            if places.size:
                self.words[valence > 0].append((ids, valence, places))

    def __bool__(self) -> bool:
        return all(self.words.values())

    def _whole_words(self, places: np.ndarray, ids: Ids) -> np.ndarray:
        """Return the ``places`` of the first token at which the whole word stands and ends."""
        tokens = self.sentences.tokens
        places = places[places + len(ids) < len(tokens)]
        for offset, token in enumerate(ids[1:], start=1):
            places = places[tokens[places + offset] == token]
        following = tokens[places + len(ids)]
        return places[self.sentences.begins_word[following] | (self.sentences.letters[following] == 0)]

    def draw(self, generator: np.random.Generator) -> tuple[Ids, bool]:
        """Draw a sentence or a part of one; return its tokens and whether it is positive.

        Raises:
            ValueError: The text has no such words, or has them only in long sentences.
        """
        for _ in range(1000 if self else 0):
            praise = bool(generator.random() < 0.5)
            words = self.words[praise]
            word, valence, places = words[int(generator.integers(len(words)))]
            place = int(places[int(generator.integers(len(places)))])
            index = int(np.searchsorted(self.sentences.ends, place, side="right"))
            begin = int(self.sentences.ends[index - 1]) if index else 0
            ids = self.sentences.tokens[begin : self.sentences.ends[index]].tolist()
            at = place - begin
            before, after = self._bare_words(ids[:at]), self._bare_words(ids[at + len(word) :])
            outweighed = (valence + sum(self.valences.get(other, 0.0) for other in before + after) > 0) != praise
            if outweighed or not 4 <= len(ids) <= 60:
                continue
            denied = not self.denials.isdisjoint(before[-_DENIED_WITHIN:])
            if not denied and generator.random() < 0.33:
                ids[at : at + len(word)] = [self.gap]
            return self._as_people_write(ids, at, generator, kept=_DENIED_WITHIN if denied else 0), praise != denied
        raise ValueError(
            "Got no sentence of 4 to 60 tokens with a word of the lexicon; expected some. Leave the sentiment task out for this "
            "text."
        )

    def _bare_words(self, ids: Ids) -> list[tuple[int, ...]]:
        return [tuple(self.sentences.bare(word)) for word in self.sentences.words(ids)]

    def _as_people_write(self, ids: Ids, at: int, generator: np.random.Generator, *, kept: int) -> Ids:
        """Cut at random to the words around token ``at``, keeping ``kept`` before it, and lower the case at random."""
        if generator.random() < 0.5:
            before, after = self.sentences.words(ids[:at]), self.sentences.words(ids[at:])
            first, last = max(0, len(before) - int(generator.integers(kept, 9))), 1 + int(generator.integers(9))
            ids = joined([*before[first:], *after[:last]])
        if generator.random() < 0.5:
            ids = self.small[ids].tolist()
        return [token for token in ids if token != self.sentences.newline]
