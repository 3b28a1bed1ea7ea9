"""Memory and time of data work, from ten thousand to ten million rows.

    python benchmarks/data_scale.py                       # 10^4 to 10^6 rows, some half hour of one core
    python benchmarks/data_scale.py --rows 10000000       # adds a size to the record; some five hours
    python benchmarks/data_scale.py --picture             # docs/data.svg, of the record that is there

Each figure is a process of its own, of two sentences of SST-2 in each row, drawn anew:

* tokenize: ``Task.tokenize`` of an Arrow file;
* stream: the same of a generator;
* datasets.map: the same tokenizer in ``Dataset.map`` over the same Arrow file, sources and targets;
* tokenizer: the tokenizer's own batches of 1,000 sources, whose results are dropped;
* json lines, packed, parquet: a file, read;
* hold out: a JSON Lines file, read and split into a rest and 1,000 held-out sources;
* lint: the report of a JSON Lines file;
* augment: one copy of each record of a JSON Lines file, with words left out;
* mixture: the first rows of a mixture of two tasks of the Arrow file;
* evaluation: a JSON Lines file as an ``EvaluationSet``, with made-up answers of an iterator scored.

Memory is the highest resident set above that after the imports, without pages of files, which the system takes back when others
need them. Time is that of the processor, as the machine may have other work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from throughput_data import data_folder

RECORD = Path(__file__).parent / "records" / "data_scale.json"
PICTURE = Path(__file__).parents[1] / "docs" / "data.svg"
ROWS = (10_000, 100_000, 1_000_000)
SYSTEMS = (
    "tokenizer", "datasets.map", "tokenize", "stream", "json lines", "packed", "parquet", "hold out", "lint", "augment", "mixture",
    "evaluation",
)  # fmt: skip
SAMPLE_SECONDS = 0.01


def records(count: int) -> Iterator[dict[str, Any]]:
    """Yield made-up reviews: two sentences of SST-2 each, and the label of the first."""
    lines = (data_folder() / "sst2_glue" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [line.split("\t") for line in lines]
    draw = random.Random(0)
    for _ in range(count):
        (first, label), (second, _label) = draw.choice(pairs), draw.choice(pairs)
        yield {"sentence": f"{first}. {second}", "label": int(label)}


class Peak:
    """The highest resident set inside the block, above that at its start, whole and without pages of files."""

    def __enter__(self) -> Peak:
        self.start, self.highest = _resident(), (0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            whole, own = (now - start for now, start in zip(_resident(), self.start, strict=True))
            self.highest = max(self.highest[0], whole), max(self.highest[1], own)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _resident() -> tuple[int, int]:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    whole, files = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile"))
    return whole, whole - files


def _run(system: str, folder: Path, rows: int) -> Callable[[], object]:
    """Return what is measured."""
    from datasets import Dataset
    from throughput_data import load_tokenizer

    from t5peft import Task

    tokenizer = load_tokenizer()
    words = {"0": "negative", "1": "positive"}
    task = Task("sst2", "sst2 sentence: {sentence}", "{label}", words, metrics=("accuracy",), max_source_length=4096)
    task.tokenize(list(records(100)), tokenizer)
    dataset = Dataset.load_from_disk(str(folder))

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        sources = tokenizer([f"sst2 sentence: {text}" for text in batch["sentence"]])["input_ids"]
        return {
            "input_ids": sources,
            "labels": tokenizer([words[str(label)] for label in batch["label"]])["input_ids"],
        }

    if system == "tokenizer":
        texts = [f"sst2 sentence: {record['sentence']}" for record in records(min(rows, 100_000))]
        batches = [texts[start : start + 1000] for start in range(0, len(texts), 1000)]
        return lambda: [len(tokenizer(batch)["input_ids"]) for _ in range(rows // len(texts)) for batch in batches]
    work: dict[str, Callable[[], object]] = {
        "datasets.map": lambda: dataset.map(encode, batched=True, remove_columns=dataset.column_names),
        "tokenize": lambda: task.tokenize(dataset, tokenizer),
        "stream": lambda: task.tokenize(records(rows), tokenizer),
    }
    return work.get(system) or partial(_whole_file, system, folder, task, tokenizer)


def _whole_file(system: str, folder: Path, task: Any, tokenizer: Any) -> None:
    from datasets import Dataset

    from t5peft.data import lint, load_records
    from t5peft.data.augmentation import augment
    from t5peft.data.mixtures import Mixture
    from t5peft.data.rewording import WordDropout
    from t5peft.data.splits import hold_out
    from t5peft.evaluation.scores import EvaluationSet

    if system == "mixture":
        tasks = {name: (task, Dataset.load_from_disk(str(folder))) for name in ("one", "two")}
        mixture = Mixture.of_tasks(tasks, tokenizer)
        mixture.dataset(len(mixture.datasets["one"]))
        return
    endings = {"packed": ".jsonl.gz", "parquet": ".parquet"}
    loaded: Any = load_records(folder.with_suffix(endings.get(system, ".jsonl")))
    if system == "hold out":
        hold_out(loaded, task.source)
    elif system == "lint":
        lint(task, loaded, tokenizer)
    elif system == "augment":
        augment(loaded, task, WordDropout())
    elif system == "evaluation":
        EvaluationSet(task, loaded, tokenizer).score_answers(repeat("0", len(loaded)))


def worker(system: str, folder: Path, rows: int) -> dict[str, float]:
    """Measure one cell in this process."""
    work = _run(system, folder, rows)
    started, processor = time.perf_counter(), time.process_time()
    with Peak() as peak:
        work()
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak.highest[0],
        "own_peak_bytes": peak.highest[1],
    }


def measure(rows: int, systems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each system for so many rows."""
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        dataset = Dataset.from_generator(records, gen_kwargs={"count": rows}, cache_dir=f"{folder}/made")
        dataset.save_to_disk(f"{folder}/records")
        dataset.to_json(f"{folder}/records.jsonl")
        dataset.to_json(f"{folder}/records.jsonl.gz", compression="gzip")
        dataset.to_parquet(f"{folder}/records.parquet")
        for system in systems:
            command = [sys.executable, __file__, "--worker", system, f"{folder}/records", "--rows", str(rows)]
            own = environment | {"HF_DATASETS_CACHE": f"{folder}/{system}"}  # nobody finds what another has made
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=own)
            yield {"system": system, "rows": rows, **json.loads(done.stdout.splitlines()[-1])}


