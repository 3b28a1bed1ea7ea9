"""Short e-mails with their subject lines (summarization).

``subjects_scenarios.txt`` holds one scenario a paragraph: "S:" a subject line, "-" a sentence of the body, "?" a sentence that
may be left out, "slot = a|b" words of this scenario; "[a|b]" is a choice and "{slot}" the same words in body and subject
("{Slot}" with a capital). The first sentence leads in; what the subject says comes later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .splits import capital, numbered, with_article, without_near_duplicates

COUNTS = {"train": 500, "validation": 60, "test": 100}
SCENARIOS = Path(__file__).with_name("subjects_scenarios.txt")
DRAFTS_PER_SCENARIO = 40
PEOPLE = (
    "Anna|Ben|Carla|David|Elena|Frank|Gita|Henry|Irene|Jack|Karin|Liam|Maria|Nick|Olga|Paul|Rachel|Sam|Tina|Victor|"
    "Wendy|Yusuf|Mr Lane|Mrs Ortega|Dr Finch|Ms Hart"
)
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday"
NUMBERS = "two|three|four|five|six|seven|eight|nine"
COMMON = {
    "time": (
        "eight o'clock|half past nine|ten o'clock|eleven|noon|two o'clock|half past three|five o'clock|six|"
        "seven in the evening"
    ),
    "room": (
        "the main hall|room 12|the library|the canteen|the conference room|the old chapel|room 305|the staff kitchen"
    ),
    "spot": "Hotel Linden|Cafe Mozart|the Golden Lion|the Riverside Inn|Villa Rosa",
    "place": "the market square|the bus station|12 Mill Lane|the park gate|the church|7 Station Road|the supermarket",
    "town": "Northbridge|Ashby|Weston|Milford|Harding|Easton|Kingsley",
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "to": "one",
    "petname": "Minka|Rex|Charlie|Coco|Felix|Lola",
}
GREETINGS = {
    "one": ("", "Hi {person3}, ", "Dear {person3}, ", "Hello {person3}, "),
    "everyone": ("", "", "Hello everyone, ", "Dear all, ", "Good morning, "),
    "firm": ("", "Dear Sir or Madam, ", "Good morning, "),
    "customer": ("", "Dear {person3}, ", "Dear customer, "),
    "reader": ("", "Dear {person3}, ", "Dear reader, "),
    "customers": ("", "Dear customers, "),
    "school": ("", "Dear Mrs Ortega, ", "Dear Mr Lane, "),
    "parents": ("", "Dear parents, "),
    "tenants": ("", "Dear tenants, ", "Good morning, "),
    "neighbour": ("", "Dear neighbour, ", "Dear {person3}, "),
    "neighbours": ("", "Dear neighbours, ", "Hello everyone, "),
    "members": ("", "Dear members, "),
}
ENDINGS = ("", "", " Best wishes, {person4}", " Thanks, {person4}", " Kind regards, {person4}")


@dataclass(frozen=True)
class Scenario:
    """One kind of e-mail: subject lines, sentences with whether they may be left out, and its own words."""

    subjects: tuple[str, ...]
    sentences: tuple[tuple[str, bool], ...]
    words: dict[str, str]


def records() -> dict[str, list[dict]]:
    """Rows id, body, subject; no body of one split is close to one of another."""
    rng = Random("subjects")
    paragraphs = SCENARIOS.read_text(encoding="utf-8").strip().split("\n\n")
    scenarios = [_scenario(paragraph) for paragraph in paragraphs]
    drafts = [_draft(scenario, rng) for _ in range(DRAFTS_PER_SCENARIO) for scenario in scenarios]
    candidates = {
        "test": drafts[::4],
        "validation": drafts[1::4],
        "train": [draft for index, draft in enumerate(drafts) if index % 4 > 1],
    }
    for rows in candidates.values():
        rng.shuffle(rows)
    return numbered(
        "subjects", without_near_duplicates(candidates, COUNTS, lambda row: (row["body"],), lambda row: row["body"])
    )


def _scenario(paragraph: str) -> Scenario:
    subjects, sentences, words = [], [], {}
    for line in paragraph.splitlines():
        line = line.strip()
        if line.startswith("S: "):
            subjects.append(line[3:])
        elif line[:2] in ("- ", "? "):
            sentences.append((line[2:], line[0] == "?"))
        else:
            name, choices = line.split(" = ")
            words[name] = choices
    return Scenario(tuple(subjects), tuple(sentences), words)


def _draft(scenario: Scenario, rng: Random) -> dict:
    values = _values(scenario, rng)
    kept = [text for text, optional in scenario.sentences if not optional or rng.random() < 0.45]
    greeting = _filled(rng.choice(GREETINGS[values["to"]]), values, rng)
    first = _filled(kept[0], values, rng)
    body = greeting + (first[0].lower() + first[1:] if greeting and not first.startswith("I ") else capital(first))
    for text in kept[1:]:
        body += " " + capital(_filled(text, values, rng))
    body += _filled(rng.choice(ENDINGS), values, rng)
    return {"body": body, "subject": capital(_filled(rng.choice(scenario.subjects), values, rng))}


def _values(scenario: Scenario, rng: Random) -> dict[str, str]:
    """One value for each slot; two days, two numbers and four people of an e-mail differ."""
    days, people, numbers = (
        rng.sample(words.split("|"), count) for words, count in ((DAYS, 2), (PEOPLE, 4), (NUMBERS, 2))
    )
    values = {name: rng.choice(words.split("|")) for name, words in (COMMON | scenario.words).items()}
    values |= {"day": values.get("day", days[0]), "day2": days[1], "number": numbers[0], "number2": numbers[1]}
    values |= {"person": people[0], "person2": people[1], "person3": people[2], "person4": people[3]}
    values |= {"order": str(rng.randrange(1000, 9999)), "amount": str(rng.randrange(5, 190) * 10)}
    values["a_role"] = with_article(values["role"]) if "role" in values else ""
    return values


def _filled(text: str, values: dict[str, str], rng: Random) -> str:
    """Return the text with its choices made and its slots filled; a word of a scenario may hold a slot itself."""
    text = re.sub(r"\[([^\]]*)\]", lambda choice: rng.choice(choice[1].split("|")), text)
    for _ in range(2):
        text = re.sub(r"\{(\w+)\}", lambda slot: _value(slot[1], values), text)
    return text


def _value(slot: str, values: dict[str, str]) -> str:
    return values[slot] if slot in values else capital(values[slot.lower()])
