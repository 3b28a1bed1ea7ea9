"""Short English sentences with their German translation (translation).

A sentence is built in both languages at once from the same choices: noun phrases with case, gender, number and adjective endings,
verbs with their forms, and the German order of words (verb second, verb last in subordinate clauses, the bracket of modal verbs
and the perfect). "you" is always "du"; the past is the perfect, as in spoken German.
"""

from __future__ import annotations

from random import Random

from . import phrase_words as words
from .phrase_parts import (
    ACCUSATIVE,
    NOMINATIVE,
    Phrase,
    Predicate,
    Verb,
    head_noun,
    is_definite,
    joined,
    make_predicate,
    make_subject,
    next_to,
    noun_phrase,
    staying,
)
from .splits import capital, numbered, token_set, without_near_duplicates

COUNTS = {"train": 900, "validation": 100, "test": 150}
DRAFTS = {"train": 3000, "validation": 500, "test": 700}


def records() -> dict[str, list[dict]]:
    """Rows id, english, german; no sentence of one split is close to one of another, in either language.

    Every word of the validation and test splits occurs in the train split.
    """
    rng = Random("phrases")
    candidates = {split: [_sentence(rng) for _ in range(count)] for split, count in DRAFTS.items()}
    wanted = {split: count if split == "train" else 2 * count for split, count in COUNTS.items()}
    rows = without_near_duplicates(
        candidates, wanted, lambda row: (row["english"], row["german"]), lambda row: row["english"]
    )
    known = frozenset().union(*map(_words, rows["train"]))
    rows |= {
        split: [row for row in rows[split] if _words(row) <= known][: COUNTS[split]] for split in ("validation", "test")
    }
    return numbered("phrases", rows)


def _words(row: dict) -> frozenset[str]:
    return token_set(row["english"]) | token_set(row["german"])


def _sentence(rng: Random) -> dict:
    makers = (_present, _present, _adverb, _past, _past, _modal, _modal, _past_front, _future_front, _negative, _question,
              _past_question, _thought, _because, _imperative, _state)  # fmt: skip
    english, german = rng.choice(makers)(rng)
    return {"english": capital(english), "german": capital(german)}


# Clauses: English text, and German as finite verb, inner part and end


def _time(listed: str, rng: Random) -> tuple[str, str]:
    english, german = rng.choice(listed.split()).replace("_", " ").split("/")
    return english, german


def _present_time(predicate: Predicate, rng: Random) -> tuple[str, str]:
    return _time(words.SELDOM_TIMES if predicate.verb.english in words.SELDOM else words.PRESENT_TIMES, rng)


def _verb_last(subject: Phrase, predicate: Predicate, tense: str, time: tuple[str, str]) -> tuple[str, str]:
    """Return a subordinate clause without its conjunction."""
    verb = predicate.verb
    inner = joined(subject.german, predicate.pronouns, time[1], predicate.middle)
    if tense == "past":
        return (
            joined(subject.english, verb.past, predicate.english, time[0]),
            joined(inner, verb.participle, predicate.auxiliary[subject.person]),
        )
    english = verb.third if subject.person == 2 else verb.english
    return joined(subject.english, english, predicate.english, time[0]), joined(
        inner, verb.prefix + verb.forms[subject.person]
    )


