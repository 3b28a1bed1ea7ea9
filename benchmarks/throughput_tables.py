"""Tables of the speed records.

python benchmarks/throughput_tables.py             # the newest record of each kind
python benchmarks/throughput_tables.py --write     # into SPEED.md
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from t5peft.benchmark.json_lines import JsonLines
from t5peft.benchmark.tables import fill_markers, markdown_table

RECORDS = Path(__file__).parent / "records" / "speed.jsonl"
SpeedRecord = dict[str, Any]


def median_ratio(result: dict[str, Any], peer: str, field: str = "seconds") -> float:
    """How many times as long the peer takes: the median of the ratios within a repeat."""
    return statistics.median(run[peer][field] / run["t5peft"][field] for run in result["runs"])


def training_table(record: SpeedRecord) -> str:
    """Real tokens per second of each system, and the ratios, one line a data set."""
    results = record["results"]
    systems = [name for name in next(iter(results.values()))["runs"][0] if name != "matmul_flops_per_second"]
    peers = [system for system in systems if system != "t5peft"]
    with_share = record["method"] == "lora"
    head = ["data set", *(f"{s}, tokens/s" for s in systems), *(f"against {p}" for p in peers)]
    rows = []
    for name, result in results.items():
        seconds = {s: statistics.median(run[s]["seconds"] for run in result["runs"]) for s in systems}
        row = [name, *(f"{result['tokens'] / seconds[s]:,.0f}" for s in systems)]
        row += [f"{median_ratio(result, peer):.2f}" for peer in peers]
        if with_share:
            shares = [r["flops"] / r["t5peft"]["seconds"] / r["matmul_flops_per_second"] for r in _with_flops(result)]
            row.append(f"{statistics.median(shares):.2f}")
        rows.append(row)
    means = [statistics.geometric_mean(median_ratio(result, p) for result in results.values()) for p in peers]
    rows.append(
        ["geometric mean", *[""] * len(systems), *(f"{mean:.2f}" for mean in means), *([""] if with_share else [])]
    )
    repeats = min(len(result["runs"]) for result in results.values())
    about = (
        f"{record['method']}, {record['examples_per_step']} examples a step, median of {repeats} repeat"
        f"{'s' if repeats > 1 else ''}; {machine_of(record)}"
    )
    return about + "\n\n" + markdown_table([*head, *(["share of matmul"] if with_share else [])], rows)


def _with_flops(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [run | {"flops": result["flops"]} for run in result["runs"]]


def memory_table(record: SpeedRecord) -> str:
    """Peak bytes above the loaded model's, one line a data set and size of the vocabulary."""
    rows = []
    for name, sizes in record["results"].items():
        for vocabulary, cell in sizes.items():
            ours = cell["t5peft"]["above_bytes"]
            for peer in (system for system in cell if system != "t5peft"):
                theirs = cell[peer]["above_bytes"]
                rows.append(
                    [name, f"{int(vocabulary):,}", f"{ours / 1e6:,.0f} MB", peer, f"{theirs / 1e6:,.0f} MB",
                     f"{ours / theirs:.2f}"]
                )  # fmt: skip
    head = ["data set", "vocabulary", "t5peft, above the model", "peer", "peer, above the model", "ratio"]
    return f"memory, {record['method']}, {record['examples_per_step']} examples a step\n\n" + markdown_table(head, rows)


def losses_table(record: SpeedRecord) -> str:
    """Return the largest relative difference of the losses, one line a data set."""
    rows = [
        [name, precision, str(len(result["losses"]["peft"])), f"{result['largest_relative_difference']:.1e}"]
        for name, precisions in record["results"].items()
        for precision, result in precisions.items()
    ]
    head = ["data set", "precision", "steps", "largest relative difference"]
    return f"losses at dropout 0 beside the plain way, {record['method']}\n\n" + markdown_table(head, rows)


