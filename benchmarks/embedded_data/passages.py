"""Short passages about people, towns, animals, machines, buildings and festivals, with questions (extractive question answering).

A passage is three to five sentences, each of which states one or two facts about one thing; a question asks for one fact, and the
passage often holds others of the same sort (a second year, a second place). Things are named from lists that are divided between
the splits, so that no passage of the test split is about a thing of the train split.

``passages_facts.txt`` holds a paragraph for each sort of thing: "list = a|b" words, "O:" an opening sentence, "F:" sentences for
one fact with " / " between them, "Q answer:" questions that ask for that answer; "{slot}" is a value that the functions below
choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .splits import capital, numbered, with_article, without_near_duplicates

COUNTS = {"train": 900, "validation": 100, "test": 150}
FACTS = Path(__file__).with_name("passages_facts.txt")
QUESTIONS_PER_PASSAGE = 2
NAME_SHARE = {"train": (0.0, 0.75), "validation": (0.75, 0.85), "test": (0.85, 1.0)}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Fact:
    """Sentences that state it, and for each answer in them the questions that ask for it."""

    sentences: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Topic:
    """One paragraph of the file."""

    lists: dict[str, tuple[str, ...]]
    openings: tuple[str, ...]
    facts: tuple[Fact, ...]


class Chooser:
    """Words of a topic and of the shared lists, chosen for one split."""

    def __init__(self, lists: dict[str, tuple[str, ...]], split: str, rng: Random) -> None:
        self.lists, self.rng = lists, rng
        self.low, self.high = NAME_SHARE[split]

    def pick(self, *keys: str) -> list[str]:
        """One entry from each list."""
        return [self.rng.choice(self.lists[key]) for key in keys]

    def named(self, key: str) -> str:
        """Return a name from the part of a list that belongs to the split."""
        names = self.lists[key]
        return self.rng.choice(names[int(self.low * len(names)) : int(self.high * len(names))])

    def person(self) -> str:
        """First name and surname."""
        return f"{self.named('names').split('/')[0]} {self.named('surnames')}"

    def places(self, count: int) -> list[str]:
        """Different places."""
        return self.rng.sample(self.lists["places"], count)


def records() -> dict[str, list[dict]]:
    """Rows id, passage, question, answer; the answer occurs exactly once in the passage, word for word."""
    rng = Random("passages")
    topics = _topics()
    candidates = {split: list(_rows(topics, split, rng)) for split in COUNTS}
    rows = without_near_duplicates(
        candidates, COUNTS, lambda row: (row["passage"],), lambda row: (row["passage"], row["question"])
    )
    return numbered("passages", rows)


def _topics() -> dict[str, Topic]:
    """Return the paragraphs of the file by name; the lists of "shared" are in each of the others."""
    topics: dict[str, Topic] = {}
    shared: dict[str, tuple[str, ...]] = {}
    for paragraph in FACTS.read_text(encoding="utf-8").strip().split("\n\n"):
        name, *lines = paragraph.splitlines()
        lists: dict[str, tuple[str, ...]] = {}
        openings: list[str] = []
        facts: list[Fact] = []
        for line in lines:
            head, _, rest = line.partition(": ")
            if head == "O":
                openings.append(rest)
            elif head == "F":
                facts.append(Fact(tuple(rest.split(" / ")), {}))
            elif head.startswith("Q "):
                facts[-1].questions[head[2:]] = tuple(rest.split(" / "))
            else:
                key, _, words = line.partition(" = ")
                lists[key] = tuple(words.split("|"))
        if name == "# shared":
            shared = lists
        else:
            topics[name[2:]] = Topic(shared | lists, tuple(openings), tuple(facts))
    return topics


def _rows(topics: dict[str, Topic], split: str, rng: Random) -> Iterator[dict]:
    for index in range(COUNTS[split]):
        name, choose_values = VALUES[index % len(VALUES)]
        topic = topics[name]
        values = choose_values(Chooser(topic.lists, split, rng), rng)
        passage, questions = _passage(topic, values, rng)
        for question, answer in rng.sample(questions, min(QUESTIONS_PER_PASSAGE, len(questions))):
            yield {"passage": passage, "question": question, "answer": answer}


def _passage(topic: Topic, values: dict[str, str], rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a passage, and one question with its answer for each fact whose answer occurs once in it."""
    chosen = rng.sample(topic.facts, rng.choice((2, 3, 3, 4)))
    opening = re.sub(r"\[([^\]]*)\]", lambda choice: rng.choice(choice[1].split("|")), rng.choice(topic.openings))
    sentences = [opening, *(rng.choice(fact.sentences) for fact in chosen)]
    passage = " ".join(capital(_filled(sentence, values)) for sentence in sentences)
    questions = [
        (_filled(rng.choice(asked), values), _filled(answer, values))
        for fact in chosen
        for answer, asked in fact.questions.items()
        if len(re.findall(rf"\b{re.escape(_filled(answer, values))}\b", passage))
        == passage.count(_filled(answer, values))
        == 1
    ]
    return passage, questions


def _filled(text: str, values: dict[str, str]) -> str:
    """Return the text with its slots filled; "{a_slot}" with an article before it."""
    return re.sub(r"\{(a_)?(\w+)\}", lambda slot: with_article(values[slot[2]]) if slot[1] else values[slot[2]], text)


