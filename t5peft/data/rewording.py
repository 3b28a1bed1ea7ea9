"""Ways to say a text in other words, word by word: synonyms from a thesaurus or WordNet, dropout, swaps.

Each takes texts with one random generator a text, so that what becomes of a row depends on no other row. ``identity`` is
text that says all that the outcome depends on; it names the cached result.
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

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# words whose loss turns a text around
KEPT = frozenset(["not", "no", "never", "none", "nothing", "nobody", "neither", "nor", "without", "hardly", "cannot"])


class Rewording(Protocol):
    """What ``augment`` applies to the columns of a source."""

    @property
    def identity(self) -> str:
        """All that the outcome depends on but the text and its random generator."""

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """Other words for each text; a text may come back as it was."""


@dataclass(frozen=True)
class Thesaurus:
    """Synonyms of words in lower case, in the form that fits in the word's place."""

    name: str
    look_up: Callable[[str], Sequence[str]]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Thesaurus:
        """A JSON file, word to list of synonyms; without a path the package's own small English one.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not such a mapping.
        """
        if path is None:
            content = (files("t5peft.data") / "embedded" / "thesaurus.json").read_text(encoding="utf-8")
        elif Path(path).is_file():
            content = Path(path).read_text(encoding="utf-8")
        else:
            raise FileNotFoundError(f"no thesaurus {path}; a JSON file was expected, such as {{'film': ['movie']}}")
        return cls._of(content, str(path or "the package's own"))

    @classmethod
    def wordnet(cls) -> Thesaurus:
        """WordNet through nltk: the lemmas of a word's most common sense. They are not inflected.

        Raises:
            FileNotFoundError: nltk or its WordNet data are not installed.
        """
        try:
            from nltk.corpus import wordnet

            version = wordnet.get_version()
        except (ImportError, LookupError) as error:
            raise FileNotFoundError(
                f"WordNet is not installed ({type(error).__name__}): install t5peft[wordnet] and run `python -m "
                "nltk.downloader wordnet`; without a network use Thesaurus.load(), the package's own or a JSON file"
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
            entries = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"thesaurus {origin} is not JSON: {error}") from None
        if not isinstance(entries, Mapping):
            raise ValueError(f"thesaurus {origin} holds {type(entries).__name__}; expected word to list of synonyms")
        wrong = [
            word
            for word, synonyms in entries.items()
            if not isinstance(synonyms, list) or not synonyms or not all(isinstance(s, str) and s for s in synonyms)
        ]
        if wrong:
            raise ValueError(
                f"thesaurus {origin}: {', '.join(map(repr, wrong[:5]))} ({len(wrong)} in all) have no list of synonyms"
            )
        lowered = {word.lower(): tuple(synonyms) for word, synonyms in entries.items()}
        digest = hashlib.sha256(json.dumps(lowered, sort_keys=True).encode()).hexdigest()
        return cls(f"thesaurus {digest}", lambda word: lowered.get(word, ()))


@dataclass(frozen=True)
class Synonyms:
    """Replace words by synonyms, in the case that the word has."""

    thesaurus: Thesaurus = field(default_factory=Thesaurus.load)
    rate: float = 0.5  # of the words that have a synonym

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"synonyms {self.rate} {self.thesaurus.name}"

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """See ``Rewording``."""
        return [self._replace_in(text, random) for text, random in zip(texts, randoms, strict=True)]

    def _replace_in(self, text: str, random: Random) -> str:
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
class WordDropout:
    """Leave words out; never a negation, never all of them."""

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"dropout {self.rate}"

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """See ``Rewording``."""
        return [self._drop(text, random) for text, random in zip(texts, randoms, strict=True)]

    def _drop(self, text: str, random: Random) -> str:
        chunks = text.split(" ")
        kept = [chunk for chunk in chunks if random.random() >= self.rate or _must_stay(chunk)]
        return " ".join(kept) if any(WORD.search(chunk) for chunk in kept) else text


@dataclass(frozen=True)
class WordSwap:
    """Swap neighbouring words; what stands between them stays."""

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    @property
    def identity(self) -> str:
        """See ``Rewording``."""
        return f"swap {self.rate}"

    def reword(self, texts: list[str], randoms: list[Random]) -> list[str]:
        """See ``Rewording``."""
        return [self._swap(text, random) for text, random in zip(texts, randoms, strict=True)]

    def _swap(self, text: str, random: Random) -> str:
        words = WORD.findall(text)
        place = 0
        while place + 1 < len(words):
            if random.random() < self.rate:
                words[place], words[place + 1] = words[place + 1], words[place]
                place += 1
            place += 1
        rest = iter(words)
        return WORD.sub(lambda _: next(rest), text)


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; a share of the words, above 0 and at most 1, was expected")


def _must_stay(chunk: str) -> bool:
    words = [word.lower().replace("’", "'") for word in WORD.findall(chunk)]
    return not words or any(word in KEPT or word.endswith("n't") for word in words)


def _article_for(article: str, old: str, new: str) -> str:
    """The article before a replaced word: changed only where the new word's first letter asks for the other one."""
    vowels = "aeiou"
    if article.lower() not in ("a", "an") or (old[0].lower() in vowels) == (new[0].lower() in vowels):
        return article
    return article[0] + ("n" if new[0].lower() in vowels else "")


def _in_case_of(word: str, synonym: str) -> str:
    if word.isupper() and len(word) > 1:
        return synonym.upper()
    return synonym[0].upper() + synonym[1:] if word[0].isupper() else synonym
