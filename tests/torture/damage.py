"""Read damaged files of every kind, and count what comes of it.

    python tests/torture/damage.py --count 10000 --minutes 20 --record benchmarks/records/torture/damage.jsonl

Each number draws a kind, a file, and a damage. The outcomes:

    refused    one clear error of ValueError or OSError
    same       read as the original, such as a blank more in JSON
    other      read as something else, of a kind that no hash protects: a changed cell is a cell
    wrong      read as something else, of a kind that hashes protect
    foreign    any other exception, or an error that does not say what was received and expected
    hang       no answer within the time
    died       the process died, such as by a segmentation fault, or for memory

The readers run in a process of their own with bounded memory. The campaign goes on where its file of outcomes ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEMORY_BYTES = 6 << 30
SECONDS = 30
FAULTS = ("wrong", "foreign", "hang", "died")


class _Hang(BaseException):
    """The reader took too long. Not an Exception, so that no reader takes it for one of its own."""


def _raise_hang(signum: int, frame: FrameType | None) -> None:
    raise _Hang


def work(first: int, last: int, seed: int, outcomes: Path) -> None:
    """Damage and read the numbers from ``first`` to before ``last``; append a line for each."""
    from kinds import KINDS
    from mutations import damage

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _raise_hang)
    with tempfile.TemporaryDirectory() as folder, outcomes.open("a", encoding="utf-8") as file:
        originals: dict[str, str] = {}
        for number in range(first, last):
            rng = random.Random(f"{seed} {number}")
            name = rng.choice(sorted(KINDS))
            kind, original, copy = KINDS[name], Path(folder, "originals", name), Path(folder, f"copy-{number}")
            if name not in originals:
                kind.make(original)
                originals[name] = kind.read(original)
            shutil.copytree(original, copy)
            target = rng.choice(sorted(path for path in copy.glob(kind.files) if path.is_file()))
            how = damage(target, rng)
            line = {"number": number, "kind": name, "file": target.relative_to(copy).as_posix(), "how": how}
            file.write(json.dumps(line | {"outcome": "died"}) + "\n")  # unless the next line says otherwise
            file.flush()
            start = time.perf_counter()
            outcome, error = _outcome(name, copy, originals[name])
            seconds = round(time.perf_counter() - start, 3)
            file.write(json.dumps(line | {"outcome": outcome, "seconds": seconds, "error": error}) + "\n")
            file.flush()
            shutil.rmtree(copy)


def _outcome(name: str, copy: Path, original: str) -> tuple[str, str]:
    from kinds import KINDS

    signal.alarm(SECONDS)
    try:
        found = KINDS[name].read(copy)
    except _Hang:
        return "hang", ""
    except (ValueError, OSError) as error:
        text = f"{type(error).__name__}: {error}"
        return ("refused" if "Got " in text and "expected" in text else "foreign"), text[:300]
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    if name == "run" and found.startswith("checkpoint-1 1 "):
        return "refused", "the damaged checkpoint is passed over"
    if found == original:
        return "same", ""
    return ("wrong" if KINDS[name].is_sealed else "other"), ""


def read_outcomes(path: Path) -> dict[int, dict[str, Any]]:
    """Return the last line of each number."""
    if not path.is_file():
        return {}
    return {line["number"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def campaign(count: int, minutes: float, seed: int, outcomes: Path, batch: int = 1000) -> dict[str, Any]:
    """Read the numbers up to ``count`` that have no outcome, for so many minutes; return the counts."""
    end = time.monotonic() + 60 * minutes
    while len(done := read_outcomes(outcomes)) < count and time.monotonic() < end:
        first = max(done, default=-1) + 1
        command = [
            sys.executable,
            __file__,
            "--work",
            str(first),
            str(min(count, first + batch)),
            str(seed),
            str(outcomes),
        ]
        paths = [str(ROOT), str(ROOT / "tests"), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=False, env=environment, timeout=60 * 60, capture_output=True)
        if max(read_outcomes(outcomes), default=-1) < first:
            raise RuntimeError(f"Got no outcome from {' '.join(command)}; expected at least one. Run it by hand.")
    return summary(outcomes, seed)


def summary(outcomes: Path, seed: int) -> dict[str, Any]:
    """Return the counts of the outcomes, by kind, and every fault."""
    lines = read_outcomes(outcomes)
    by_kind: dict[str, Counter[str]] = {}
    for line in lines.values():
        by_kind.setdefault(line["kind"], Counter())[line["outcome"]] += 1
    return {
        "campaign": "damage",
        "seed": seed,
        "inputs": len(lines),
        "outcomes": dict(sorted(Counter(line["outcome"] for line in lines.values()).items())),
        "by_kind": {name: dict(sorted(counts.items())) for name, counts in sorted(by_kind.items())},
        "slowest_seconds": max((line.get("seconds", 0.0) for line in lines.values()), default=0.0),
        "memory_limit_bytes": MEMORY_BYTES,
        "faults": [line for line in lines.values() if line["outcome"] in FAULTS],
    }


def main() -> None:
    """Run the campaign, print the counts, and write the record."""
    if sys.argv[1:2] == ["--work"]:
        first, last, seed, outcomes = sys.argv[2:]
        work(int(first), int(last), int(seed), Path(outcomes))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outcomes", type=Path, default=Path("outputs/torture/damage.jsonl"))
    parser.add_argument("--record", type=Path, help="a JSON file for the counts")
    args = parser.parse_args()
    args.outcomes.parent.mkdir(parents=True, exist_ok=True)
    found = campaign(args.count, args.minutes, args.seed, args.outcomes)
    print(json.dumps({key: value for key, value in found.items() if key != "faults"}, indent=1))
    for fault in found["faults"][:20]:
        print(json.dumps(fault))
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
