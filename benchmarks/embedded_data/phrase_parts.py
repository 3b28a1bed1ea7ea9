"""Noun phrases and predicates in English and German, for the sentences of ``phrases.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from . import phrase_words as words
from .splits import with_article

ENDINGS = {  # of the words that decline like "der", and of "ein" where it has one: nominative, accusative, dative
    "m": ("er", "en", "em"),
    "f": ("e", "e", "er"),
    "n": ("es", "es", "em"),
    "p": ("e", "e", "en"),
}
ARTICLES = {
    "m": ("der", "den", "dem"),
    "f": ("die", "die", "der"),
    "n": ("das", "das", "dem"),
    "p": ("die", "die", "den"),
}
NOMINATIVE, ACCUSATIVE, DATIVE = range(3)
POSSESSIVES = {"my": "mein", "your": "dein", "his": "sein", "her": "ihr", "our": "unser"}
# English subject, English object, German in three cases, person as an index into verb forms (ich, du, er, wir, sie).
PRONOUNS = (
    ("I", "me", "ich", "mich", "mir", 0),
    ("you", "you", "du", "dich", "dir", 1),
    ("he", "him", "er", "ihn", "ihm", 2),
    ("she", "her", "sie", "sie", "ihr", 2),
    ("we", "us", "wir", "uns", "uns", 3),
    ("they", "them", "sie", "sie", "ihnen", 4),
)


@dataclass(frozen=True)
class Phrase:
    """A noun phrase or pronoun in both languages; ``german`` in one case."""

    english: str
    german: str
    person: int = 2
    is_pronoun: bool = False
    is_indefinite: bool = False


@dataclass(frozen=True)
class Verb:
    """A verb; ``forms`` are the German present for ich, du, er, wir and sie, without the prefix that separates."""

    english: str
    past: str
    infinitive: str
    forms: tuple[str, ...]
    participle: str
    prefix: str
    last: str

    @classmethod
    def read(cls, row: str) -> Verb:
        english, past, infinitive, first, second, third, participle, prefix, last = row.replace("_", " ").split("/")
        return cls(english, past, infinitive, (first, second, third, infinitive, infinitive), participle, prefix, last)

    @property
    def third(self) -> str:
        """English third person singular of the present."""
        head, _, tail = self.english.partition(" ")
        if re.search(r"(sh|ch|s|o)$", head):
            head += "es"
        else:
            head = head[:-1] + "ies" if re.search(r"[^aeiou]y$", head) else head + "s"
        return f"{head} {tail}".strip()


@dataclass(frozen=True)
class Predicate:
    """A verb with what belongs to it: English text after it, and German parts before the end of the clause."""

    verb: Verb
    english: str
    pronouns: str
    middle: str
    negated: str | None
    auxiliary: tuple[str, ...] = words.HAVE


# Noun phrases


def noun_phrase(kind: str, case: int, rng: Random, *, plural: bool | None = None, plain: bool = False) -> Phrase:
    """Return a noun of a class with determiner and, often, an adjective; ``plain`` leaves the adjective out."""
    english, english_plural, german, gender, german_plural = rng.choice(words.NOUNS[kind].split()).split("/")
    many = bool(english_plural) and (rng.random() < 0.25 if plural is None else plural)
    slot = "p" if many else gender
    determiner = rng.choice(_determiners(kind, many))
    adjective = None if plain or rng.random() < 0.45 else rng.choice(words.ADJECTIVES.get(kind, "").split() or [""])
    article, strong = _determiner(determiner, slot, case)
    parts_english, parts_german = [], [article]
    if adjective and not (adjective.startswith("old/") and english in ("child", "girl")):
        word, base, *stem = adjective.split("/")
        parts_english.append(word)
        parts_german.append((stem[0] if stem else base) + _adjective_ending(slot, case, strong))
    noun = german_plural if many else german
    if many and case == DATIVE and not noun.endswith(("n", "s")):
        noun += "n"
    parts_german.append(noun)
    parts_english.append((english_plural if many else english).replace("_", " "))
    text = " ".join(parts_english)
    text = with_article(text) if determiner == "a" else f"{determiner} {text}".strip()
    return Phrase(text, " ".join(filter(None, parts_german)), 4 if many else 2, is_indefinite=determiner == "a")


def _determiners(kind: str, many: bool) -> tuple[str, ...]:
    if kind == "relative":
        return tuple(POSSESSIVES)
    if kind == "drink":
        return ("the", "")
    if many:
        return (
            ("the", "these", "two", "three", "many")
            if kind in ("person", "building")
            else ("the", "my", "our", "two", "three")
        )
    if kind in ("place", "furniture"):
        return ("the", "the", "a", "this", "our")
    if kind in ("person", "building", "spot"):
        return ("the", "the", "a", "this")
    return ("the", "the", "a", "a", "this", *POSSESSIVES)


def _determiner(english: str, slot: str, case: int) -> tuple[str, str]:
    """Return the German determiner and what the adjective after it must show: "weak", "mixed" (after ein) or "strong"."""
    if english == "the":
        return ARTICLES[slot][case], "weak"
    if english in ("this", "these"):
        return "dies" + ENDINGS[slot][case], "weak"
    if english == "a" or english in POSSESSIVES:
        bare = (slot == "m" and case == NOMINATIVE) or (slot == "n" and case != DATIVE)
        return POSSESSIVES.get(english, "ein") + ("" if bare else ENDINGS[slot][case]), "mixed"
    counted = {"two": "zwei", "three": "drei", "": ""}
    return counted.get(english, "viele" + ("n" if case == DATIVE else "")), "strong"


def _adjective_ending(slot: str, case: int, kind: str) -> str:
    if kind == "strong":
        return ENDINGS[slot][case]
    if case == DATIVE or slot == "p" or (slot == "m" and case == ACCUSATIVE):
        return "en"
    return ENDINGS[slot][case] if kind == "mixed" else "e"


def _pronoun(rng: Random, case: int) -> Phrase:
    subject, other, *german, person = rng.choice(PRONOUNS)
    return Phrase(subject if case == NOMINATIVE else other, german[case], person, is_pronoun=True)


def make_subject(rng: Random, kinds: tuple[str, ...] = ("relative", "person", "person")) -> Phrase:
    return _pronoun(rng, NOMINATIVE) if rng.random() < 0.3 else noun_phrase(rng.choice(kinds), NOMINATIVE, rng)


def _whom(kinds: list[str], case: int, subject: Phrase, rng: Random) -> Phrase:
    """Return an object; people may be a pronoun, but not the person of the subject."""
    while True:
        kind = rng.choice(kinds)
        people = kind in ("person", "relative")
        whom = _pronoun(rng, case) if people and rng.random() < 0.3 else noun_phrase(kind, case, rng)
        same_pronoun = whom.is_pronoun and subject.is_pronoun and whom.person == subject.person
        both_we = whom.is_pronoun and {whom.person, subject.person} == {0, 3}
        if not same_pronoun and not both_we and head_noun(whom) != head_noun(subject):
            return whom


def head_noun(phrase: Phrase) -> str:
    """Return the last word, with singular and plural alike."""
    return phrase.english.split()[-1].rstrip("s")


def is_definite(phrase: Phrase) -> bool:
    return phrase.english.split()[0] in ("the", "this", "these", *POSSESSIVES)


# Predicates


def make_predicate(subject: Phrase, rng: Random, without: frozenset[str] = frozenset()) -> Predicate:
    """Return a predicate whose English verb is not one of ``without``."""
    while True:
        make = rng.choices((_transitive, _dative, _ditransitive, staying, _going), (9, 2, 3, 4, 3))[0]
        predicate = make(subject, rng)
        if predicate.verb.english not in without:
            return predicate


def _transitive(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.TRANSITIVE.split()))
    whom = _whom(verb.last.split(","), ACCUSATIVE, subject, rng)
    here = rng.random() < 0.2 and verb.english in ("see", "read", "buy", "eat", "drink", "hear")
    place = make_place(rng) if here else ("", "")
    negated = "k" + whom.german if whom.is_indefinite else f"{whom.german} nicht"
    can_negate = not place[0] and (whom.is_pronoun or whom.is_indefinite or is_definite(whom))
    pronoun = whom.german if whom.is_pronoun else ""
    middle = joined("" if pronoun else whom.german, place[1])
    return Predicate(verb, joined(whom.english, place[0]), pronoun, middle, negated if can_negate else None)


def _dative(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.DATIVE.split()))
    whom = _whom(verb.last.split(","), DATIVE, subject, rng)
    pronoun = whom.german if whom.is_pronoun else ""
    negated = f"{whom.german} nicht" if whom.is_pronoun or is_definite(whom) else None
    return Predicate(verb, whom.english, pronoun, "" if pronoun else whom.german, negated)


def _ditransitive(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.DITRANSITIVE.split()))
    whom = _whom(["relative", "person"], DATIVE, subject, rng)
    what = noun_phrase(rng.choice(verb.last.split(",")), ACCUSATIVE, rng)
    pronoun = whom.german if whom.is_pronoun else ""
    middle = what.german if pronoun else f"{whom.german} {what.german}"
    return Predicate(verb, f"{whom.english} {what.english}", pronoun, middle, None)


def staying(subject: Phrase, rng: Random, rows: str = words.STAYING) -> Predicate:
    verb = Verb.read(rng.choice(rows.split()))
    english, german = make_place(rng)
    return Predicate(verb, english, "", german, f"nicht {german}")


def _going(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.GOING.split()))
    if verb.english != "drive" and rng.random() < 0.4:
        where = noun_phrase("place", ACCUSATIVE, rng, plural=False)
        english, german = f"into {where.english}", _contracted(f"in {where.german}")
    else:
        english, _, german, gender, _ = rng.choice(words.NOUNS["goal"].split()).split("/")
        english, german = f"to the {english.replace('_', ' ')}", f"{'zur' if gender == 'f' else 'zum'} {german}"
    return Predicate(verb, english, "", german, f"nicht {german}", words.BE)


def make_place(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.6:
        where = noun_phrase("place", DATIVE, rng, plural=False)
        return f"in {where.english}", _contracted(f"in {where.german}")
    return next_to("spot", words.SPOT_PREPOSITIONS, rng)


def next_to(kind: str, prepositions: str, rng: Random) -> tuple[str, str]:
    english, german = rng.choice(prepositions.split()).replace("_", " ").split("/")
    where = noun_phrase(kind, DATIVE, rng, plural=False)
    return f"{english} {where.english}", f"{german} {where.german}"


def _contracted(german: str) -> str:
    return re.sub(r"^in das ", "ins ", re.sub(r"^in dem ", "im ", german))


def joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)
