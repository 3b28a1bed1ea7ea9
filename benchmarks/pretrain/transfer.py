"""Measure the gain from pretraining: the embedded backbone, random weights of its shape, and weights at half the steps.

    python benchmarks/pretrain/random_backbone.py runs/random
    python benchmarks/pretrain/rte_parted.py runs/rte --data DIR
    ONLY="--methods full lora-all --tasks sst2 trec rte e2e --data DIR"; BENCH=benchmarks/records/bench
    t5peft bench --suite real $ONLY --output $BENCH/real
    t5peft bench --suite real $ONLY --output $BENCH/real_half --steps 100
    t5peft bench --suite real $ONLY --output $BENCH/real_random --backbone runs/random
    RTE="--suite benchmarks/pretrain/rte_parted.yaml"
    t5peft bench $RTE --output $BENCH/rte_parted
    t5peft bench $RTE --output $BENCH/rte_parted_half --steps 100
    t5peft bench $RTE --output $BENCH/rte_parted_random --backbone runs/random
    python benchmarks/pretrain/transfer.py     # prints the table and writes it into benchmarks/records/pretrain/README.md

Each column chooses its learning rates by its own loss on validation. The last two are the differences to random weights on the
same test examples, with the 95 % interval of the paired bootstrap over examples and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.statistics import paired_bootstrap
from t5peft.benchmark.summary import Row, summarize
from t5peft.benchmark.tables import fill_markers, markdown_table

BENCH = Path(__file__).parents[1] / "records" / "bench"
COLUMNS = {"random": "_random", "mini, half the steps": "_half", "mini": ""}
TASKS = {"sst2": "sst2", "trec": "trec", "rte": "rte", "runs/rte/rte.yaml": "rte, parted anew", "e2e": "e2e"}
METHODS = ("full", "lora-all")


@dataclass(frozen=True)
class Transfer:
    """A row of a benchmark, and its score of each test example, [seeds, examples]."""

    row: Row
    by_example: np.ndarray

    @property
    def score(self) -> str:
        """Mean ± deviation (seeds)."""
        return self.row.test.text(1, self.row.factor) if self.row.test else "not finished"

    def against(self, other: Transfer) -> str:
        """Return the difference to another on the same examples, with its interval."""
        found = paired_bootstrap((self.by_example, other.by_example))
        mean, low, high = (value * self.row.factor for value in (found.mean, found.low, found.high))
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def transfers(suffix: str) -> dict[tuple[str, str], Transfer]:
    """By task and method, of the folders of both suites that end so; none where a folder has no records."""
    found = {}
    for folder in (BENCH / f"real{suffix}", BENCH / f"rte_parted{suffix}"):
        records = RunRecords(folder).load() if folder.is_dir() else []
        for row in (row for table in summarize(records) for row in table.rows):
            scores = [
                record["test_score_by_example"]
                for record in records
                if (record["config"]["task"], record["config"]["method"]) == (row.task, row.method)
                and record["config"]["learning_rate"] == row.learning_rate
                and not record["config"]["method_options"]
                and record["outcome"] == "finished"
            ]
            if not row.options and scores:
                found[row.task, row.method] = Transfer(row, np.array(scores))
    return found


def table() -> str:
    """One line a task and method: test scores by backbone, and the differences to random weights."""
    columns = {name: transfers(suffix) for name, suffix in COLUMNS.items()}
    differences = [f"{name} - random" for name in list(COLUMNS)[1:]]
    rows = []
    for task, name in TASKS.items():
        for method in METHODS:
            random, *others = (found.get((task, method)) for found in columns.values())
            metric = next((one.row.metric for one in others if one), "not run")
            scores = [one.score if one else "not run" for one in (random, *others)]
            against = [one.against(random) if one and random else "not run" for one in others]
            rows.append([name, metric, method, *scores, *against])
    return markdown_table(["task", "metric", "method", *columns, *differences], rows, words=3)


if __name__ == "__main__":
    text = table()
    print(text)
    fill_markers(BENCH.parent / "pretrain" / "README.md", {"transfer": text})