def _person(choose: Chooser, rng: Random) -> dict[str, str]:
    first, gender = choose.named("names").split("/")
    job, work, prize = choose.pick("jobs")[0].split("/")
    born, home, school = choose.places(3)
    hobby, pet, parent, relative = choose.pick("hobbies", "pets", "parents", "relatives")
    year = rng.randrange(1850, 1940)
    he, him, his = ("she", "her", "her") if gender == "f" else ("he", "him", "his")
    return {
        "name": f"{first} {choose.named('surnames')}", "first": first, "he": he, "him": him, "his": his,
        "job": job, "work": work, "prize": prize, "born": born, "home": home, "school": school,
        "hobby": hobby, "pet": pet, "parent": parent, "relative": relative, "count": rng.choice(NUMBERS),
        "year": str(year), "moved": str(year + rng.randrange(18, 27)), "won": str(year + rng.randrange(30, 60)),
    }  # fmt: skip


def _town(choose: Chooser, rng: Random) -> dict[str, str]:
    keys = ("river", "industry", "landmark", "founder", "event", "day")
    words = choose.pick("rivers", "industries", "landmarks", "founders", "disasters", "days")
    near, partner = choose.places(2)
    founded = rng.randrange(950, 1750)
    return dict(zip(keys, words, strict=True)) | {
        "name": choose.named("towns"), "near": near, "partner": partner, "inhabitants": f"{rng.randrange(12, 980) * 100:,}",
        "founded": str(founded), "struck": str(founded + rng.randrange(60, 200)),
        "distance": str(rng.randrange(6, 60)), "bridges": rng.choice(NUMBERS),
    }  # fmt: skip


def _animal(choose: Chooser, rng: Random) -> dict[str, str]:
    kind, lightest, heaviest = choose.pick("kinds")[0].split("/")
    food, snack = rng.sample(choose.lists["foods"], 2)
    keys = ("trick", "fear", "friend", "place", "finder")
    words = choose.pick("tricks", "fears", "friends", "places_to_live", "finders")
    return dict(zip(keys, words, strict=True)) | {
        "name": choose.named("animals"), "kind": kind, "food": food, "snack": snack, "keeper": choose.person(),
        "origin": choose.places(1)[0], "came": str(rng.randrange(2001, 2024)), "age": rng.choice(NUMBERS),
        "weight": str(rng.randint(int(lightest), int(heaviest))),
    }  # fmt: skip


def _machine(choose: Chooser, rng: Random) -> dict[str, str]:
    kind, purpose = choose.pick("kinds")[0].split("/")
    power, material, fault, colour, company = choose.pick("powers", "materials", "faults", "colours", "companies")
    town, museum = choose.places(2)
    year = rng.randrange(1905, 1975)
    return {
        "name": f"{choose.named('machines')} {rng.choice((2, 5, 7, 12, 20, 40, 100, 300))}", "kind": kind, "purpose": purpose,
        "maker": f"{choose.named('surnames')} {company}", "engineer": choose.person(), "power": power, "material": material,
        "fault": fault, "colour": colour, "town": town, "museum": museum, "year": str(year),
        "later": str(year + rng.randrange(5, 40)), "weight": str(rng.randrange(2, 90)), "crew": rng.choice(NUMBERS),
        "built": str(rng.randrange(12, 900)), "price": f"{rng.randrange(3, 95)},000",
    }  # fmt: skip


def _building(choose: Chooser, rng: Random) -> dict[str, str]:
    keys = ("kind", "stone", "use", "now", "ghost", "payer")
    words = choose.pick("kinds", "stones", "uses", "present", "oddities", "payers")
    start = rng.randrange(1600, 1930)
    values = dict(zip(keys, words, strict=True))
    return values | {
        "name": f"{choose.named('buildings')} {values['kind']}", "architect": choose.person(), "town": choose.places(1)[0],
        "start": str(start), "end": str(start + rng.randrange(3, 25)), "fire": str(start + rng.randrange(40, 70)),
        "height": str(rng.randrange(12, 120)), "steps": str(rng.randrange(60, 480)),
    }  # fmt: skip


def _festival(choose: Chooser, rng: Random) -> dict[str, str]:
    keys = ("kind", "month", "reason", "dish", "contest", "prize", "guests", "sound")
    words = choose.pick("kinds", "months", "reasons", "dishes", "contests", "prizes", "guests", "sounds")
    values = dict(zip(keys, words, strict=True))
    return values | {
        "name": f"{choose.named('festivals')} {values['kind']}", "winner": choose.person(), "town": choose.places(1)[0],
        "days": rng.choice(NUMBERS[:8]), "first": str(rng.randrange(1850, 2010)), "visitors": f"{rng.randrange(2, 90)},000",
        "fee": f"{rng.randrange(3, 25)} euros",
    }  # fmt: skip


VALUES: tuple[tuple[str, Callable[[Chooser, Random], dict[str, str]]], ...] = (
    ("person", _person),
    ("town", _town),
    ("animal", _animal),
    ("machine", _machine),
    ("building", _building),
    ("festival", _festival),
)
