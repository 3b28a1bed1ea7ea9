"""Parts that the campaigns share: files of outcomes that they go on from, bounds in time, and records of counts."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read_outcomes(path: Path) -> list[Line]:
    """Return the lines of a file of outcomes."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def go_on(path: Path, numbers: Iterable[int], minutes: float, one: Callable[[int], Line]) -> list[Line]:
    """Make those of ``numbers`` that have no outcome yet, for so many minutes; return all outcomes."""
    end = time.monotonic() + 60 * minutes
    lines = read_outcomes(path)
    done = {line["number"] for line in lines}
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        if number in done:
            continue
        if time.monotonic() > end:
            break
        lines.append(one(number))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
    return lines


def parse(about: str, name: str, count: int) -> argparse.Namespace:
    """Read the options that all campaigns have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="only these scenarios")
    parser.add_argument("--outcomes", type=Path, default=Path(f"outputs/torture/{name}.jsonl"))
    parser.add_argument("--record", type=Path, help="a JSON file for the counts")
    return parser.parse_args()


def report(found: Line, record: Path | None) -> None:
    """Print the counts and the first faults, and write the record."""
    print(json.dumps({key: value for key, value in found.items() if key != "faults"}, indent=1))
    for fault in found.get("faults", [])[:20]:
        print(json.dumps(fault))
    if record:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
