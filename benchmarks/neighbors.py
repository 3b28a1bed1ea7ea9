"""Runs side by side on the same cores: one, two and four at once, with and without what t5peft does about threads.

    python benchmarks/neighbors.py                                   # ten minutes on a quiet machine; writes the record
    python benchmarks/neighbors.py --at-once 1 2 --repeats 1 --systems t5peft --record /tmp/trial.json

Ten steps of 16 examples of TREC in a t5-small's shape with random weights, by ``T5PeftTrainer`` and by peft with
``Seq2SeqTrainer``. All runs of a cell start their steps together; a run's time is that of its steps. The settings:

* default: nothing is set;
* t5peft: ``t5peft.compat.threads.prepare`` before torch, as commands call it;
* passive: ``OMP_WAIT_POLICY=PASSIVE``;
* spin-N: ``GOMP_SPINCOUNT=N``, so that threads wait in a loop for a short time and then sleep;
* adaptive: before each step the run takes one thread where other programs are at work, and all where none are.

The figure to look at is the time until the last of n runs is done, over n times that of a single run with the default settings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "neighbors.json"
SYSTEMS = ("t5peft", "peft")
SETTINGS = ("default", "t5peft", "passive")
STEPS, EXAMPLES = 10, 16


def worker(system: str, setting: str, threads: int, steps: int) -> None:
    """Prepare, say so, wait for a line, and train."""
    from t5peft.compat import threads as settings

    if setting == "t5peft":
        settings.prepare()

    import torch
    import transformers
    from throughput_data import load_features, load_tokenizer
    from throughput_systems import time_training

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer()
    features = load_features("trec", tokenizer, EXAMPLES * steps)
    if setting == "adaptive":
        _adapt_threads(threads)
    args = argparse.Namespace(method="lora", examples=EXAMPLES, threads=threads, device="cpu", shape=None)
    time_training(system, features[:EXAMPLES], tokenizer, args)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(time_training(system, features, tokenizer, args)[0]), flush=True)


def _adapt_threads(threads: int) -> None:
    """Let each step choose its number of threads by what runs at this moment, which takes some microseconds."""
    import torch
    from throughput_systems import Span

    begin = Span.on_step_begin

    def on_step_begin(self: Span, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        others = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
        # A thread of one's own that waits in a loop counts as one of the others.
        torch.set_num_threads(1 if others >= torch.get_num_threads() else threads)
        begin(self, args, state, control, **kwargs)

    Span.on_step_begin = on_step_begin  # type: ignore[method-assign]


def run_together(count: int, system: str, setting: str, args: argparse.Namespace) -> list[float]:
    """Return the seconds of ``count`` runs that start at once."""
    named = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in named}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if setting == "passive":
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    elif setting.startswith("spin-"):
        environment["GOMP_SPINCOUNT"] = setting.removeprefix("spin-")
    command = [sys.executable, __file__, "--worker", system, setting, "--threads", str(args.threads)]
    runs = [
        subprocess.Popen(
            [*command, "--steps", str(args.steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(count)
    ]
    try:
        for run in runs:
            assert run.stdout is not None
            while run.stdout.readline().strip() != "ready":
                if run.poll() is not None:
                    raise RuntimeError(f"Got a run that ended with {run.returncode}; expected it to train.")
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("\n")
            run.stdin.flush()
        outputs = [run.communicate()[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    lines = [[line for line in output.splitlines() if line.startswith("{")][-1] for output in outputs]
    return [float(json.loads(line)["seconds"]) for line in lines]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cells, settings alternating within each repeat."""
    cells: dict[tuple[str, str, int], list[list[float]]] = {}
    for _ in range(args.repeats):
        for system in args.systems:
            for count in args.at_once:
                for setting in args.settings:
                    seconds = run_together(count, system, setting, args)
                    cells.setdefault((system, setting, count), []).append(seconds)
                    print(system, setting, count, [round(one, 2) for one in seconds], flush=True)
    return [
        {"system": system, "setting": setting, "at_once": count, "seconds": repeats}
        for (system, setting, count), repeats in cells.items()
    ]


def table(record: dict[str, Any]) -> str:
    """Return the table: the last run's end, and its share of the time of one after the other."""
    last = {
        (cell["system"], cell["setting"], cell["at_once"]): statistics.median(max(runs) for runs in cell["seconds"])
        for cell in record["cells"]
    }
    lines = [
        "| system | threads | at once | until the last is done | to one after the other |",
        "|---|---|---|---|---|",
    ]
    for (system, setting, count), seconds in last.items():
        alone = last.get((system, "default", 1), last.get((system, setting, 1)))
        share = "" if alone is None else f"{seconds / count / alone:.2f}"
        lines.append(f"| {system} | {setting} | {count} | {seconds:.1f} s | {share} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="also spin-4000, say, and adaptive")
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        system, setting = args.worker
        worker(system, setting, args.threads, args.steps)
        return 0
    from t5peft.benchmark.environment import environment

    before = os.getloadavg()
    record = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", "benchmarks/neighbors.py", *sys.argv[1:]]),
        "load_average": before,
        **environment("cpu"),
        "cells": measure(args),
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
