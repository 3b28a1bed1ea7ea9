"""Meaning representations of restaurants and texts that say them (data to text).

A place is a choice of attributes; a text is put together from an opening sentence that holds some of them and later sentences
that hold the rest, so that every attribute is said exactly once. Names, and combinations of the other attributes, occur in one
split only.
"""

from __future__ import annotations

from random import Random

from .splits import capital, numbered, with_article, without_near_duplicates

COUNTS = {"train": 900, "validation": 100, "test": 150}
TRAIN_PHRASINGS = 2
NAMES = {
    "train": (
        "The Old Mill|Casa Verano|The Copper Kettle|Lantern House|Blue Heron|The Salted Spoon|Juniper|"
        "The Hungry Otter|Trattoria Bellini|Green Gate|The Iron Pan|Saffron Lane|Little Anchor|The Crooked Table|"
        "Maple and Rye|Bamboo Court|The Velvet Fig|Harvest Moon|The Stone Oven|Rosa's Kitchen|The Painted Door|"
        "Olive Grove|The Tin Whistle|Amber Room|The Wandering Goat|Basil and Bone|The Cider Press|Nine Chairs|"
        "The Quiet Lobster|Pepper Hill|Golden Noodle|The Larder|Paper Crane|The Sunken Garden|Marigold|"
        "The Black Radish|Tamarind Tree|The Long Bench|Clover Cottage|The Two Pigeons|Sugar Loaf|The Brass Lamp|"
        "Windmill Street Diner|The Lazy Pear|Fox and Fennel|The Blue Tile|Mount Olive|The Corner Plate"
    ),
    "validation": (
        "The Rusty Ladle|Silver Birch|The Jolly Baker|Fig and Thistle|Red Pagoda|The Cellar Door|Bay Leaf|The Plum Tree"
    ),
    "test": (
        "The Wooden Spoon|Villa Aurora|The Merry Miller|Coral House|Poppy Street Corner|The Glass Onion|"
        "Cedar and Salt|The Friendly Crab|Cardamom|The Raven's Nest|Lemon Yard|The Night Kitchen"
    ),
}
LANDMARKS = (
    "the cathedral|the town hall|the old lighthouse|the main station|the botanical garden|the city museum|"
    "the opera house|the fish market|the stone bridge|the concert hall|the public library|the football ground"
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": ("restaurant", "pub", "cafe", "bistro", "tavern", "diner"),
    "food": (
        "Italian", "French", "Indian", "Chinese", "Japanese", "Greek", "Thai", "Mexican", "Turkish", "Spanish", "Lebanese",
        "vegetarian", "Korean", "Ethiopian",
    ),
    "price": ("cheap", "moderate", "expensive"),
    "area": ("old town", "city centre", "harbour district", "university quarter", "riverside", "northern suburbs"),
    "rating": ("1 out of 5", "2 out of 5", "3 out of 5", "4 out of 5", "5 out of 5"),
    "family-friendly": ("yes", "no"),
    "near": tuple(LANDMARKS.split("|")),
}  # fmt: skip
PRICE_ADJECTIVES = {
    "cheap": ("cheap", "inexpensive", "low-cost"),
    "moderate": ("moderately priced", "mid-priced", "reasonably priced"),
    "expensive": ("expensive", "high-priced", "costly"),
}
PRICE_SENTENCES = {
    "cheap": ("{it} is cheap.", "Prices are low.", "A meal here costs little.", "You will not have to spend much."),
    "moderate": ("{it} is moderately priced.", "Prices are moderate.", "A meal costs neither little nor much."),
    "expensive": ("{it} is expensive.", "Prices are high.", "A meal here is not cheap.", "Be ready to spend a lot."),
}
FAMILY_SENTENCES = {
    "yes": ("{it} is family-friendly.", "Children are welcome.", "You can bring the children.", "Families are welcome here."),
    "no": (
        "{it} is not family-friendly.", "Children are not welcome.", "It is not a place for children.",
        "It is better to leave the children at home.",
    ),
}  # fmt: skip
RATING_SENTENCES = (
    "Guests rate it {rating}.",
    "It has a rating of {rating}.",
    "Its customers give it {rating}.",
    "{it} is rated {rating}.",
)
FOOD_SENTENCES = ("{it} serves {food} food.", "The food is {food}.", "The kitchen cooks {food} dishes.")
AREA_SENTENCES = ("You will find it {where}.", "{it} is {where}.", "It lies {where}.")
WHERE = {
    "old town": "in the old town",
    "city centre": "in the city centre",
    "harbour district": "in the harbour district",
    "university quarter": "in the university quarter",
    "riverside": "on the riverside",
    "northern suburbs": "in the northern suburbs",
}
JOINABLE = (
    "It has",
    "It serves",
    "It lies",
    "Guests",
    "Its",
    "Children",
    "Families",
    "Prices",
    "The food",
    "The kitchen",
    "You can",
)
NEAR = ("near {near}", "close to {near}", "not far from {near}")
Place = dict[str, str]


