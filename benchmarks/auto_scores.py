"""``t5peft.auto`` against the best single method of a suite, on the same test records.

    python benchmarks/auto_scores.py                  # half an hour; writes the record and the table in RESULTS.md
    python benchmarks/auto_scores.py --suite real     # public data sets; also real_tasks
    python benchmarks/auto_scores.py --tasks finance  # this task anew, beside the earlier records of the others
    python benchmarks/auto_scores.py --report-only

The single method is the best of all on the test records, at the best of three learning rates, which nobody knows beforehand. So the
comparison favors it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import t5peft
from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.data import describe_data, load_data
from t5peft.benchmark.environment import environment
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.statistics import paired_bootstrap
from t5peft.benchmark.suites import SuiteTask
from t5peft.benchmark.summary import Row, TaskTable, summarize
from t5peft.benchmark.tables import fill_markers, markdown_table
from t5peft.cli.evaluate import load_tuned
from t5peft.evaluation import METRICS
from t5peft.evaluation.scores import EvaluationSet

RECORDS = Path(__file__).parent / "records"
SUITES = ("embedded", "real", "real_tasks")
RESULTS = Path(__file__).parent / "RESULTS.md"


def tables(suite: str) -> dict[str, TaskTable]:
    """Return the tables of a suite by task."""
    return {table.task: table for table in summarize(RunRecords(RECORDS / "bench" / suite).load())}


def measure(task_name: str, limits: dict[str, int], minutes: float) -> dict[str, Any]:
    """Run ``auto`` on a task, and score its model on the test records of the suite.

    Args:
        task_name: A task of the package.
        limits: Those of the suite; only that of the test split is kept.
        minutes: The time of all trials.

    Returns:
        What was chosen, its score, the score of each test record, and the seconds of the whole call.
    """
    task, splits = load_data(describe_data(SuiteTask(task_name)), {"test": limits["test"]})
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = t5peft.auto(
            splits["train"],
            folder,
            validation=splits["validation"],
            test=splits["test"],
            task=task,
            minutes=minutes,
            tell=lambda line: None,
        )
        seconds = time.monotonic() - began
        model, tokenizer = load_tuned(result.folder)
        scored = EvaluationSet(task, splits["test"], tokenizer).score(model)
    lead = METRICS[task.metrics[0]].lead
    return {
        "task": task_name,
        "method": result.method,
        "learning_rate": result.learning_rate,
        "steps": result.results["best"]["steps"],
        "trials": len(result.results["trials"]),
        "metric": lead,
        "validation_score": result.results["best"]["score"],
        "score": scored.scores[lead],
        "score_by_example": [round(value, 4) for value in scored.per_example],
        "seconds": round(seconds, 1),
    }


def best_of(table: TaskTable) -> Row:
    """Return the row of the method with the highest test score."""
    return max((row for row in table.rows if row.test and not is_baseline(row.method)), key=lambda row: row.test.mean)  # type: ignore[union-attr]


def report(record: dict[str, Any]) -> str:
    """Return the table: what ``auto`` chose, its score, that of the best method, and the difference with its interval."""
    suite = tables(record["suite"])
    rows, pairs = [], []
    for found in record["tasks"]:
        best = best_of(suite[found["task"]])
        assert best.test is not None
        runs = sorted(best.by_example)
        ours = best.factor * np.array([found["score_by_example"]])
        pairs.append((ours, best.points_of(runs)))
        rows.append(
            [
                f"{found['task']}, {found['metric']}",
                f"{found['method']} at {found['learning_rate']:g}, {found['steps']:,} steps",
                f"{found['seconds'] / 60:.1f} min",
                f"{found['score'] * best.factor:.1f}",
                f"{best.label}, {best.test.mean * best.factor:.1f} ({len(runs)})",
                "–" if best.train_seconds is None else f"{best.train_seconds.mean / 60:.1f} min",
                _text(*pairs[-1:]),
            ]
        )
    rows.append(["all", "", "", "", "", "", _text(*pairs)])
    machine = record["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    header = ["task", "auto chose", "time", "score", "best single method (seeds)", "its time", "auto less this"]
    conditions = f"{record['minutes']:g} minutes for the trials of a task, seed 0; {machine['name']}, {threads}."
    return f"{conditions}\n\n{markdown_table(header, rows)}"


def _text(*pairs: tuple[np.ndarray, np.ndarray]) -> str:
    found = paired_bootstrap(*pairs)
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the tasks, write the record, and fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="embedded", help="whose tasks (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", help="tasks to measure (default: all of the suite)")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="time of the trials of a task (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--record", type=Path, help="another file for the record; RESULTS.md is left alone")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    args = parser.parse_args(arguments)
    suite = tables(args.suite)
    if unknown := set(args.tasks or ()) - set(suite):
        parser.error(f"got the tasks {sorted(unknown)}; the suite {args.suite} has {list(suite)}")
    path = args.record or RECORDS / f"auto_{args.suite}.json"
    if not args.report_only:
        torch.set_num_threads(args.threads)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"tasks": []}
        done = {found["task"]: found for found in known["tasks"] if known.get("minutes") == args.minutes}
        for name in args.tasks or suite:
            done[name] = measure(name, suite[name].conditions["limits"], args.minutes)
            record = {
                "suite": args.suite,
                "minutes": args.minutes,
                **environment("cpu"),
                "tasks": [done[task] for task in suite if task in done],
            }
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = report(json.loads(path.read_text(encoding="utf-8")))
    print(text)
    if not args.record:
        fill_markers(RESULTS, {f"auto {args.suite}": text})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
