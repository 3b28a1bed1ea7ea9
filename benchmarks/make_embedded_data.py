"""Write the generated data sets of ``t5peft/tasks/data``; the same bytes on every run and machine.

    python benchmarks/make_embedded_data.py            # write restaurants, correction, passages, subjects and phrases
    python benchmarks/make_embedded_data.py --out DIR  # somewhere else, to compare
    python benchmarks/make_embedded_data.py --baselines  # print what simple rules reach on the shipped files

The grammars are in ``benchmarks/embedded_data``. The sets finance and support are not generated: their sentences were written one
by one and the JSONL files are their source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from embedded_data import correction, passages, phrases, restaurants, subjects

GENERATORS = {
    "restaurants": restaurants.records,
    "correction": correction.records,
    "passages": passages.records,
    "subjects": subjects.records,
    "phrases": phrases.records,
}
DATA = Path(__file__).resolve().parents[1] / "t5peft" / "data" / "embedded"


def write(name: str, folder: Path) -> None:
    """Write the splits of one set as JSONL below ``folder / name``."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, rows in GENERATORS[name]().items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def read(name: str, split: str, folder: Path = DATA) -> list[dict]:
    """Return the rows of one split of one set."""
    return [json.loads(line) for line in (folder / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def print_baselines() -> None:
    from embedded_data.baselines import BASELINES  # the generators need no scikit-learn

    for name, baseline in BASELINES.items():
        for line in baseline(read(name, "train"), read(name, "test")):
            print(f"{name}: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=DATA, help="folder that holds one folder a set (default: the package's)"
    )
    parser.add_argument("--only", choices=sorted(GENERATORS), nargs="+", help="sets to write (default: all)")
    parser.add_argument(
        "--baselines", action="store_true", help="write nothing; print baseline figures of the shipped files"
    )
    arguments = parser.parse_args()
    if arguments.baselines:
        print_baselines()
        return
    for name in arguments.only or GENERATORS:
        write(name, arguments.out)


if __name__ == "__main__":
    main()