def picture(cells: list[dict[str, Any]]) -> str:
    """Return the SVG: memory and time by rows."""
    import vl_convert

    ours = [name for name in SYSTEMS if name not in ("tokenizer", "datasets.map")]
    memory = [{"work": c["system"], "rows": c["rows"], "value": c["own_peak_bytes"] / 1e6} for c in cells]
    timed = [c for c in cells if c["system"] in ("tokenizer", "datasets.map", "tokenize", "stream")]
    seconds = [
        {"work": c["system"], "rows": c["rows"], "value": c["processor_seconds"] / c["rows"] * 1e6} for c in timed
    ]
    right = {"orient": "right", "title": None}

    def panel(values: list[dict[str, Any]], title: str) -> dict[str, Any]:
        return {
            "width": 300,
            "height": 240,
            "data": {"values": values},
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": {
                    "field": "rows",
                    "type": "quantitative",
                    "scale": {"type": "log"},
                    "axis": {"values": sorted({c["rows"] for c in cells})},
                    "title": "rows",
                },
                "y": {"field": "value", "type": "quantitative", "title": title, "scale": {"domainMin": 0}},
                "color": {"field": "work", "type": "nominal", "sort": list(SYSTEMS), "legend": right},
            },
        }

    left = panel([value for value in memory if value["work"] in ours], "memory above the start, MB")
    both = {
        "hconcat": [left, panel(seconds, "processor time of a row, µs")],
        "resolve": {"scale": {"color": "independent"}},
    }
    return str(vl_convert.vegalite_to_svg({"background": "white", **both})) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--picture", action="store_true", help="only draw the record that is there")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker[0], Path(args.worker[1]), args.rows[0])))
        return 0
    record = json.loads(args.record.read_text()) if args.record.is_file() else {"cells": []}
    if not args.picture:
        from t5peft.benchmark.environment import environment

        for cell in (cell for rows in args.rows for cell in measure(rows, args.systems)):
            print(json.dumps(cell), flush=True)
            found = {(one["rows"], one["system"]): one for one in [*record["cells"], cell]}
            cells = sorted(found.values(), key=lambda one: (one["rows"], SYSTEMS.index(one["system"])))
            record = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **environment("cpu"), "cells": cells}
            args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for cell in record["cells"]:
        print(
            f"{cell['system']:14} {cell['rows']:>10,} rows {cell['processor_seconds']:8.1f} s "
            f"{cell['processor_seconds'] / cell['rows'] * 1e6:6.1f} us a row {cell['own_peak_bytes'] / 1e6:8.0f} MB"
        )
    PICTURE.write_text(picture(record["cells"]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
