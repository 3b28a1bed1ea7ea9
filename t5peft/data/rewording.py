"""Rewordings of a text, word by word: synonyms from a thesaurus or WordNet, dropout, swaps.

Each takes texts with one random generator for each text, so that the result for a row does not depend on other rows.
``identity`` is a text that holds everything else that the result depends on; it names the cached result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Protocol

from t5peft.compat.json_text import parse_json

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# words whose loss reverses the meaning of a text
KEPT = frozenset(["not", "no", "never", "none", "nothing", "nobody", "neither", "nor", "without", "hardly", "cannot"])


class Rewording(Protocol):
    """A function that ``augment`` applies to the columns of a source."""

    @property
    def identity(self) -> str:
        """Everything that the result depends on except the text and its random generator."""

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """Return each text in other words; a text may come back as it was."""


@dataclass(frozen=True)
class Thesaurus:
    """Synonyms of words.

    Args:
        name: Identifies its content, for the cache.
        look_up: Returns the synonyms of a word in lower case, in the form that fits in the word's place.
    """

    name: str
    look_up: Callable[[str], Sequence[str]]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Thesaurus:
        """Load a JSON file that maps words to lists of synonyms; without a path, the small built-in English one.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not such a mapping.
        """
        if path is None:
            content = (files("t5peft.data") / "embedded" / "thesaurus.json").read_text(encoding="utf-8")
        elif Path(path).is_file():
            content = Path(path).read_bytes().decode("utf-8", "replace")
        else:
            raise FileNotFoundError(f"Got no thesaurus {path}; expected a JSON file, such as {{'film': ['movie']}}.")
        return cls._of(content, str(path or "the package's own"))

    @classmethod
    def wordnet(cls) -> Thesaurus:
        """Return WordNet through nltk: the lemmas of a word's most common sense, which are not inflected.

        Raises:
            FileNotFoundError: nltk or its WordNet data are not installed.
        """
        try:
            from nltk.corpus import wordnet

            version = wordnet.get_version()
        except (ImportError, LookupError) as error:
            raise FileNotFoundError(
                f"Got no WordNet ({type(error).__name__}); expected it. Install t5peft[wordnet], and run `python -m "
                "nltk.downloader wordnet`; without a network use Thesaurus.load(), the built-in one or a JSON file."
            ) from error

        @cache
        def look_up(word: str) -> tuple[str, ...]:
            senses = wordnet.synsets(word)
            lemmas = [lemma.replace("_", " ") for lemma in senses[0].lemma_names()] if senses else []
            return tuple(lemma for lemma in lemmas if lemma.lower() != word)

        return cls(f"WordNet {version}", look_up)

    @classmethod
    def _of(cls, content: str, origin: str) -> Thesaurus:
        try:
            entries = parse_json(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Got the thesaurus {origin}, which is not JSON: {error}; expected it.") from None
        if not isinstance(entries, Mapping):
            raise ValueError(
                f"Got the thesaurus {origin}, which holds {type(entries).__name__}; expected a mapping from word to synonyms."
            )
        wrong = [
            word
            for word, synonyms in entries.items()
            if not isinstance(synonyms, list) or not synonyms or not all(isinstance(s, str) and s for s in synonyms)
        ]
        if wrong:
            shown = ", ".join(map(repr, wrong[:5]))
            raise ValueError(
                f"Got the thesaurus {origin} without synonyms for {shown} ({len(wrong)} in all); expected a list for each word."
            )
        lowered = {word.lower(): tuple(synonyms) for word, synonyms in entries.items()}
        digest = hashlib.sha256(json.dumps(lowered, sort_keys=True).encode()).hexdigest()
        return cls(f"thesaurus {digest}", lambda word: lowered.get(word, ()))


class _WordByWord:
    """The base of rewordings that change a share of the words of each text by itself."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"Got rate={self.rate}; expected a fraction of the words, above 0 and at most 1.")

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """See ``Rewording``."""
        return [self.reword_one(text, random) for text, random in zip(texts, randoms, strict=True)]

    def reword_one(self, text: str, random: Random) -> str:
        """Return one text in other words."""
        raise NotImplementedError


@dataclass(frozen=True)
class Synonyms(_WordByWord):
    """Replace words with synonyms, and keep upper and lower case.

    Args:
        thesaurus: The thesaurus; by default the built-in one.
        rate: Fraction of the words with a synonym to replace.
    """

    thesaurus: Thesaurus = field(default_factory=Thesaurus.load)
    rate: float = 0.5

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"synonyms {self.rate} {self.thesaurus.name}"

    def reword_one(self, text: str, random: Random) -> str:
        """Return the text with synonyms."""
        pieces: list[str] = []
        end = 0
        for match in WORD.finditer(text):
            word = match[0]
            new = self._replaced(word, random)
            between = text[end : match.start()]
            if new != word and between == " " and pieces:
                pieces[-1] = _article_for(pieces[-1], word, new)
            pieces += [between, new]
            end = match.end()
        return "".join(pieces) + text[end:]

    def _replaced(self, word: str, random: Random) -> str:
        synonyms = self.thesaurus.look_up(word.lower())
        if not synonyms or random.random() >= self.rate:
            return word
        return _in_case_of(word, random.choice(synonyms))


@dataclass(frozen=True)
class WordDropout(_WordByWord):
    """Drop words, but never negations and never all words.

    Args:
        rate: Fraction of the words to drop.
    """

    rate: float = 0.1

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"dropout {self.rate}"

    def reword_one(self, text: str, random: Random) -> str:
        """Return the text without some of its words."""
        chunks = text.split(" ")
        kept = [chunk for chunk in chunks if random.random() >= self.rate or _must_stay(chunk)]
        return " ".join(kept) if any(WORD.search(chunk) for chunk in kept) else text


@dataclass(frozen=True)
class WordSwap(_WordByWord):
    """Swap adjacent words, and keep the text between them.

    Args:
        rate: Fraction of the words to swap.
    """

    rate: float = 0.1

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"swap {self.rate}"

    def reword_one(self, text: str, random: Random) -> str:
        """Return the text with words swapped."""
        words = WORD.findall(text)
        place = 0
        while place + 1 < len(words):
            if random.random() < self.rate:
                words[place], words[place + 1] = words[place + 1], words[place]
                place += 1
            place += 1
        rest = iter(words)
        return WORD.sub(lambda _: next(rest), text)


def _must_stay(chunk: str) -> bool:
    words = [word.lower().replace("’", "'") for word in WORD.findall(chunk)]
    return not words or any(word in KEPT or word.endswith("n't") for word in words)


def _article_for(article: str, old: str, new: str) -> str:
    """Return the article before a replaced word, changed only where the new word's first letter needs the other one."""
    vowels = "aeiou"
    if article.lower() not in ("a", "an") or (old[0].lower() in vowels) == (new[0].lower() in vowels):
        return article
    return article[0] + ("n" if new[0].lower() in vowels else "")


def _in_case_of(word: str, synonym: str) -> str:
    if word.isupper() and len(word) > 1:
        return synonym.upper()
    return synonym[0].upper() + synonym[1:] if word[0].isupper() else synonym
