"""RTE parted anew with four times the test examples: on the 277 of GLUE a difference of five points is within chance.

    python benchmarks/pretrain/rte_parted.py runs/rte --data DIR
    t5peft bench --suite benchmarks/pretrain/rte_parted.yaml --output benchmarks/records/bench/rte_parted      # see transfer.py

Of the labeled examples (GLUE's training and development files) 800 of the first and all of the second are the test.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import yaml

from t5peft.data import hold_out, load_task
from t5peft.data.definition import read_definition

TEST_OF_TRAIN = 800


def main() -> None:
    """Write the task's definition and its records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", help="folder of the public data sets (else the variable T5PEFT_DATA)")
    args = parser.parse_args()
    if args.data:
        os.environ["T5PEFT_DATA"] = args.data
    _, splits = load_task("rte")

    def source(record: dict[str, str]) -> str:
        return f"{record['sentence1']}\t{record['sentence2']}"

    share = TEST_OF_TRAIN / len({source(record) for record in splits["train"]})
    train, test = hold_out(splits["train"], source, share=share)
    parts = {"train": train, "validation": splits["validation"], "test": [*test, *splits["test"]]}
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, records in parts.items():
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (args.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(records):,} records")
    definition = read_definition("rte") | {"data": {"files": {name: f"{name}.jsonl" for name in parts}}}
    (args.folder / "rte.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