def records() -> dict[str, list[dict]]:
    """Rows id, mr, text; validation and test also references, a list of two or three texts, the first of which is text."""
    rng = Random("restaurants")
    combinations = _combinations(rng, 1500)
    share = {"train": combinations[:900], "validation": combinations[900:1150], "test": combinations[1150:]}
    candidates = {}
    for split, places in share.items():
        names = NAMES[split].split("|")
        candidates[split] = [
            _row({"name": names[index % len(names)], **place}, rng, split) for index, place in enumerate(places)
        ]
    counts = {**COUNTS, "train": COUNTS["train"] // TRAIN_PHRASINGS}
    rows = without_near_duplicates(
        candidates, counts, lambda row: (row["mr"], row["references"][0]), lambda row: row["mr"]
    )
    rows["train"] = [{"mr": row["mr"], "text": text} for row in rows["train"] for text in row["references"]]
    return numbered("restaurants", rows)


def _combinations(rng: Random, count: int) -> list[Place]:
    """Distinct choices of three to seven attributes besides the name."""
    seen: dict[tuple, Place] = {}
    while len(seen) < count:
        chosen = set(rng.sample(list(ATTRIBUTES), rng.choice((3, 4, 4, 5, 5, 6, 7)))) | {
            "food" if rng.random() < 0.8 else "kind"
        }
        place = {key: rng.choice(values) for key, values in ATTRIBUTES.items() if key in chosen}
        seen.setdefault(tuple(place.items()), place)
    return list(seen.values())


def _row(place: Place, rng: Random, split: str) -> dict:
    wanted = TRAIN_PHRASINGS if split == "train" else rng.choice((2, 3, 3))
    texts: dict[str, None] = {}
    while len(texts) < wanted:
        texts.setdefault(_text(place, rng))
    references = list(texts)
    mr = ", ".join(f"{key}[{value}]" for key, value in place.items())
    return {"mr": mr, "text": references[0], "references": references}


def _text(place: Place, rng: Random) -> str:
    """One way to say a place: an opening, then the attributes that it left, in one to three sentences."""
    said = {"name"}
    sentences = [_opening(place, said, rng)]
    left = [key for key in ("area", "food", "price", "rating", "family-friendly") if key in place and key not in said]
    rng.shuffle(left)
    pronouns = ["The place", "It"] if rng.random() < 0.3 else ["It", "It"]
    clauses = [_sentence(place, key, pronouns[index % 2], rng) for index, key in enumerate(left)]
    while clauses:
        first = clauses.pop(0)
        if clauses and _join_well(first, clauses[0]) and rng.random() < 0.6:
            second = clauses.pop(0)
            sentences.append(f"{first[:-1]}, and {second[0].lower()}{second[1:]}")
        else:
            sentences.append(first)
    return " ".join(sentences)


def _join_well(first: str, second: str) -> bool:
    """Whether two sentences can be one; "it" in the second needs "it" in the first."""
    return first.startswith(JOINABLE) and second.startswith(JOINABLE) and (first[:3] == "It " or second[:3] != "It ")


def _opening(place: Place, said: set[str], rng: Random) -> str:
    """Return a first sentence with the name, the kind and the landmark, and some of the other attributes; adds them to ``said``."""

    def take(key: str, chance: float) -> bool:
        if key in place and key not in said and rng.random() < chance:
            said.add(key)
            return True
        return False

    adjectives = []
    if take("price", 0.5):
        adjectives.append(rng.choice(PRICE_ADJECTIVES[place["price"]]))
    if take("family-friendly", 0.3 if place.get("family-friendly") == "yes" else 0.0):
        adjectives.append("family-friendly")
    if take("food", 0.45):
        adjectives.append(place["food"])
    said.add("kind")
    noun = with_article(" ".join([*_commas(adjectives), place.get("kind", "place")]))
    where = []
    if take("area", 0.6):
        where.append(WHERE[place["area"]])
    if take("near", 1.0):
        where.append(rng.choice(NEAR).format(near=place["near"]))
    location = " ".join(where)
    phrase = ""
    if take("food", 0.5):
        phrase = rng.choice((" that serves {0} food", " serving {0} food", " with {0} dishes", " for {0} food")).format(
            place["food"]
        )
    elif take("rating", 0.4):
        phrase = rng.choice((" rated {0}", " with a rating of {0}", " that guests rate {0}")).format(place["rating"])
    if noun + phrase == "a place":
        noun = "a place to eat"
    noun += phrase
    name = place["name"]
    if not location:
        return f"{name} is {noun}."
    return rng.choice(
        (
            f"{capital(location)} you will find {name}, {noun}.",
            f"{capital(location)} is {name}, {noun}.",
            f"{name}, {location}, is {noun}.",
            f"{name} is {noun}{',' if phrase else ''} {location}.",
        )
    )


def _commas(adjectives: list[str]) -> list[str]:
    """Return a comma after a price that stands before "family-friendly"."""
    if len(adjectives) > 1 and adjectives[1] == "family-friendly":
        return [f"{adjectives[0]},", *adjectives[1:]]
    return adjectives


def _sentence(place: Place, key: str, pronoun: str, rng: Random) -> str:
    patterns = {
        "price": PRICE_SENTENCES.get(place.get("price", ""), ()),
        "family-friendly": FAMILY_SENTENCES.get(place.get("family-friendly", ""), ()),
        "rating": RATING_SENTENCES,
        "food": FOOD_SENTENCES,
        "area": AREA_SENTENCES,
    }[key]
    where = WHERE.get(place.get("area", ""))
    return capital(
        rng.choice(patterns).format(it=pronoun, rating=place.get("rating"), food=place.get("food"), where=where)
    )
