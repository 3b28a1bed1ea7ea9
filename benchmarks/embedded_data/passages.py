"""Short passages about people, towns, animals, machines, buildings and festivals, with questions (extractive question answering).

A passage is three to five sentences, each of which states one or two facts about one thing; a question asks for one fact, and the
passage often holds others of the same sort (a second year, a second place). Things are named from lists that are divided between
the splits, so that no passage of the test split is about a thing of the train split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from .passage_words import ANIMALS, BUILDINGS, FESTIVALS, MACHINES, PEOPLE, PLACES, SURNAMES, TOWNS
from .splits import capital, numbered, with_article, without_near_duplicates

COUNTS = {"train": 900, "validation": 100, "test": 150}
QUESTIONS_PER_PASSAGE = 2
NAME_SHARE = {"train": (0.0, 0.75), "validation": (0.75, 0.85), "test": (0.85, 1.0)}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

# A fact: sentences that state it, and for each answer in them the questions that ask for it.
Fact = tuple[tuple[str, ...], dict[str, tuple[str, ...]]]
Maker = Callable[[Random, str], tuple[str, list[Fact]]]


def records() -> dict[str, list[dict]]:
    """Rows id, passage, question, answer; the answer occurs exactly once in the passage, word for word."""
    rng = Random("passages")
    candidates = {split: list(_rows(split, COUNTS[split], rng)) for split in COUNTS}
    rows = without_near_duplicates(
        candidates, COUNTS, lambda row: (row["passage"],), lambda row: (row["passage"], row["question"])
    )
    return numbered("passages", rows)


def _rows(split: str, count: int, rng: Random) -> Iterator[dict]:
    makers: list[Maker] = [_person, _town, _animal, _machine, _building, _festival]
    for index in range(count):
        passage, questions = _passage(makers[index % len(makers)], split, rng)
        for question, answer in rng.sample(questions, min(QUESTIONS_PER_PASSAGE, len(questions))):
            yield {"passage": passage, "question": question, "answer": answer}


def _passage(make: Maker, split: str, rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """A passage and one question for each fact whose answer occurs once in it."""
    opening, facts = make(rng, split)
    chosen = rng.sample(facts, rng.choice((2, 3, 3, 4)))
    sentences = [opening, *(capital(rng.choice(sentences)) for sentences, _ in chosen)]
    passage = " ".join(sentences)
    questions = [
        (rng.choice(asked), answer)
        for _, answers in chosen
        for answer, asked in answers.items()
        if passage.count(answer) == 1
    ]
    return passage, questions


def _pick(words: str, rng: Random) -> str:
    return rng.choice(words.split("|"))


def _named(words: str, split: str, rng: Random) -> str:
    """A name from the part of a list that belongs to the split."""
    names = words.split("|")
    low, high = NAME_SHARE[split]
    return rng.choice(names[int(low * len(names)) : int(high * len(names))])


def _person(rng: Random, split: str) -> tuple[str, list[Fact]]:
    first, gender = _named(PEOPLE["names"], split, rng).split("/")
    name = f"{first} {_named(SURNAMES, split, rng)}"
    he, his = ("she", "her") if gender == "f" else ("he", "his")
    him = "her" if gender == "f" else "him"
    job, work, prize = _pick(PEOPLE["jobs"], rng).split("/")
    born, home, school = rng.sample(PLACES.split("|"), 3)
    year = rng.randrange(1850, 1940)
    relative = rng.choice(("aunt", "uncle", "grandfather", "neighbour", "godmother"))
    hobby, pet = _pick(PEOPLE["hobbies"], rng), _pick(PEOPLE["pets"], rng)
    count, parent = rng.choice(NUMBERS), _pick(PEOPLE["parents"], rng)
    moved, won = year + rng.randrange(18, 27), year + rng.randrange(30, 60)
    opening = rng.choice(
        (
            f"{name} is remembered as {with_article(job)} who changed {his} trade.",
            f"Few people outside {home} know the name of {name}, {with_article(job)}.",
            f"The {job} {name} led an unusual life.",
            f"{name} was {with_article(job)} with a great love of detail.",
        )
    )
    return opening, [
        (
            (f"{he} was born in {born} in {year}.", f"born in {born} in {year}, {he} was the child of {parent}."),
            {born: (f"Where was {name} born?", f"In which town was {name} born?"), str(year): (f"When was {name} born?", f"In what year was {name} born?")},
        ),
        (
            (f"{his} {relative} taught {him} the first steps of {his} craft.", f"it was {his} {relative} who first awoke {his} interest in the trade."),
            {relative: (f"Who introduced {first} to the trade?", f"Which relative or friend got {first} started?")},
        ),
        (
            (f"in {moved} {he} moved to {school} to study.", f"{he} studied in {school}, where {he} arrived in {moved}."),
            {school: (f"Where did {first} study?", f"To which town did {first} go to study?"), str(moved): (f"When did {first} begin to study?",)},
        ),
        (
            (f"{he} is best known for {work}.", f"{his} greatest success was {work}."),
            {work: (f"What is {name} best known for?", f"What was the greatest success of {first}?")},
        ),
        (
            (f"in {won} {he} was awarded {prize}.", f"{he} received {prize} in {won}."),
            {prize: (f"What was {first} awarded?", f"Which honour did {first} receive?"), str(won): (f"When was {first} honoured with an award?",)},
        ),
        (
            (f"in {his} free time {he} enjoyed {hobby}.", f"away from work, {his} passion was {hobby}."),
            {hobby: (f"What did {first} do in {his} free time?", f"What was the hobby of {first}?")},
        ),
        (
            (f"{he} had {count} children and {pet}.", f"{he} shared {his} home with {count} children and {pet}."),
            {count: (f"How many children did {first} have?",), pet: (f"What animal did {first} keep?",)},
        ),
    ]


def _town(rng: Random, split: str) -> tuple[str, list[Fact]]:
    name = _named(TOWNS["names"], split, rng)
    river, industry, landmark = (_pick(TOWNS[key], rng) for key in ("rivers", "industries", "landmarks"))
    founder, event, day = (_pick(TOWNS[key], rng) for key in ("founders", "disasters", "days"))
    near, partner = rng.sample(PLACES.split("|"), 2)
    people, founded = rng.randrange(12, 980) * 100, rng.randrange(950, 1750)
    struck, distance, bridges = founded + rng.randrange(60, 200), rng.randrange(6, 60), rng.choice(NUMBERS)
    inhabitants = f"{people:,}"
    opening = rng.choice(
        (
            f"{name} is a {rng.choice(('quiet', 'busy', 'small', 'hilly', 'pretty'))} town on the {river}.",
            f"The town of {name} lies on the {river}.",
            f"On the banks of the {river} stands {name}.",
        )
    )
    return opening, [
        (
            (f"it was founded in {founded} by {founder}.", f"{founder} founded it in {founded}."),
            {founder: (f"Who founded {name}?", f"By whom was {name} founded?"), str(founded): (f"When was {name} founded?", f"In what year was {name} founded?")},
        ),
        (
            (f"it has {inhabitants} inhabitants.", f"about {inhabitants} people live there."),
            {inhabitants: (f"How many people live in {name}?", f"How many inhabitants does {name} have?")},
        ),
        (
            (f"the town lives mainly from {industry}.", f"most of its jobs are in {industry}."),
            {industry: (f"What does {name} live from?", f"In what trade do most people in {name} work?")},
        ),
        (
            (f"in {struck} {event} destroyed half of the houses.", f"{event} ruined many houses in {struck}."),
            {event: (f"What destroyed houses in {name}?", f"Which disaster hit {name}?"), str(struck): (f"When did disaster strike {name}?",)},
        ),
        (
            (f"visitors come to see {landmark}.", f"its best known sight is {landmark}."),
            {landmark: (f"What do visitors come to see in {name}?", f"What is the best known sight of {name}?")},
        ),
        (
            (f"the nearest city, {near}, is {distance} kilometres away.", f"it is {distance} kilometres from {near}, the nearest city."),
            {near: (f"What is the nearest city to {name}?", f"Which city is closest to {name}?"), f"{distance} kilometres": (f"How far is it from {name} to the nearest city?",)},
        ),
        (
            (f"every {day} there is a market on the main square.", f"on the main square a market is held every {day}."),
            {day: (f"On which day is there a market in {name}?", f"When is the market held in {name}?")},
        ),
        (
            (f"{bridges} bridges join the two halves of the town.", f"it has {bridges} bridges and a twin town, {partner}."),
            {bridges: (f"How many bridges does {name} have?",)},
        ),
    ]


def _animal(rng: Random, split: str) -> tuple[str, list[Fact]]:
    name = _named(ANIMALS["names"], split, rng)
    kind, lightest, heaviest = _pick(ANIMALS["kinds"], rng).split("/")
    food, snack = rng.sample(ANIMALS["foods"].split("|"), 2)
    trick, fear, friend, place = (_pick(ANIMALS[key], rng) for key in ("tricks", "fears", "friends", "places"))
    keeper = f"{_named(PEOPLE['names'], split, rng).split('/')[0]} {_named(SURNAMES, split, rng)}"
    origin = _pick(PLACES, rng)
    came, weight, age = rng.randrange(2001, 2024), rng.randint(int(lightest), int(heaviest)), rng.choice(NUMBERS)
    finder = _pick(ANIMALS["finders"], rng)
    opening = rng.choice(
        (
            f"{name} is {with_article(kind)} that lives {place}.",
            f"The most popular animal {place} is {name}, {with_article(kind)}.",
            f"Every visitor knows {name}, the {kind} {place}.",
        )
    )
    return opening, [
        (
            (f"the {kind} came from {origin} in {came}.", f"in {came} the animal was brought there from {origin}."),
            {origin: (f"Where did {name} come from?", f"From which town was {name} brought?"), str(came): (f"When did {name} arrive?", f"In what year was {name} brought there?")},
        ),
        (
            (f"{finder} had found the {kind} as a baby, hungry and alone.", f"as a baby, the {kind} was rescued by {finder}."),
            {finder: (f"Who found {name}?", f"Who saved {name} as a baby?")},
        ),
        (
            (f"{name} eats mostly {food}, with {snack} as a treat.", f"on most days there is {food} to eat, and on Sundays {snack}."),
            {food: (f"What does {name} mostly eat?",), snack: (f"What does {name} get as a treat?", f"What special food does {name} get?")},
        ),
        (
            (f"the keeper, {keeper}, has taught {name} to {trick}.", f"thanks to {keeper}, the keeper, {name} has learned to {trick}."),
            {keeper: (f"Who looks after {name}?", f"Who is the keeper of {name}?"), trick: (f"What has {name} learned to do?", f"What trick can {name} do?")},
        ),
        (
            (f"the only thing that frightens {name} is {fear}.", f"{name} is afraid of {fear}."),
            {fear: (f"What is {name} afraid of?", f"What frightens {name}?")},
        ),
        (
            (f"at night {name} sleeps beside {friend}.", f"{name} is hardly ever seen without {friend}."),
            {friend: (f"Who is the companion of {name}?", f"Which companion does {name} like to have near?")},
        ),
        (
            (f"the {kind} is {age} years old and weighs {weight} kilograms.", f"at the age of {age}, {name} weighs {weight} kilograms."),
            {f"{weight} kilograms": (f"How much does {name} weigh?", f"What is the weight of {name}?"), age: (f"How old is {name}?",)},
        ),
    ]


def _machine(rng: Random, split: str) -> tuple[str, list[Fact]]:
    name = f"{_named(MACHINES['names'], split, rng)} {rng.choice((2, 5, 7, 12, 20, 40, 100, 300))}"
    kind, purpose = _pick(MACHINES["kinds"], rng).split("/")
    maker = f"{_named(SURNAMES, split, rng)} {_pick(MACHINES['companies'], rng)}"
    engineer = f"{_named(PEOPLE['names'], split, rng).split('/')[0]} {_named(SURNAMES, split, rng)}"
    power, material, fault, colour = (_pick(MACHINES[key], rng) for key in ("powers", "materials", "faults", "colours"))
    town, museum = rng.sample(PLACES.split("|"), 2)
    year, weight, crew = rng.randrange(1905, 2015), rng.randrange(2, 90), rng.choice(NUMBERS)
    built, price = rng.randrange(12, 900), f"{rng.randrange(3, 95)},000"
    later = year + rng.randrange(5, 40)
    opening = rng.choice(
        (
            f"The {name} is {with_article(kind)} for {purpose}.",
            f"For {purpose}, few machines were as well known as the {name}, {with_article(kind)}.",
            f"A {rng.choice(('sturdy', 'clever', 'simple', 'heavy'))} {kind}, the {name} was made for {purpose}.",
        )
    )
    return opening, [
        (
            (f"it was built by {maker} from {year} on.", f"{maker} brought it to market in {year}."),
            {maker: (f"Which company made the {name}?", f"Who built the {name}?"), str(year): (f"When did the {name} come to market?", f"From what year on was the {name} made?")},
        ),
        (
            (f"its designer was {engineer}, an engineer from {town}.", f"{engineer}, an engineer from {town}, designed it."),
            {engineer: (f"Who designed the {name}?", f"Who was the designer of the {name}?"), town: (f"Where did the designer of the {name} come from?",)},
        ),
        (
            (f"it runs on {power} and weighs {weight} tonnes.", f"weighing {weight} tonnes, it is driven by {power}."),
            {power: (f"What drives the {name}?", f"What does the {name} run on?"), f"{weight} tonnes": (f"How much does the {name} weigh?", f"What is the weight of the {name}?")},
        ),
        (
            (f"the frame is made of {material} and painted {colour}.", f"its {colour} frame consists of {material}."),
            {material: (f"What is the frame of the {name} made of?",), colour: (f"What colour is the {name}?", f"In what colour is the frame of the {name} painted?")},
        ),
        (
            (f"a crew of {crew} is needed to operate it.", f"it takes {crew} people to run it."),
            {crew: (f"How many people operate the {name}?", f"How large is the crew of the {name}?")},
        ),
        (
            (f"early models were plagued by {fault}.", f"its main weakness was {fault}."),
            {fault: (f"What was the main weakness of the {name}?", f"What trouble did the {name} have?")},
        ),
        (
            (f"only {built} were ever sold, at {price} pounds each.", f"at {price} pounds apiece, only {built} found buyers."),
            {f"{price} pounds": (f"How much did a {name} cost?", f"What was the price of the {name}?"), str(built): (f"How many of the {name} were sold?",)},
        ),
        (
            (f"one of them has stood in a museum in {museum} since {later}.", f"since {later} a museum in {museum} has shown one of them."),
            {museum: (f"In which town can one see the {name} in a museum?", f"Where is the museum that shows the {name}?")},
        ),
    ]


def _building(rng: Random, split: str) -> tuple[str, list[Fact]]:
    name = f"{_named(BUILDINGS['names'], split, rng)} {_pick(BUILDINGS['kinds'], rng)}"
    architect = f"{_named(PEOPLE['names'], split, rng).split('/')[0]} {_named(SURNAMES, split, rng)}"
    stone, use, now, ghost = (_pick(BUILDINGS[key], rng) for key in ("stones", "uses", "present", "oddities"))
    town, payer = _pick(PLACES, rng), _pick(BUILDINGS["payers"], rng)
    start = rng.randrange(1600, 1930)
    end, fire = start + rng.randrange(3, 25), start + rng.randrange(40, 70)
    height, steps = rng.randrange(12, 120), rng.randrange(60, 480)
    opening = rng.choice(
        (
            f"{name} in {town} can be seen from far away.",
            f"Many travellers stop in {town} to look at {name}.",
            f"{name} is the pride of {town}.",
        )
    )
    return opening, [
        (
            (f"work on it began in {start} and ended in {end}.", f"it was begun in {start} but not finished until {end}."),
            {str(start): (f"When did work on {name} begin?",), str(end): (f"When was {name} finished?", f"In what year was {name} completed?")},
        ),
        (
            (f"the architect was {architect}.", f"it was designed by {architect}."),
            {architect: (f"Who designed {name}?", f"Who was the architect of {name}?")},
        ),
        (
            (f"the walls are of {stone}.", f"its walls were made of {stone}."),
            {stone: (f"What are the walls of {name} made of?", f"Of what material are the walls of {name}?")},
        ),
        (
            (f"the money came from {payer}.", f"{payer} paid for it."),
            {payer: (f"Who paid for {name}?", f"Where did the money for {name} come from?")},
        ),
        (
            (f"for many years it served as {use}; today it is {now}.", f"it was once {use} and is now {now}."),
            {use: (f"What was {name} used as in the past?",), now: (f"What is {name} used as today?", f"What is {name} now?")},
        ),
        (
            (f"it is {height} metres high, and {steps} steps lead to the top.", f"the top, {height} metres above the ground, is reached by {steps} steps."),
            {f"{height} metres": (f"How high is {name}?", f"What is the height of {name}?"), str(steps): (f"How many steps lead to the top of {name}?",)},
        ),
        (
            (f"after a fire in {fire} the roof had to be replaced.", f"in {fire} the roof burned down and was rebuilt."),
            {str(fire): (f"When did {name} burn?", f"In what year was there a fire at {name}?")},
        ),
        (
            (f"people say that {ghost}.", f"according to an old story, {ghost}."),
            {ghost: (f"What do people say about {name}?", f"What does an old story say about {name}?")},
        ),
    ]


def _festival(rng: Random, split: str) -> tuple[str, list[Fact]]:
    name = f"{_named(FESTIVALS['names'], split, rng)} {_pick(FESTIVALS['kinds'], rng)}"
    month, reason, dish, contest = (_pick(FESTIVALS[key], rng) for key in ("months", "reasons", "dishes", "contests"))
    prize, guests, sound = (_pick(FESTIVALS[key], rng) for key in ("prizes", "guests", "sounds"))
    winner = f"{_named(PEOPLE['names'], split, rng).split('/')[0]} {_named(SURNAMES, split, rng)}"
    town, days = _pick(PLACES, rng), rng.choice(NUMBERS[:8])
    first, visitors, fee = rng.randrange(1850, 2010), f"{rng.randrange(2, 90)},000", f"{rng.randrange(3, 25)} euros"
    opening = rng.choice(
        (
            f"The {name} is held in {town} every {month}.",
            f"Every {month} people gather in {town} for the {name}.",
            f"In {month} the town of {town} prepares for its {name}.",
        )
    )
    return opening, [
        (
            (f"it took place for the first time in {first}, to celebrate {reason}.", f"it goes back to {first}, when people wanted to celebrate {reason}."),
            {reason: (f"Why was the {name} first held?", f"What did the first {name} celebrate?"), str(first): (f"When was the first {name}?", f"In what year did the {name} first take place?")},
        ),
        (
            (f"it lasts {days} days and draws {visitors} visitors.", f"during its {days} days, about {visitors} visitors come."),
            {f"{days} days": (f"How long does the {name} last?", f"How many days does the {name} take?"), visitors: (f"How many visitors come to the {name}?",)},
        ),
        (
            (f"the main event is {contest}.", f"nobody wants to miss {contest}."),
            {contest: (f"What is the main event of the {name}?", f"Which event of the {name} does nobody want to miss?")},
        ),
        (
            (f"last year {winner} won and took home {prize}.", f"the most recent winner, {winner}, received {prize}."),
            {winner: (f"Who won at the last {name}?", f"Who was the latest winner at the {name}?"), prize: (f"What did the winner at the {name} get?", f"What was the prize at the last {name}?")},
        ),
        (
            (f"cooks on the square sell {dish}.", f"the traditional food is {dish}."),
            {dish: (f"What do people eat at the {name}?", f"What is sold as food at the {name}?")},
        ),
        (
            (f"the guests of honour are always {guests}.", f"seats in the first row are kept for {guests}."),
            {guests: (f"Who are the guests of honour at the {name}?", f"For whom are the best seats at the {name}?")},
        ),
        (
            (f"a ticket costs {fee}.", f"adults pay {fee} for a ticket."),
            {fee: (f"How much is a ticket for the {name}?", f"What does one pay to enter the {name}?")},
        ),
        (
            (f"the opening is announced by {sound}.", f"it begins with {sound}."),
            {sound: (f"How does the {name} begin?", f"What announces the opening of the {name}?")},
        ),
    ]
