"""Load of the server: clients times adapters, Zipf and uniform, every answer checked against that of its adapter on its own.

    python benchmarks/serving.py                                     # about ten minutes: 18 cells, and 8 of one adapter
    python benchmarks/serving.py --clients 8 --adapters 32 --seconds 60
    python benchmarks/serving.py --url http://127.0.0.1:8000         # of a server of that folder, such as one on Ray
    python benchmarks/serving.py --picture                           # docs/load.svg, of the records that are there

The backbone is "mini". Its adapters have random weights, of several methods in turn, so that each answers in its own way. What each
answers by ``load_adapter`` and ``predict`` is computed first and kept in --folder. A cell asks for --cell-seconds on the loopback
and has one record in records/serving/. A cell that has a record of the same settings is left out, so the command goes on after an
interruption. --seconds bounds all cells together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import torch
from serving_adapters import METHODS, Question, answers_of, questions, write_adapters

from t5peft.benchmark.environment import environment

RECORDS = Path(__file__).parent / "records" / "serving"
PICTURE = Path(__file__).parents[1] / "docs" / "load.svg"
ADAPTERS = 100
RETRIES = 100


@dataclass(frozen=True)
class Cell:
    """One measurement. With one adapter, the distribution is the name of its method."""

    clients: int
    adapters: int
    distribution: str
    seconds: float
    max_rows: int

    @property
    def path(self) -> Path:
        """Return the file of its record."""
        return RECORDS / f"{self.clients}-clients-{self.adapters}-adapters-{self.distribution}.json"

    def names(self, known: Sequence[str]) -> list[str]:
        """Return the names of its adapters."""
        if self.adapters == 1:
            return [next(name for name in known if name.endswith(f"-{self.distribution}"))]
        return list(known[: self.adapters])

    def weights(self) -> list[float]:
        """Return how often each adapter is asked, beside the others."""
        return [1 / (rank + 1) if self.distribution == "zipf" else 1.0 for rank in range(self.adapters)]


@dataclass
class Counts:
    """Counts of a cell while it runs."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[dict[str, str]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    tokens: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell that has no record yet, or draw the records; return 1 where an answer was wrong."""
    args = parse(arguments)
    if args.picture:
        PICTURE.write_text(picture(), encoding="utf-8")
        return 0
    deadline = time.monotonic() + args.seconds
    asked = questions(args.folder)
    count = max(*args.adapters, len(METHODS))
    write_adapters(args.folder, count)
    expected = answers_of(args.folder, count, asked)
    cells = [
        Cell(clients, adapters, distribution, args.cell_seconds, args.max_rows)
        for adapters, clients in product(args.adapters, args.clients)
        for distribution in (args.distributions if adapters > 1 else _methods(clients == max(args.clients)))
    ]
    wrong = 0
    with running(args) as url:
        for cell in cells:
            if not args.overwrite and has_record(cell):
                print(f"{cell.path.stem}: has a record")
                continue
            if time.monotonic() + cell.seconds > deadline:
                print(f"{cell.path.stem}: left out, as --seconds {args.seconds} are over")
                continue
            record = measure(url, cell, asked, expected)
            write_record(cell, record)
            wrong += record["wrong"]
            print(
                f"{cell.path.stem}: {record['requests_per_second']:.1f} requests a second, p50 {record['p50_seconds']:.3f} s, "
                f"p99 {record['p99_seconds']:.3f} s, {record['wrong']} of {record['requests']} wrong"
            )
    return 1 if wrong else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/serving"), help="adapters and expected answers")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32, 100])
    parser.add_argument("--distributions", nargs="+", default=["zipf", "uniform"], choices=["zipf", "uniform"])
    parser.add_argument("--cell-seconds", type=float, default=15)
    parser.add_argument("--seconds", type=float, default=900, help="of all cells together")
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--url", help="of a server that runs; default: one is started")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--picture", action="store_true", help="only draw the records that are there")
    args = parser.parse_args(arguments)
    if max(args.adapters) > ADAPTERS or min(*args.adapters, *args.clients) < 1:
        parser.error(f"Got adapters {args.adapters} and clients {args.clients}; expected 1 to {ADAPTERS} adapters.")
    return args


