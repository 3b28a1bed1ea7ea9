"""Short English sentences with their German translation (translation).

A sentence is built in both languages at once from the same choices: noun phrases with case, gender, number and adjective endings,
verbs with their forms, and the German order of words (verb second, verb last in subordinate clauses, the bracket of modal verbs
and the perfect). "you" is always "du"; the past is the perfect, as in spoken German.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from . import phrase_words as words
from .splits import capital, numbered, with_article, without_near_duplicates

COUNTS = {"train": 900, "validation": 100, "test": 150}
DRAFTS = {"train": 3000, "validation": 400, "test": 400}
ENDINGS = {  # of the words that decline like "der", and of "ein" where it has one: nominative, accusative, dative
    "m": ("er", "en", "em"),
    "f": ("e", "e", "er"),
    "n": ("es", "es", "em"),
    "p": ("e", "e", "en"),
}
ARTICLES = {"m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem"), "p": ("die", "die", "den")}
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
    """A noun phrase or pronoun in both languages; `german` in one case."""

    english: str
    german: str
    person: int = 2
    is_pronoun: bool = False
    is_indefinite: bool = False


@dataclass(frozen=True)
class Verb:
    """A verb; `forms` are the German present for ich, du, er, wir and sie, without the prefix that separates."""

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


def records() -> dict[str, list[dict]]:
    """Rows id, english, german; no sentence of one split is close to one of another, in either language."""
    rng = Random("phrases")
    candidates = {split: [_sentence(rng) for _ in range(count)] for split, count in DRAFTS.items()}
    rows = without_near_duplicates(
        candidates, COUNTS, lambda row: (row["english"], row["german"]), lambda row: row["english"]
    )
    return numbered("phrases", rows)


def _sentence(rng: Random) -> dict:
    makers = (_present, _present, _adverb, _past, _past, _modal, _modal, _past_front, _future_front, _negative, _question,
              _past_question, _thought, _because, _imperative, _state)  # fmt: skip
    english, german = rng.choice(makers)(rng)
    return {"english": capital(english), "german": capital(german)}


# Noun phrases


def _noun_phrase(kind: str, case: int, rng: Random, *, plural: bool | None = None, plain: bool = False) -> Phrase:
    """A noun of a class with determiner and, often, an adjective; `plain` leaves the adjective out."""
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
        return ("the", "these", "two", "three", "many") if kind in ("person", "building") else ("the", "my", "our", "two", "three")
    if kind in ("place", "furniture"):
        return ("the", "the", "a", "this", "our")
    if kind in ("person", "building", "spot"):
        return ("the", "the", "a", "this")
    return ("the", "the", "a", "a", "this", *POSSESSIVES)


def _determiner(english: str, slot: str, case: int) -> tuple[str, str]:
    """The German determiner and what the adjective after it must show: "weak", "mixed" (after ein) or "strong"."""
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


def _subject(rng: Random, kinds: tuple[str, ...] = ("relative", "person", "person")) -> Phrase:
    return _pronoun(rng, NOMINATIVE) if rng.random() < 0.3 else _noun_phrase(rng.choice(kinds), NOMINATIVE, rng)


def _whom(kinds: list[str], case: int, subject: Phrase, rng: Random) -> Phrase:
    """An object; people may be a pronoun, but not the person of the subject."""
    while True:
        kind = rng.choice(kinds)
        people = kind in ("person", "relative")
        whom = _pronoun(rng, case) if people and rng.random() < 0.3 else _noun_phrase(kind, case, rng)
        same_pronoun = whom.is_pronoun and subject.is_pronoun and whom.person == subject.person
        both_we = whom.is_pronoun and {whom.person, subject.person} == {0, 3}
        if not same_pronoun and not both_we and _head(whom) != _head(subject):
            return whom


def _head(phrase: Phrase) -> str:
    """The last word, with singular and plural alike."""
    return phrase.english.split()[-1].rstrip("s")


def _is_definite(phrase: Phrase) -> bool:
    return phrase.english.split()[0] in ("the", "this", "these", *POSSESSIVES)


# Predicates


def _predicate(subject: Phrase, rng: Random, without: frozenset[str] = frozenset()) -> Predicate:
    """A predicate whose English verb is not one of `without`."""
    while True:
        make = rng.choices((_transitive, _dative, _ditransitive, _staying, _going), (9, 2, 3, 4, 3))[0]
        predicate = make(subject, rng)
        if predicate.verb.english not in without:
            return predicate


def _transitive(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.TRANSITIVE))
    whom = _whom(verb.last.split(","), ACCUSATIVE, subject, rng)
    here = rng.random() < 0.2 and verb.english in ("see", "read", "buy", "eat", "drink", "repair", "hear", "hide")
    place = _place(rng) if here else ("", "")
    negated = "k" + whom.german if whom.is_indefinite else f"{whom.german} nicht"
    can_negate = not place[0] and (whom.is_pronoun or whom.is_indefinite or _is_definite(whom))
    pronoun = whom.german if whom.is_pronoun else ""
    middle = _join("" if pronoun else whom.german, place[1])
    return Predicate(verb, _join(whom.english, place[0]), pronoun, middle, negated if can_negate else None)


def _dative(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.DATIVE))
    whom = _whom(verb.last.split(","), DATIVE, subject, rng)
    pronoun = whom.german if whom.is_pronoun else ""
    negated = f"{whom.german} nicht" if whom.is_pronoun or _is_definite(whom) else None
    return Predicate(verb, whom.english, pronoun, "" if pronoun else whom.german, negated)


def _ditransitive(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.DITRANSITIVE))
    whom = _whom(["relative", "person"], DATIVE, subject, rng)
    what = _noun_phrase(rng.choice(verb.last.split(",")), ACCUSATIVE, rng)
    pronoun = whom.german if whom.is_pronoun else ""
    middle = what.german if pronoun else f"{whom.german} {what.german}"
    return Predicate(verb, f"{whom.english} {what.english}", pronoun, middle, None)


def _staying(subject: Phrase, rng: Random, rows: list[str] = words.STAYING) -> Predicate:
    verb = Verb.read(rng.choice(rows))
    english, german = _place(rng)
    return Predicate(verb, english, "", german, f"nicht {german}")


def _going(subject: Phrase, rng: Random) -> Predicate:
    verb = Verb.read(rng.choice(words.GOING))
    if verb.english != "drive" and rng.random() < 0.4:
        where = _noun_phrase("place", ACCUSATIVE, rng, plural=False)
        english, german = f"into {where.english}", _contracted(f"in {where.german}")
    else:
        english, _, german, gender, _ = rng.choice(words.NOUNS["goal"].split()).split("/")
        english, german = f"to the {english.replace('_', ' ')}", f"{'zur' if gender == 'f' else 'zum'} {german}"
    return Predicate(verb, english, "", german, f"nicht {german}", words.BE)


def _place(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.6:
        where = _noun_phrase("place", DATIVE, rng, plural=False)
        return f"in {where.english}", _contracted(f"in {where.german}")
    return _next_to("spot", words.SPOT_PREPOSITIONS, rng)


def _next_to(kind: str, prepositions: str, rng: Random) -> tuple[str, str]:
    english, german = rng.choice(prepositions.split()).replace("_", " ").split("/")
    where = _noun_phrase(kind, DATIVE, rng, plural=False)
    return f"{english} {where.english}", f"{german} {where.german}"


def _contracted(german: str) -> str:
    return re.sub(r"^in das ", "ins ", re.sub(r"^in dem ", "im ", german))


# Clauses: English text, and German as finite verb, inner part and end


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _time(listed: str, rng: Random) -> tuple[str, str]:
    english, german = rng.choice(listed.split()).replace("_", " ").split("/")
    return english, german


def _present_time(predicate: Predicate, rng: Random) -> tuple[str, str]:
    return _time(words.SELDOM_TIMES if predicate.verb.english in words.SELDOM else words.PRESENT_TIMES, rng)


def _verb_last(subject: Phrase, predicate: Predicate, tense: str, time: tuple[str, str]) -> tuple[str, str]:
    """A subordinate clause without its conjunction."""
    verb = predicate.verb
    inner = _join(subject.german, predicate.pronouns, time[1], predicate.middle)
    if tense == "past":
        return (
            _join(subject.english, verb.past, predicate.english, time[0]),
            _join(inner, verb.participle, predicate.auxiliary[subject.person]),
        )
    english = verb.third if subject.person == 2 else verb.english
    return _join(subject.english, english, predicate.english, time[0]), _join(inner, verb.prefix + verb.forms[subject.person])


def _present(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    predicate = _predicate(subject, rng, words.LASTING)
    time = _present_time(predicate, rng)
    verb = predicate.verb
    finite = verb.third if subject.person == 2 else verb.english
    english = _join(subject.english, finite, predicate.english, time[0])
    inner = _join(predicate.pronouns, time[1], predicate.middle)
    return f"{english}.", f"{_join(subject.german, verb.forms[subject.person], inner, verb.prefix)}."


def _adverb(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.3:
        subject = _noun_phrase("animal", NOMINATIVE, rng)
        rows = [row for row in words.STAYING if row.split("/")[0] in ("sleep", "play", "wait", "sit")]
        predicate = _staying(subject, rng, rows)
    else:
        subject = _subject(rng)
        predicate = _predicate(subject, rng, words.SELDOM)
    adverb = _time(words.ADVERBS, rng)
    verb = predicate.verb
    finite = verb.third if subject.person == 2 else verb.english
    inner = _join(predicate.pronouns, adverb[1], predicate.middle)
    return (
        f"{_join(subject.english, adverb[0], finite, predicate.english)}.",
        f"{_join(subject.german, verb.forms[subject.person], inner, verb.prefix)}.",
    )


def _past(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    predicate, time = _predicate(subject, rng, words.LASTING), _time(words.PAST_TIMES, rng)
    english = _join(subject.english, predicate.verb.past, predicate.english, time[0])
    inner = _join(predicate.pronouns, time[1], predicate.middle)
    return f"{english}.", f"{_join(subject.german, predicate.auxiliary[subject.person], inner, predicate.verb.participle)}."


def _past_front(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    predicate, time = _predicate(subject, rng, words.LASTING), _time(words.PAST_TIMES, rng)
    finite = predicate.auxiliary[subject.person]
    german = _join(time[1], finite, subject.german, predicate.pronouns, predicate.middle, predicate.verb.participle)
    return f"{time[0]} {_join(subject.english, predicate.verb.past, predicate.english)}.", f"{german}."


def _modal_forms(modal: str) -> tuple[str, ...]:
    return words.MODALS[modal] if modal in words.MODALS else words.WANT


def _modal(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    modal = rng.choice((*words.MODALS, "want"))
    predicate, time = _predicate(subject, rng, words.LASTING | words.CHANCE), _time(words.FUTURE_TIMES, rng)
    verb = predicate.verb
    finite = modal if modal != "want" else "wants to" if subject.person == 2 else "want to"
    inner = _join(predicate.pronouns, time[1], predicate.middle)
    return (
        f"{_join(subject.english, finite, verb.english, predicate.english, time[0])}.",
        f"{_join(subject.german, _modal_forms(modal)[subject.person], inner, verb.prefix + verb.infinitive)}.",
    )


def _future_front(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    modal = rng.choice(tuple(words.MODALS))
    predicate, time = _predicate(subject, rng, words.LASTING | words.CHANCE), _time(words.FUTURE_TIMES, rng)
    verb = predicate.verb
    finite = words.MODALS[modal][subject.person]
    end = verb.prefix + verb.infinitive
    return (
        f"{time[0]} {_join(subject.english, modal, verb.english, predicate.english)}.",
        f"{_join(time[1], finite, subject.german, predicate.pronouns, predicate.middle, end)}.",
    )


def _negative(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    predicate = _predicate(subject, rng)
    while predicate.negated is None:
        predicate = _predicate(subject, rng)
    verb = predicate.verb
    if rng.random() < 0.5:
        time = _time(words.PAST_TIMES, rng)
        pronoun = predicate.pronouns
        inner = _join(pronoun, time[1], "nicht") if pronoun else _join(time[1], predicate.negated)
        return (
            f"{_join(subject.english, 'did not', verb.english, predicate.english, time[0])}.",
            f"{_join(subject.german, predicate.auxiliary[subject.person], inner, verb.participle)}.",
        )
    helper = "does not" if subject.person == 2 else "do not"
    return (
        f"{_join(subject.english, helper, verb.english, predicate.english)}.",
        f"{_join(subject.german, verb.forms[subject.person], predicate.negated, verb.prefix)}.",
    )


def _question(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    predicate = _predicate(subject, rng, words.LASTING)
    verb, time = predicate.verb, _present_time(predicate, rng)
    if rng.random() < 0.4 and verb.english not in words.CHANCE:
        modal = rng.choice(("can", "must", "should", "will"))
        inner = _join(_modal_forms(modal)[subject.person], subject.german, predicate.pronouns, predicate.middle)
        return f"{_join(modal, subject.english, verb.english, predicate.english)}?", f"{inner} {verb.prefix}{verb.infinitive}?"
    helper = "does" if subject.person == 2 else "do"
    inner = _join(predicate.pronouns, time[1], predicate.middle)
    return (
        f"{_join(helper, subject.english, verb.english, predicate.english, time[0])}?",
        f"{_join(verb.forms[subject.person], subject.german, inner, verb.prefix)}?",
    )


def _past_question(rng: Random) -> tuple[str, str]:
    subject = _subject(rng)
    english, german = rng.choice((("why", "warum"), ("when", "wann"), ("", "")))
    predicate = _predicate(subject, rng)
    inner = _join(german, predicate.auxiliary[subject.person], subject.german, predicate.pronouns, predicate.middle)
    return (
        f"{_join(english, 'did', subject.english, predicate.verb.english, predicate.english)}?",
        f"{inner} {predicate.verb.participle}?",
    )


def _thought(rng: Random) -> tuple[str, str]:
    english, german = rng.choice(words.THOUGHTS.split("|")).split("/")
    subject = _subject(rng)
    predicate = _predicate(subject, rng, words.LASTING)
    past = rng.random() < 0.5
    time = _time(words.PAST_TIMES, rng) if past else _present_time(predicate, rng)
    inner = _verb_last(subject, predicate, "past" if past else "present", time)
    mark = "?" if english.startswith("Do ") else "."
    return f"{english} {inner[0]}{mark}", f"{german} {inner[1]}{mark}"


def _because(rng: Random) -> tuple[str, str]:
    """A main clause in the present, and a reason or an obstacle."""
    subject = _subject(rng)
    predicate = _predicate(subject, rng, words.LASTING | words.CHANCE)
    conjunction, german_conjunction = rng.choice(words.CONJUNCTIONS.split()).split("/")
    state, german_state = rng.choice(words.STATES.split("|")).split("/")
    verb = predicate.verb
    modal = rng.choice(("must", "can", "will", "should"))
    main = _join(subject.english, modal, verb.english, predicate.english)
    inner = _join(subject.german, _modal_forms(modal)[subject.person], predicate.pronouns, predicate.middle)
    return (
        f"{main} {conjunction} {state}.",
        f"{inner} {verb.prefix}{verb.infinitive}, {german_conjunction} {german_state}.",
    )


def _imperative(rng: Random) -> tuple[str, str]:
    verb = Verb.read(rng.choice([row for row in words.TRANSITIVE if Verb.read(row).english in words.IMPERATIVES]))
    what = _noun_phrase(rng.choice([kind for kind in verb.last.split(",") if kind != "person"] or ["person"]), ACCUSATIVE, rng)
    form = words.IMPERATIVES[verb.english]
    if rng.random() < 0.3 and _is_definite(what):
        return f"do not {verb.english} {what.english}!", f"{form} {what.german} nicht!"
    return f"please {verb.english} {what.english}.", f"{form} bitte {what.german}."


def _state(rng: Random) -> tuple[str, str]:
    """A noun phrase with an adjective in the predicate, plain or compared."""
    kind = rng.choice(("person", "animal", "thing", "clothing", "vehicle", "building", "place", "relative"))
    subject = _noun_phrase(kind, NOMINATIVE, rng, plain=True)
    adjective, german, *_ = rng.choice(words.ADJECTIVES[kind].split()).split("/")
    verb = "are" if subject.person == 4 else "is"
    finite = words.BE[subject.person]
    if kind in ("thing", "clothing", "vehicle") and rng.random() < 0.5:
        place = (
            _next_to("spot", words.SPOT_PREPOSITIONS, rng)
            if kind == "vehicle"
            else _next_to("furniture", words.FURNITURE_PREPOSITIONS, rng)
        )
        return f"{subject.english} {verb} {place[0]}.", f"{subject.german} {finite} {place[1]}."
    other = _noun_phrase(kind, NOMINATIVE, rng, plain=True)
    comparable = _is_definite(subject) and _is_definite(other) and _head(subject) != _head(other)
    if rng.random() < 0.4 or not comparable:
        return f"{subject.english} {verb} very {adjective}.", f"{subject.german} {finite} sehr {german}."
    return f"{subject.english} {verb} as {adjective} as {other.english}.", f"{subject.german} {finite} so {german} wie {other.german}."
