"""What pretraining is worth to a task: the embedded backbone beside random weights of its shape, and at half the steps.

    python benchmarks/pretrain/random_backbone.py runs/random
    ONLY="--methods full lora-all --tasks sst2 trec rte e2e --data DIR"; BENCH=benchmarks/records/bench
    t5peft bench --suite real $ONLY --output $BENCH/real
    t5peft bench --suite real $ONLY --output $BENCH/real_half --steps 100
    t5peft bench --suite real $ONLY --output $BENCH/real_random --backbone runs/random
    python benchmarks/pretrain/transfer.py     # prints the table and writes it into benchmarks/records/pretrain/README.md

Each column chooses its learning rates on its own validation scores.
"""

from __future__ import annotations

from pathlib import Path

from t5peft.benchmark.records import load_records
from t5peft.benchmark.summary import Row, summarise
from t5peft.benchmark.tables import fill_markers

BENCH = Path(__file__).parents[1] / "records" / "bench"
COLUMNS = {"random": "real_random", "mini, half the steps": "real_half", "mini": "real"}
TASKS, METHODS = ("sst2", "trec", "rte", "e2e"), ("full", "lora-all")


def rows_of(folder: Path) -> dict[tuple[str, str], Row]:
    """Rows by task and label; none where the folder has no records."""
    if not (folder / "records").is_dir():
        return {}
    tables = summarise(load_records(folder / "records"))
    return {(table.task, row.label): row for table in tables for row in table.rows}


def table() -> str:
    """One line a task and method: test scores by backbone."""
    columns = {name: rows_of(BENCH / folder) for name, folder in COLUMNS.items()}
    lines = [["task", "metric", "method", *columns], ["---"] * 3 + ["---:"] * len(columns)]
    for task in TASKS:
        for method in METHODS:
            rows = [found.get((task, method)) for found in columns.values()]
            metric = next((row.metric for row in rows if row), "not run")
            scores = [row.test.text(1, row.factor) if row and row.test else "not run" for row in rows]
            lines.append([task, metric, method, *scores])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    text = table()
    print(text)
    fill_markers(BENCH.parent / "pretrain" / "README.md", {"transfer": text})
