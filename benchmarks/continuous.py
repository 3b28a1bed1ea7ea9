"""Continuous batching against batch by batch on a CPU, where answers are of mixed lengths.

    OMP_NUM_THREADS=1 python benchmarks/continuous.py   # some minutes; writes benchmarks/records/serving/continuous.json

Batch by batch, a batch is answered by ``generate`` until its longest answer ends, as ``predict`` does it. The engine lets each row
leave when its own answer ends, and gives its place to the next request. Both run the same requests on the same model in the same
order, by turns. No answer ends by itself, so lengths are as drawn. All answers are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from t5peft.benchmark.environment import environment
from t5peft.serving.engine import Engine
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import Generated, GenerateRequest
from t5peft.serving.scheduler import Limits

RECORD = Path(__file__).parent / "records" / "serving" / "continuous.json"
SOURCE_TOKENS = (8, 32)
Answers = list[list[int]]

LENGTHS: dict[str, Callable[[Random], int]] = {
    "uniform, 2 to 64": lambda random: random.randint(2, 64),
    "nine of ten 2 to 16, others 64": lambda random: random.randint(2, 16) if random.random() < 0.9 else 64,
    "all 32": lambda random: 32,
}


def drawn_requests(count: int, length: Callable[[Random], int], vocabulary_size: int) -> list[GenerateRequest]:
    """Return requests with random sources, the same ones each time."""
    random = Random(0)
    return [
        GenerateRequest(
            None,
            [*(random.randrange(3, vocabulary_size) for _ in range(random.randint(*SOURCE_TOKENS) - 1)), 1],
            length(random),
        )
        for _ in range(count)
    ]


def batch_by_batch(pool: AdapterPool, requests: list[GenerateRequest], rows: int) -> Answers:
    """Answer ``rows`` requests at a time, until the longest answer of each batch ends."""
    answers: Answers = []
    for start in range(0, len(requests), rows):
        batch = requests[start : start + rows]
        ids = pool.model.generate(
            [one.source_ids for one in batch],
            [None] * len(batch),
            max_new_tokens=max(one.max_new_tokens for one in batch),
        ).tolist()
        answers += [row[1 : 1 + one.max_new_tokens] for row, one in zip(ids, batch, strict=True)]
    return answers


def continuous(pool: AdapterPool, requests: list[GenerateRequest], rows: int) -> Answers:
    """Answer the requests by the engine."""
    with Engine(pool, Limits(max_rows=rows, max_waiting=len(requests))) as engine:
        tickets = [engine.submit(one) for one in requests]
        found = [ticket.result.result() for ticket in tickets]
    return [answer.ids for answer in found if isinstance(answer, Generated)]


def measure(pool: AdapterPool, requests: list[GenerateRequest], rows: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of both ways, by turns: of the processor, as others may use the machine, and on the clock."""
    seconds: dict[str, list[float]] = {"batch_by_batch": [], "continuous": []}
    clock: dict[str, list[float]] = {"batch_by_batch": [], "continuous": []}
    equal = True
    for _ in range(repeats):
        answers = []
        for way in (batch_by_batch, continuous):
            start, clock_start = time.process_time(), time.perf_counter()
            answers.append(way(pool, requests, rows))
            seconds[way.__name__].append(round(time.process_time() - start, 3))
            clock[way.__name__].append(round(time.perf_counter() - clock_start, 3))
        equal = equal and answers[0] == answers[1]
    ratios, clock_ratios = ([a / b for a, b in zip(*ways.values(), strict=True)] for ways in (seconds, clock))
    median = statistics.median(seconds["continuous"])  # of one core
    return {
        "processor_seconds": seconds,
        "clock_seconds": clock,
        "speedup": round(statistics.median(ratios), 2),
        "speedups": [round(ratio, 2) for ratio in ratios],
        "speedup_on_the_clock": round(statistics.median(clock_ratios), 2),
        "requests_per_core_second": round(len(requests) / median, 1),
        "tokens_per_core_second": round(sum(one.max_new_tokens for one in requests) / median),
        "equal_answers": equal,
    }


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--rows", type=int, default=64, help="rows of a batch, both ways")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = AdapterPool("mini", folder)
        t5 = pool.model.t5
        t5.generation_config.eos_token_id = None
        for name, length in LENGTHS.items():
            requests = drawn_requests(options.requests, length, t5.config.vocab_size)
            measure(pool, requests[: options.rows], options.rows, 1)  # to warm up
            found[name] = measure(pool, requests, options.rows, options.repeats)
            print(f"{name}: {found[name]}", flush=True)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    settings = {"backbone": "mini", "source_tokens": SOURCE_TOKENS, **vars(options)}
    RECORD.write_text(json.dumps({**environment("cpu"), "settings": settings, "new_tokens": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