@contextmanager
def running(args: argparse.Namespace) -> Iterator[str]:
    """Yield the address of the server that was named, or of one that runs as long as the block."""
    if args.url:
        yield args.url
        return
    start = "import sys; from t5peft.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "serve", "--backbone", "mini", "--adapters", str(args.folder / "adapters")]
    command += ["--port", "0", "--max-rows", str(args.max_rows), "--max-waiting", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " on http://" not in line:
                raise RuntimeError(f"Got no server, but {line!r}; expected its address. See the lines above.")
            yield line.split()[-1]
        finally:
            process.terminate()


def _methods(most_clients: bool) -> list[str]:
    """Return the methods that are asked by themselves: LoRA, and with the most clients all that several adapters have."""
    return list(METHODS) if most_clients else ["lora"]


def has_record(cell: Cell) -> bool:
    """Return whether a cell was measured with the same settings."""
    return cell.path.is_file() and json.loads(cell.path.read_text(encoding="utf-8"))["cell"] == asdict(cell)


def write_record(cell: Cell, record: dict[str, Any]) -> None:
    """Write the record of a cell, whole or not at all."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    new = cell.path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(cell.path)


def measure(url: str, cell: Cell, asked: Sequence[Question], expected: dict[str, list[str]]) -> dict[str, Any]:
    """Return the record of a cell."""
    counts, seconds = asyncio.run(ask_all(url, cell, asked, expected))
    found = sorted(counts.seconds)
    percentiles = statistics.quantiles(found, n=100, method="inclusive") if len(found) > 1 else [found[0]] * 99
    return {
        "cell": asdict(cell),
        "requests": len(found),
        "requests_per_second": len(found) / seconds,
        "tokens_per_second": counts.tokens / seconds,
        "p50_seconds": percentiles[49],
        "p95_seconds": percentiles[94],
        "p99_seconds": percentiles[98],
        "wrong": len(counts.wrong),
        "wrong_examples": counts.wrong[:5],
        "statuses": {str(status): count for status, count in counts.statuses.items()},
        "methods": sorted(METHODS),
        "threads": torch.get_num_threads(),
        **environment("cpu"),
    }


async def ask_all(
    url: str, cell: Cell, asked: Sequence[Question], expected: dict[str, list[str]]
) -> tuple[Counts, float]:
    """Let the clients of a cell ask until its time is over; return the counts and the seconds that it took."""
    names = cell.names(list(expected))
    counts = Counts()
    limits = httpx.Limits(max_connections=cell.clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        for name in names:  # loading is not what is measured
            (await client.post("/v1/adapters/load", json={"adapter": name})).raise_for_status()
        began = time.perf_counter()
        until = began + cell.seconds

        async def one_client(number: int) -> None:
            choose = random.Random(number)
            while time.perf_counter() < until:
                name = choose.choices(names, cell.weights())[0]
                place = choose.randrange(len(asked))
                await ask(client, name, asked[place], expected[name][place], counts)

        await asyncio.gather(*(one_client(number) for number in range(cell.clients)))
        return counts, time.perf_counter() - began


async def ask(client: httpx.AsyncClient, name: str, question: Question, expected: str, counts: Counts) -> None:
    """Ask one question, again where the server is full, and compare the answer."""
    body = {"model": name, "prompt": question.source, "max_tokens": question.max_tokens}
    began = time.perf_counter()
    for _ in range(RETRIES):
        response = await client.post("/v1/completions", json=body)
        counts.statuses[response.status_code] += 1
        if response.status_code != 503:
            break
        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
    response.raise_for_status()
    counts.seconds.append(time.perf_counter() - began)
    found = response.json()
    counts.tokens += found["usage"]["completion_tokens"]
    if (text := found["choices"][0]["text"]) != expected:
        counts.wrong.append({"adapter": name, "source": question.source, "expected": expected, "found": text})


def points() -> list[dict[str, Any]]:
    """Return one point for each record and figure."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*-clients-*.json"))]
    records = [record for record in found if record["cell"]["distribution"] in ("lora", "zipf", "uniform")]
    figures = {"requests a second": ("requests_per_second", 1)} | {
        f"{name}, ms": (f"{name}_seconds", 1000) for name in ("p50", "p95", "p99")
    }
    return [
        {
            "figure": figure,
            "value": round(record[key] * factor, 3),
            **{name: record["cell"][name] for name in ("clients", "adapters", "distribution")},
        }
        for record in records
        for figure, (key, factor) in figures.items()
    ]


def picture() -> str:
    """Return the requests a second and the latencies of all records as SVG, by clients, adapters and distribution."""
    import vl_convert

    found = points()
    counts = sorted({point["clients"] for point in found})
    panels = []
    for place, figure in enumerate(dict.fromkeys(point["figure"] for point in found)):
        x = {"scale": {"type": "log"}, "axis": {"values": counts, "format": "d"}}
        encoding = {
            "x": {"field": "clients", "type": "quantitative", **x},
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": figure,
                "scale": {"type": "log" if place else "linear"},
            },
            "color": {"field": "adapters", "type": "ordinal", "scale": {"scheme": "viridis"}},
        }
        dashes = {"field": "distribution", "sort": ["zipf", "uniform", "lora"], "title": "asked for"}
        line = {"mark": "line", "encoding": encoding | {"strokeDash": dashes | {"type": "nominal"}}}
        dots = {"mark": {"type": "point", "filled": True, "size": 40}, "encoding": encoding}
        values = {"values": [point for point in found if point["figure"] == figure]}
        panels.append({"data": values, "width": 230, "height": 220, "layer": [line, dots]})
    config = {"font": "DejaVu Sans", "legend": {"orient": "top"}}
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white",
        "config": config,
        "hconcat": panels,
    }
    return str(vl_convert.vegalite_to_svg(chart)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
