"""Documents of an invented language of places and people."""

from __future__ import annotations

import numpy as np

EOS = 1
SENTINELS = np.arange(10_000, 10_100)
_PLACES = ("river", "harbour", "castle", "market", "forest", "island", "village", "bridge", "garden", "mountain")
_NAMES = ("Anna", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jonas")


def document(number: int) -> list[str]:
    name, place, other = _NAMES[number % 10], _PLACES[number % 7], _PLACES[(number * 3 + 1) % 10]
    sentiment = "good" if number % 2 else "bad"
    return [
        f"{name} Miller was born near the old {place} in {1900 + number} and walked to the {other} every morning.",
        f"The {other} was built by {number + 2} workers from the {place}. It still stands there, and people like it. "
        f"Nobody remembers why {name} left the quiet {place} so early. A {sentiment} road leads to the {other}.",
    ]


def runs(mask: np.ndarray) -> int:
    return int(mask[0]) + int((np.diff(mask.astype(int)) == 1).sum())