def _present(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    predicate = make_predicate(subject, rng, words.LASTING)
    time = _present_time(predicate, rng)
    verb = predicate.verb
    finite = verb.third if subject.person == 2 else verb.english
    english = joined(subject.english, finite, predicate.english, time[0])
    inner = joined(predicate.pronouns, time[1], predicate.middle)
    return f"{english}.", f"{joined(subject.german, verb.forms[subject.person], inner, verb.prefix)}."


def _adverb(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.3:
        subject = noun_phrase("animal", NOMINATIVE, rng)
        predicate = staying(subject, rng, words.ANIMALS_DO)
    else:
        subject = make_subject(rng)
        predicate = make_predicate(subject, rng, words.SELDOM | words.LASTING)
    adverb = _time(words.ADVERBS, rng)
    verb = predicate.verb
    finite = verb.third if subject.person == 2 else verb.english
    inner = joined(predicate.pronouns, adverb[1], predicate.middle)
    return (
        f"{joined(subject.english, adverb[0], finite, predicate.english)}.",
        f"{joined(subject.german, verb.forms[subject.person], inner, verb.prefix)}.",
    )


def _past(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    predicate, time = make_predicate(subject, rng, words.LASTING | {"build"}), _time(words.PAST_TIMES, rng)
    english = joined(subject.english, predicate.verb.past, predicate.english, time[0])
    inner = joined(predicate.pronouns, time[1], predicate.middle)
    return (
        f"{english}.",
        f"{joined(subject.german, predicate.auxiliary[subject.person], inner, predicate.verb.participle)}.",
    )


def _past_front(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    predicate, time = make_predicate(subject, rng, words.LASTING | {"build"}), _time(words.PAST_TIMES, rng)
    finite = predicate.auxiliary[subject.person]
    german = joined(time[1], finite, subject.german, predicate.pronouns, predicate.middle, predicate.verb.participle)
    return f"{time[0]} {joined(subject.english, predicate.verb.past, predicate.english)}.", f"{german}."


def _modal_forms(modal: str) -> tuple[str, ...]:
    return words.MODALS.get(modal, words.WANT)


def _modal(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    modal = rng.choice((*words.MODALS, "want"))
    predicate, time = make_predicate(subject, rng, words.LASTING | words.CHANCE), _time(words.FUTURE_TIMES, rng)
    verb = predicate.verb
    finite = modal if modal != "want" else "wants to" if subject.person == 2 else "want to"
    inner = joined(predicate.pronouns, time[1], predicate.middle)
    return (
        f"{joined(subject.english, finite, verb.english, predicate.english, time[0])}.",
        f"{joined(subject.german, _modal_forms(modal)[subject.person], inner, verb.prefix + verb.infinitive)}.",
    )


def _future_front(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    modal = rng.choice(tuple(words.MODALS))
    predicate, time = make_predicate(subject, rng, words.LASTING | words.CHANCE), _time(words.FUTURE_TIMES, rng)
    verb = predicate.verb
    finite = words.MODALS[modal][subject.person]
    end = verb.prefix + verb.infinitive
    return (
        f"{time[0]} {joined(subject.english, modal, verb.english, predicate.english)}.",
        f"{joined(time[1], finite, subject.german, predicate.pronouns, predicate.middle, end)}.",
    )


def _negative(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    predicate = make_predicate(subject, rng)
    while predicate.negated is None:
        predicate = make_predicate(subject, rng)
    verb = predicate.verb
    if rng.random() < 0.5:
        time = _time(words.PAST_TIMES, rng)
        pronoun = predicate.pronouns
        inner = joined(pronoun, time[1], "nicht") if pronoun else joined(time[1], predicate.negated)
        return (
            f"{joined(subject.english, 'did not', verb.english, predicate.english, time[0])}.",
            f"{joined(subject.german, predicate.auxiliary[subject.person], inner, verb.participle)}.",
        )
    helper = "does not" if subject.person == 2 else "do not"
    return (
        f"{joined(subject.english, helper, verb.english, predicate.english)}.",
        f"{joined(subject.german, verb.forms[subject.person], predicate.negated, verb.prefix)}.",
    )


def _question(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    predicate = make_predicate(subject, rng, words.LASTING)
    verb, time = predicate.verb, _present_time(predicate, rng)
    if rng.random() < 0.4 and verb.english not in words.CHANCE:
        modal = rng.choice(("can", "must", "should", "will"))
        inner = joined(_modal_forms(modal)[subject.person], subject.german, predicate.pronouns, predicate.middle)
        return (
            f"{joined(modal, subject.english, verb.english, predicate.english)}?",
            f"{inner} {verb.prefix}{verb.infinitive}?",
        )
    helper = "does" if subject.person == 2 else "do"
    inner = joined(predicate.pronouns, time[1], predicate.middle)
    return (
        f"{joined(helper, subject.english, verb.english, predicate.english, time[0])}?",
        f"{joined(verb.forms[subject.person], subject.german, inner, verb.prefix)}?",
    )


def _past_question(rng: Random) -> tuple[str, str]:
    subject = make_subject(rng)
    english, german = rng.choice((("why", "warum"), ("when", "wann"), ("", "")))
    predicate = make_predicate(subject, rng)
    inner = joined(german, predicate.auxiliary[subject.person], subject.german, predicate.pronouns, predicate.middle)
    return (
        f"{joined(english, 'did', subject.english, predicate.verb.english, predicate.english)}?",
        f"{inner} {predicate.verb.participle}?",
    )


def _thought(rng: Random) -> tuple[str, str]:
    english, german = rng.choice(words.THOUGHTS.split("|")).split("/")
    subject = make_subject(rng)
    predicate = make_predicate(subject, rng, words.LASTING)
    past = rng.random() < 0.5
    time = _time(words.PAST_TIMES, rng) if past else _present_time(predicate, rng)
    inner = _verb_last(subject, predicate, "past" if past else "present", time)
    mark = "?" if english.startswith("Do ") else "."
    return f"{english} {inner[0]}{mark}", f"{german} {inner[1]}{mark}"


def _because(rng: Random) -> tuple[str, str]:
    """Return a main clause in the present, and a reason or an obstacle."""
    subject = make_subject(rng)
    predicate = make_predicate(subject, rng, words.LASTING | words.CHANCE)
    conjunction, german_conjunction = rng.choice(words.CONJUNCTIONS.split()).split("/")
    state, german_state = rng.choice(words.STATES.split("|")).split("/")
    verb = predicate.verb
    modal = rng.choice(("must", "can", "will", "should"))
    main = joined(subject.english, modal, verb.english, predicate.english)
    inner = joined(subject.german, _modal_forms(modal)[subject.person], predicate.pronouns, predicate.middle)
    return (
        f"{main} {conjunction} {state}.",
        f"{inner} {verb.prefix}{verb.infinitive}, {german_conjunction} {german_state}.",
    )


def _imperative(rng: Random) -> tuple[str, str]:
    verb = Verb.read(
        rng.choice([row for row in words.TRANSITIVE.split() if Verb.read(row).english in words.IMPERATIVES])
    )
    what = noun_phrase(
        rng.choice([kind for kind in verb.last.split(",") if kind != "person"] or ["person"]), ACCUSATIVE, rng
    )
    form = words.IMPERATIVES[verb.english]
    if rng.random() < 0.3 and is_definite(what):
        return f"do not {verb.english} {what.english}!", f"{form} {what.german} nicht!"
    return f"please {verb.english} {what.english}.", f"{form} bitte {what.german}."


def _state(rng: Random) -> tuple[str, str]:
    """Return a noun phrase with an adjective in the predicate, plain or compared."""
    kind = rng.choice(("person", "animal", "thing", "clothing", "vehicle", "building", "place", "relative"))
    subject = noun_phrase(kind, NOMINATIVE, rng, plain=True)
    adjective, german, *_ = rng.choice(words.ADJECTIVES[kind].split()).split("/")
    verb = "are" if subject.person == 4 else "is"
    finite = words.BE[subject.person]
    if kind in ("thing", "clothing", "vehicle") and rng.random() < 0.5:
        place = (
            next_to("spot", words.SPOT_PREPOSITIONS, rng)
            if kind == "vehicle"
            else next_to("furniture", words.FURNITURE_PREPOSITIONS, rng)
        )
        return f"{subject.english} {verb} {place[0]}.", f"{subject.german} {finite} {place[1]}."
    other = noun_phrase(kind, NOMINATIVE, rng, plain=True)
    comparable = is_definite(subject) and is_definite(other) and head_noun(subject) != head_noun(other)
    if rng.random() < 0.4 or not comparable:
        return f"{subject.english} {verb} very {adjective}.", f"{subject.german} {finite} sehr {german}."
    return (
        f"{subject.english} {verb} as {adjective} as {other.english}.",
        f"{subject.german} {finite} so {german} wie {other.german}.",
    )
