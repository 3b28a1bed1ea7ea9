"""Sentences with the errors that people make, and the sentences as they should be (correction).

``correction_sentences.txt`` holds one sentence a line; "[a|b]" is a choice. Errors are put into the correct sentence, none, one or
two of different kinds, so that the correction is known.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from .splits import capital, numbered, without_near_duplicates

COUNTS = {"train": 800, "validation": 100, "test": 150}
SENTENCES = Path(__file__).with_name("correction_sentences.txt")
EXPANSIONS_PER_LINE = 80
ROWS_PER_LINE = 40
ERRORS_PER_SENTENCE = (0,) * 3 + (1,) * 13 + (2,) * 8

Edits = tuple[tuple[str, str], ...]


def _pairs(text: str) -> Edits:
    """Each "right>wrong" of a text as a pattern for whole words and what replaces it."""
    pairs = [pair.strip().split(">") for pair in text.split(",")]
    return tuple((rf"\b{re.escape(right)}\b", wrong) for right, wrong in pairs)


AGREEMENT = _pairs(
    "is>are, are>is, was>were, were>was, has>have, have>has, doesn't>don't, don't>doesn't, isn't>aren't, takes>take, "
    "sells>sell, starts>start, depends>depend, opens>open, closes>close, belongs>belong, finds>find, speak>speaks, "
    "says>say, need>needs, speaks>speak, argue>argues, rings>ring, remembers>remember, leaves>leave, tastes>taste, "
    "knows>know, drives>drive, meets>meet, works>work, comes>come, pays>pay, gets>get, rises>rise, bring>brings, "
    "looks>look, fills>fill, costs>cost, licked>lick, lasts>last, becomes>become, wants>want, admires>admire, "
    "seems>seem"
)
NUMBER: Edits = (
    (r"\b(two|three|four|five|ten|several|many|twenty|few|these) (\w+[^s\W])s\b", r"\1 \2"),
    (r"\bmany\b", "much"),
    (r"\b[Ff]ewer\b", "less"),
    (r"\bchildren\b", "childrens"),
    (r"\bpeople\b", "peoples"),
    (r"\b(furniture|luggage|information)\b", r"\1s"),
    (r"\bEvery (\w+) ", r"Every \1s "),
    (r"\b(colleague|neighbour|friend)s\b", r"\1"),
)
ARTICLE: Edits = (
    (r"\b(a|an) (?!few\b|little\b|lot\b|bit\b|hundred\b)", ""),
    (r"\ba (?=[b-df-hj-np-tv-z])", "an "),
    (r"\ban (?=[aeiouh])", "a "),
    (
        "\\bthe (?=(?:bus|station|door|kitchen|museum|capital|village|bridge|concert|meeting|office|library|harbour|"
        "hotel|street|garden|market|table|floor|shelf|window|bank|law|letter|corner|doctor|postman|engine|judge|wall|"
        "tower|waiter|train)\\b)",
        "",
    ),
    (r"^The ", ""),
    (r"\bthe (?=(?:best|oldest|first|same|most)\b)", "a "),
    (r"\b(my|our) (?=[a-z])", r"the \1 "),
)  # fmt: skip
PREPOSITION = _pairs(
    "interested in>interested on, good at>good in, depends on>depends from, waiting for>waiting, listening "
    "to>listening, looking forward to>looking forward for, arrived at>arrived to, afraid of>afraid from, belongs "
    "to>belongs at, in the morning>at the morning, at the weekend>on the weekend, on Friday>at Friday, on Sunday>in "
    "Sunday, on Monday>in Monday, on Wednesday>in Wednesday, in the summer>at the summer, because of>because, at "
    "home>in home, born in>born at, apologise for>apologise about, apologised for>apologised of, used to>use to, in "
    "my opinion>on my opinion, According to>According, thank you for>thank you of, on time>at time, on holiday>in "
    "holiday, by the>from the, for ten>since ten, for three>since three, for five>since five, since the>from the, in "
    "front of>in front from, better than>better then, discussed the>discussed about the, next to>next, worried "
    "about>worried for, made a>did a, full of>full with, in the middle of>at the middle of, at the corner>by corner, "
    "to school>at school, from the>of the, with a>with, advised her to>advised to her to, told us>told to us, asked "
    "me>asked to me, at nine>on nine, at ten>in ten, until>till to"
)
VERB_FORM = _pairs(
    "has lived>has live, has worked>has work, seen>saw, written>wrote, eaten>ate, gone>went, been>be, ran>runned, "
    "went>goed, built>builded, spent>spended, broke>breaked, won>winned, wore>weared, taught>teached, bought>buyed, "
    "known>knew, to swim>to swimming, to leave>to leaving, to go>to going, to see>to saw, would travel>would "
    "travelled, had bought>had buy, can't>can not to, could lift>could lifted, must call>must to call, should "
    "wash>should to wash, should drink>should drinking, will rain>will rains, playing>play, waiting>wait, "
    "buying>buy, opening>open, learning>learn, hearing from>hear from, visiting>visit, seeing you>see you, meeting "
    "your>meet your, getting up>get up, eating>eat, to give up>giving up, decided to>decided, ridden>rode, "
    "forgotten>forgot, lost>losed, grew up>growed up, began>begun, is wearing>is wear, was standing>was stand, "
    "working>work, living here>live here, to repair>repair, stay>to stay, damaged>damage, destroyed>destroy, "
    "disappointing>disappointed, learned>learn, painted>paint, invited>invite, talking>talk, fell>fall, asked>ask, "
    "decided>decide, promised>promise, refused>refuse, explained>explain, came>come, would have>would of, started "
    "to>started, Having>Have, running>run, driving>drive, snowing>snow, thought>thinked, told>telled, "
    "caught>catched, knew>knowed, found>finded, sat>sitted, said>sayed, blew>blowed, put the>putted the, made>maked"
)
CONFUSION = _pairs(
    "its>it's, It's>Its, it's>its, their>there, Their>There, They're>Their, their>they're, there>their, There>Their, "
    "you're>your, You're>Your, Your>You're, your>you're, than>then, too>to, whose>who's, Who's>Whose, lose>loose, "
    "let's>lets, whether>weather, weather>whether, quiet>quite, quite>quiet, doesn't>doesnt, don't>dont, isn't>isnt, "
    "advised>adviced, difficult>difficulty, quickly>quick, easily>easy, properly>proper, fluently>fluent, "
    "quietly>quiet, regularly>regular, We're>Were, I'd>Id, surprisingly>surprising, badly>bad, well written>good "
    "written, hardly>hard, better>more better, worse>more worse, easier>more easy, cheaper>more cheaper, oldest>most "
    "old, bigger>more big, heavier>more heavy"
)
SPELLING = _pairs(
    "accommodation>accomodation, necessary>neccessary, separate>seperate, definitely>definately, received>recieved, "
    "government>goverment, beginning>begining, tomorrow>tommorow, Tomorrow>Tommorow, beautiful>beautifull, "
    "restaurant>restaurent, library>libary, interested>intrested, because>becouse, finally>finaly, "
    "disappeared>dissapeared, disappointing>dissapointing, committee>commitee, neighbour>nieghbour, "
    "neighbours>neigbours, exciting>exiting, excited>exited, believe>beleive, Wednesday>Wensday, address>adress, "
    "language>langauge, languages>langauges, expensive>expencive, dangerous>dangerouse, business>buisness, "
    "colleague>collegue, colleagues>collegues, surprised>suprised, surprisingly>suprisingly, until>untill, "
    "truly>truely, which>wich, friend>freind, friends>freinds, thousands>thousends, foreign>foriegn, "
    "argument>arguement, accidentally>accidently, thoroughly>throughly, umbrella>umberella, audience>audiance, "
    "popular>populer, usually>usualy, although>allthough, Although>Allthough, journey>journy, "
    "mathematics>mathmatics, professor>proffessor, appointment>apointment, probably>probaly, several>severel, "
    "different>diffrent, especially>especialy, knowledge>knowlege, engineer>enginer, envelope>envelop, "
    "careful>carefull, strange>strang, weather>wether, coming>comming, writing>writting, spicy>spicey, "
    "exercise>excercise, forty>fourty, question>qestion, newspaper>newpaper, newspapers>newpapers"
)
KINDS: dict[str, tuple[Edits, int]] = {
    "agreement": (AGREEMENT, 5),
    "number": (NUMBER, 3),
    "article": (ARTICLE, 4),
    "preposition": (PREPOSITION, 5),
    "verb form": (VERB_FORM, 5),
    "confusion": (CONFUSION, 5),
    "spelling": (SPELLING, 4),
}
MISSING = frozenset(("to", "is", "are", "was", "were", "of", "in", "at", "has", "have", "been", "be", "will"))
DOUBLED = frozenset(
    ("the", "a", "to", "is", "was", "of", "that", "in", "and", "on", "for", "have", "we", "I", "it", "had")
)


def records() -> dict[str, list[dict]]:
    """Rows id, text (with errors), corrected; where both are equal the sentence needs no change."""
    rng = Random("correction")
    lines = [_expansions(line, rng) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    rounds = [[line[turn] for line in lines if turn < len(line)] for turn in range(ROWS_PER_LINE)]
    sentences = [sentence for turn in rounds for sentence in rng.sample(turn, len(turn))]
    rows = [{"text": _with_errors(sentence, rng), "corrected": sentence} for sentence in sentences]
    candidates = {
        "test": rows[::6],
        "validation": rows[1::6],
        "train": [row for index, row in enumerate(rows) if index % 6 > 1],
    }
    return numbered(
        "correction",
        without_near_duplicates(
            candidates, COUNTS, lambda row: (row["text"], row["corrected"]), lambda row: row["corrected"]
        ),
    )


def _expansions(line: str, rng: Random) -> list[str]:
    """Up to ROWS_PER_LINE sentences of one line."""
    found: dict[str, None] = {}
    for _ in range(EXPANSIONS_PER_LINE):
        found.setdefault(re.sub(r"\[([^\]]*)\]", lambda choice: rng.choice(choice[1].split("|")), line))
    return list(found)[:ROWS_PER_LINE]


def _with_errors(sentence: str, rng: Random) -> str:
    """Return the sentence with up to two errors of different kinds."""
    text = sentence
    kinds: list[str] = []
    for _ in range(rng.choice(ERRORS_PER_SENTENCE)):
        pool = [*KINDS, "typo", "missing", "double"]
        weights = [KINDS[kind][1] for kind in KINDS] + [4, 2, 2]
        for _ in range(20):
            kind = rng.choices(pool, weights)[0]
            changed = _one_error(text, kind, rng)
            if kind not in kinds and changed != text:
                text = changed
                kinds.append(kind)
                break
    return text


def _one_error(text: str, kind: str, rng: Random) -> str:
    """Return the text with one error of a kind, or unchanged where that kind finds no place."""
    if kind == "typo":
        return _typo(text.split(" "), rng)
    if kind not in KINDS:
        return _missing_or_doubled(text.split(" "), kind, rng)
    places = [(match, wrong) for pattern, wrong in KINDS[kind][0] for match in re.finditer(pattern, text)]
    if not places:
        return text
    match, wrong = rng.choice(places)
    return capital(text[: match.start()] + match.expand(wrong) + text[match.end() :])


def _missing_or_doubled(words: list[str], kind: str, rng: Random) -> str:
    listed = DOUBLED if kind == "double" else MISSING
    places = [index for index, word in enumerate(words) if index and word in listed]
    if not places:
        return " ".join(words)
    index = rng.choice(places)
    middle = [words[index]] * 2 if kind == "double" else []
    return " ".join(words[:index] + middle + words[index + 1 :])


def _typo(words: list[str], rng: Random) -> str:
    """Return a letter swapped, dropped or doubled inside a long word; the first and the last letter stay."""
    places = [index for index, word in enumerate(words) if index and word.isalpha() and len(word) >= 6]
    if not places:
        return " ".join(words)
    index = rng.choice(places)
    word = words[index]
    at = rng.randrange(1, len(word) - 2)
    wrong = rng.choice(
        (word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :], word[: at + 1] + word[at:])
    )
    return " ".join([*words[:index], wrong, *words[index + 1 :]])
