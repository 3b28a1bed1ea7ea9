"""Questions made from words of a text, labeled by the kind of thing that they ask for.

The kinds are the six of the UIUC question classification (Li and Roth 2002); the questions are ours. How a question begins, often
with a noun ("which river"), tells its kind. So a model learns which kind of thing a noun names. The rest of a question is any part
of a sentence.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from t5peft.pretraining.sentences import Ids, Sentences, joined

# For each kind: how a question may begin (``@`` stands for one of the nouns, ``...`` for words of the text), and the nouns.
_OF_NOUNS = (
    "What @|Which @|What @ ...|What is the @ of|What was the @ that|What is the name of the @|Name the @|In which @"
)
_KINDS: dict[str, tuple[str, str]] = {
    "human": (
        "Who|Who is|Who was|Who were the|Whose|By whom was|Who was the @|Who is the @|Which @|What @|What is the name of the @ who|"
        "Name the @ who",
        """
        actor actress author writer poet painter composer singer musician band player champion coach team king
        queen emperor president minister leader governor mayor general soldier explorer inventor scientist
        philosopher doctor lawyer judge teacher student man woman boy girl child person people nation tribe
        company organization party university club army family father mother brother sister son daughter wife
        husband astronaut pilot director producer founder owner killer hero god goddess saint pope
        """,
    ),
    "location": (
        "Where|Where is|Where was|Where did|Where can|From where|" + _OF_NOUNS,
        """
        city town village country state county province region continent island river lake sea ocean mountain
        valley desert street road place capital nation district park building castle church museum airport
        station harbor bridge planet coast area territory birthplace site location hotel stadium college
        """,
    ),
    "number": (
        "How many|How much|How long|How far|How old|How tall|How fast|How often|How big is|When|When did|When was|"
        "What year|In what year|"
        "What is the @ of|What was the @ of|What @",
        """
        date year day month century decade age population size height length distance speed temperature weight
        price cost salary percentage number amount rate value area depth score birthday time zip telephone
        """,
    ),
    "entity": (
        _OF_NOUNS,
        """
        animal bird fish dog plant tree flower fruit vegetable food drink dish color language religion sport
        game instrument song book novel film movie play poem painting magazine newspaper disease drug chemical
        element metal stone gas material product car ship plane weapon machine device tool invention war battle
        event holiday festival award letter word symbol technique method currency substance body organ muscle
        vitamin
        """,
    ),
    "description": (
        "Why|Why did|Why is|Why do|How do|How does|How did|How can|How is|What is|What are|What is a|What is an|What does ... mean|"
        "What does ... do|What is the @ of|What was the @ of|What @|Define",
        """
        meaning definition origin purpose cause reason difference history function effect significance nature
        importance theory result role explanation story
        """,
    ),
    "abbreviation": (
        "What does ... stand for|What is ... short for|What do the letters ... stand for|What is the abbreviation of|"
        "What is the abbreviation for|What is the acronym for|What is the full form of",
        "",
    ),
}
_SHARES = (0.2, 0.18, 0.2, 0.2, 0.17, 0.05)
KINDS = tuple(_KINDS)


class Questions:
    """Draw questions and their kinds."""

    def __init__(self, sentences: Sentences, tokenizer: PreTrainedTokenizerBase) -> None:
        def encoded(texts: list[str]) -> list[Ids]:
            return list(tokenizer(texts, add_special_tokens=False).input_ids) if texts else []

        self.sentences = sentences
        self.mark = cast(Ids, tokenizer.convert_tokens_to_ids(["?"]))
        letters = np.random.default_rng(0).choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=(1000, 5))
        self.acronyms = encoded(["".join(row[: 2 + at % 4]) for at, row in enumerate(letters)])
        self.nouns = {kind: encoded(nouns.split()) for kind, (_, nouns) in _KINDS.items()}
        # An opening is a list of parts: tokens, or the sign that stands for a noun or for words.
        self.openings: dict[str, list[list[Ids | str]]] = {}
        for kind, (openings, _) in _KINDS.items():
            words = [opening.split() for opening in openings.split("|")]
            self.openings[kind] = [
                [part if part in ("@", "...") else encoded([part])[0] for part in opening] for opening in words
            ]

    def draw(self, generator: np.random.Generator) -> tuple[Ids, str]:
        """Draw a question; return its tokens and its kind, one of ``KINDS``."""
        kind = KINDS[int(generator.choice(len(KINDS), p=_SHARES))]
        openings = self.openings[kind]
        opening = openings[int(generator.integers(len(openings)))]
        short = kind == "abbreviation" or "..." in opening
        parts: list[Ids] = []
        for part in opening:
            if isinstance(part, list):
                parts.append(part)
            elif part == "@":
                nouns = self.nouns[kind]
                parts.append(nouns[int(generator.integers(len(nouns)))])
            else:
                acronym = self.acronyms[int(generator.integers(len(self.acronyms)))]
                parts.append(acronym if kind == "abbreviation" else self._words(generator, 3))
        if opening[-1] != "for" and "..." not in opening[:-1]:
            parts.append(self._words(generator, 4 if short or kind == "description" else 10))
        return [*joined(parts), *self.mark], kind

    def _words(self, generator: np.random.Generator, longest: int) -> Ids:
        """Draw one to ``longest`` consecutive words."""
        words = self.sentences.words(self.sentences[self.sentences.draw(generator)])
        begin = int(generator.integers(len(words)))
        part = words[begin : begin + int(generator.integers(1, longest + 1))]
        return [*joined(part[:-1]), *self.sentences.bare(part[-1])]