def prediction_table(record: SpeedRecord) -> str:
    """How many times as long generation by the peer takes."""
    rows = []
    for name, result in record["results"].items():
        rates = [
            result["examples"] / statistics.median(run[s]["seconds"] for run in result["runs"])
            for s in ("t5peft", "peft")
        ]
        rows.append([name, *(f"{rate:.1f}" for rate in rates), f"{median_ratio(result, 'peft'):.2f}"])
    return "prediction\n\n" + markdown_table(["data set", "t5peft, examples/s", "peft, examples/s", "ratio"], rows)


def shapes_table(record: SpeedRecord) -> str:
    """Tokens per second and peak memory of each system, one line a shape and system."""
    rows = []
    for shape, result in record["results"].items():
        for system in result["runs"][0]:
            cells = [run[system] for run in result["runs"]]
            if any(cell["outcome"] != "finished" for cell in cells):
                rows.append([shape, system, "out of memory", "", ""])
                continue
            seconds = statistics.median(cell["seconds"] for cell in cells)
            peak = max(cell["peak_bytes"] for cell in cells)
            finished = all(run["t5peft"]["outcome"] == "finished" for run in result["runs"])
            ratio = f"{median_ratio(result, system):.2f}" if finished else ""
            rows.append([shape, system, f"{result['tokens'] / seconds:,.0f}", f"{peak / 1e9:.2f} GB", ratio])
    head = ["shape", "system", "tokens/s", "peak memory", "time against t5peft"]
    return (
        f"{record['method']}, {record['examples_per_step']} examples a step; {record['machine']['name']}\n\n"
        + markdown_table(head, rows)
    )


TABLES: dict[str, Callable[[SpeedRecord], str]] = {
    "training": training_table,
    "memory": memory_table,
    "losses": losses_table,
    "prediction": prediction_table,
    "shapes": shapes_table,
}


def newest() -> list[SpeedRecord]:
    """Return the records of each kind, method, step and machine, newest first, without those that newer ones replace."""
    found: dict[tuple[Any, ...], list[SpeedRecord]] = {}
    records = [json.loads(line) for _, line in JsonLines(RECORDS).new_lines()]
    for record in sorted(records, key=_date, reverse=True):
        newer = found.setdefault(
            (record["kind"], record["method"], record["examples_per_step"], record["machine"]["name"]), []
        )
        if not any(_systems(record) <= _systems(other) for other in newer):
            newer.append(record)
    return [record for records in found.values() for record in records]


def against_peft() -> list[tuple[float, SpeedRecord]]:
    """Return how many times as long a step of peft's LoRA takes, and the record that says so, for each machine, the lowest first.

    It is a geometric mean over the data sets.
    """
    records = [
        record
        for record in newest()
        if (record["kind"], record["method"], record["examples_per_step"]) == ("training", "lora", 16)
        and {"peft", "peft-grouped"} <= _systems(record)
    ]
    ratios = [
        statistics.geometric_mean(median_ratio(result, "peft") for result in record["results"].values())
        for record in records
    ]
    return sorted(zip(ratios, records, strict=True), key=itemgetter(0))


def machine_of(record: SpeedRecord) -> str:
    """Return the processor of a training record, its cores, and the speed of its matrix products."""
    runs = [run for result in record["results"].values() for run in result["runs"]]
    speed = statistics.median(run["matmul_flops_per_second"] for run in runs)
    return f"{record['machine']['name']}, {record['machine']['cores']} cores, {speed / 1e9:.0f} GFLOP/s"


def _date(record: SpeedRecord) -> str:
    return str(record["date"])


def _systems(record: SpeedRecord) -> set[str]:
    return set(next(iter(record["results"].values()))["runs"][0]) if record["kind"] == "training" else set()


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    records = newest()
    text = "\n\n".join(TABLES[record["kind"]](record) for record in records)
    print(text)
    if args.write:
        fill_markers(Path(__file__).parent / "SPEED.md", {"speed": text})


if __name__ == "__main__":
    main()
