"""Print what the documents and the package take from records: tables, the picture of the methods, and the recommendation.

python scripts/readme.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import yaml

from t5peft.benchmark.overview import Overview
from t5peft.benchmark.recommendation import EVIDENCE, evidence
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.summary import summarize
from t5peft.benchmark.tables import fill_markers, markdown_table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
RECORDS = [ROOT / "benchmarks" / "records" / "bench" / suite for suite in ("embedded", "real")]
SERVING = ROOT / "benchmarks" / "records" / "serving" / "mixed_batches.jsonl"
TORTURE = ROOT / "benchmarks" / "records" / "torture"
LOAD = ROOT / "benchmarks" / "records" / "serving"
PICTURE = ROOT / "docs" / "methods.svg"

# Where the label of a point stands in the panels of trained parameters and of memory, so that none covers another.
_PLACES = {
    "dora": ("above", "above"), "full": ("above", "above"), "houlsby": ("right", "right"), "ia3": ("above", "right"),
    "ladder": ("right", "left"), "lora": ("above", "above"), "lora-all": ("above", "above"), "norm": ("above", "above"),
    "parallel": ("left", "left"), "peft-lora": ("below", "above"), "peft-prefix": ("above", "right"),
    "peft-prompt": ("right", "above"), "pfeiffer": ("left", "left"), "prefix": ("left", "right"), "prompt": ("above", "below"),
    "qlora": ("right", "left"),
}  # fmt: skip
_MARKS: dict[str, Any] = {
    "above": {"dy": -11},
    "below": {"align": "left", "dx": 3, "dy": 14},
    "left": {"align": "right", "dx": -7}, "right": {"align": "left", "dx": 7},
}  # fmt: skip


@cache
def overview() -> Overview:
    """Return the tables of all tasks of both suites."""
    return Overview(tuple(table for records in RECORDS for table in summarize(RunRecords(records).load())))


def points() -> list[dict[str, Any]]:
    """Return one point for each method: its mean score with standard error, trained parameters, and memory."""
    return [
        {
            "method": one.label,
            "score": round(one.mean, 2),
            "low": round(one.mean - (one.error or 0.0), 2),
            "high": round(one.mean + (one.error or 0.0), 2),
            "trained": one.trained,
            "memory": round(one.memory, 3),
            "kind": "full fine-tuning" if one.method == "full" else "t5peft" if one.ours else "peft",
            "places": _PLACES.get(one.label, ("above", "above")),
        }
        for one in overview().methods.values()
        if one.mean is not None and one.memory is not None
    ]


def spec(data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the Vega-Lite specification of the picture.

    Long because it is one nested value.
    """
    colors = {"domain": ["full fine-tuning", "t5peft", "peft"], "range": ["#000000", "#1b6ec2", "#c2571b"]}
    panels = [
        ("trained", "trained parameters", {"type": "log", "domain": [3000, 20000000]}),
        ("memory", "peak memory of training, full fine-tuning = 1", {"domain": [0.4, 1.1]}),
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "config": {"font": "DejaVu Sans", "axis": {"gridColor": "#eeeeee"}, "legend": {"orient": "top", "title": None}},
        "data": {"values": data},
        "hconcat": [
            {
                "width": 400,
                "height": 300,
                "encoding": {
                    "x": {"field": field, "type": "quantitative", "title": title, "scale": scale},
                    "color": {"field": "kind", "type": "nominal", "scale": colors},
                },
                "layer": [
                    {
                        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.6},
                        "encoding": {
                            "y": {
                                "field": "low",
                                "type": "quantitative",
                                "scale": {"domain": [42, 66]},
                                "title": f"points, mean of {len(overview().telling)} tasks",
                            },
                            "y2": {"field": "high"},
                        },
                    },
                    {
                        "mark": {"type": "point", "filled": True, "size": 55},
                        "encoding": {"y": {"field": "score", "type": "quantitative"}},
                    },
                    *(
                        {
                            "transform": [{"filter": f"datum.places[{panel}] == '{place}'"}],
                            "mark": {"type": "text", "fontSize": 10, **mark},
                            "encoding": {
                                "y": {"field": "score", "type": "quantitative"},
                                "text": {"field": "method", "type": "nominal"},
                            },
                        }
                        for place, mark in _MARKS.items()
                    ),
                ],
            }
            for panel, (field, title, scale) in enumerate(panels)
        ],
    }


def draw() -> str:
    """Return the picture as SVG."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec(points())))


def headlines() -> str:
    """Return the headline figures as a table, each with the command that makes it."""
    from throughput_tables import against_peft, machine_of

    lora, full = (overview().methods[label] for label in ("lora-all", "full"))
    assert lora.trained
    assert full.trained
    telling = len(overview().telling)
    slow, *_, fast = [(f"{times:.1f}", machine_of(record)) for times, record in against_peft()]
    serving = [json.loads(line) for line in SERVING.read_text(encoding="utf-8").splitlines()]
    usual = [100, ["lora"], "zipf"]  # those of the command as it stands in the table
    newest = max(
        (one for one in serving if [one["settings"][name] for name in ("adapters", "methods", "spread")] == usual),
        key=lambda one: str(one["time"]),
    )
    rows = [
        [
            "quality",
            f"LoRA at all linear maps: {lora.to_full} points against full fine-tuning, over {telling} tasks and three "
            f"seeds, with {lora.trained / full.trained:.0%} of the parameters and {lora.memory:.2f} of the memory",
            "`t5peft bench --suite embedded`, `real`",
        ],
        [
            "speed",
            f"{slow[0]} times peft's LoRA with `Seq2SeqTrainer`, with the same gradients (geometric mean of six data sets; "
            f"{slow[1]}); {fast[0]} times on a faster processor ({fast[1]})",
            "`make speed`",
        ],
        [
            "serving",
            f"100 adapters on one backbone: {newest['ratios']['engine/set_adapter']:.1f} times the requests a second of peft's "
            f"`set_adapter` for each request, {newest['ratios']['engine/peft']:.1f} times its mixed batches "
            f"({newest['machine']['name']}, {newest['machine']['threads']} thread"
            f"{'' if newest['machine']['threads'] == 1 else 's'})",
            "`python benchmarks/mixed_batches.py`",
        ],
    ]
    return markdown_table(["", "figure", "command"], rows, words=3)


def reliability() -> str:
    """Return the table of what was done to runs, commands and files, how often, and what was lost."""
    rows = [
        row
        for name, make in _CAMPAIGNS.items()
        if (path := TORTURE / f"{name}.json").is_file()
        for row in make(json.loads(path.read_text(encoding="utf-8")))
    ]
    return markdown_table(["what was done", "how often", "what came of it"], rows, words=3)


def _kills(found: dict[str, Any]) -> list[list[str]]:
    what = f"`kill -9` at random moments of training, {len(found['kills_by_method'])} methods"
    how_often = f"{found['kills']} kills in {found['runs']} runs"
    return [[what, how_often, _ended(found["outcomes"], "runs resumed to the same bits")]]


def _processes(found: dict[str, Any]) -> list[list[str]]:
    outcomes = dict(found["outcomes"])
    waiting = outcomes.pop("waiting", 0)
    ended = _ended(outcomes, "runs resumed to the same bits")
    others = f"in {waiting} another process waited for more than 30 s" if waiting else "the others ended within 30 s"
    return [["`kill -9` of one of two or three processes", f"{found['kills']} kills", f"{ended}; {others}"]]


def _commands(found: dict[str, Any]) -> list[list[str]]:
    what = f"`kill -9` of {len(found['by_scenario'])} commands at their file operations and at random moments"
    how_often = f"{found['kills']:,} kills in {found['done']:,} runs, of {found['cases']:,} places"
    return [[what, how_often, _ended(found["outcomes"], "left the old or the new, and went on to the same result")]]


def _storage(found: dict[str, Any]) -> list[list[str]]:
    names = ", ".join(sorted(found["by_fault"].keys() - {"gone", "full tmpfs"}))
    what = f"{names} and a folder that goes away, at file operations of {len(found['by_scenario'])} commands"
    how_often = f"{found['done']:,} faults, of {found['cases']:,} places"
    if on_tmpfs := sum(found["by_fault"].get("full tmpfs", {}).values()):
        what += "; a tmpfs that fills up"
        how_often += f"; {on_tmpfs:,} of them on a tmpfs"
    well = "lost nothing, told the disk in one line, and went on to the same result"
    return [[what, how_often, _ended(found["outcomes"], well)]]


def _damage(found: dict[str, Any]) -> list[list[str]]:
    counts = found["outcomes"]
    what = (
        f"damaged adapters, models, checkpoints, tasks, suites, records and data files, {len(found['by_kind'])} kinds"
    )
    read = counts.get("same", 0) + counts.get("other", 0)
    wrong = f"{len(found['faults'])} read wrongly or without one"
    came = f"{counts['refused']:,} refused in one clear error, {read:,} still valid, {wrong}"
    return [[what, f"{found['inputs']:,} files", came]]


def _non_finite(found: dict[str, Any]) -> list[list[str]]:
    counts = found["outcomes"]
    stopped, harmless = counts.get("stopped", 0) + counts.get("refused", 0), counts.get("finite", 0)
    came = (
        f"{stopped} stopped or were refused, {harmless} did no harm, {len(found['faults'])} were told late or unclearly"
    )
    return [[f"NaN, infinity and overflow in {len(found['by_place'])} places", f"{found['cases']} cases", came]]


def _soak(found: dict[str, Any]) -> list[list[str]]:
    training, serving = found["training"], found["serving"]
    what = "one long training with evaluations and checkpoints; one engine that serves four adapters and the backbone"
    how_often = f"{training['steps']:,} steps; {serving['requests']:,} requests"
    grown = " and ".join(f"{part['growth_after_the_first_tenth']:+.1%}" for part in (training, serving))
    handles, threads = (training[name] + serving[name] for name in ("handles_left", "threads_left"))
    return [
        [
            what,
            how_often,
            f"resident memory {grown} after the first tenth, {handles} handles and {threads} threads left",
        ]
    ]


_CAMPAIGNS: dict[str, Callable[[dict[str, Any]], list[list[str]]]] = {
    "kills": _kills, "processes": _processes, "commands": _commands, "storage": _storage, "damage": _damage,
    "non_finite": _non_finite, "soak": _soak,
}  # fmt: skip


def _ended(outcomes: dict[str, int], well: str) -> str:
    others = ", ".join(f"{count} {name}" for name, count in outcomes.items() if name != "same")
    return f"{outcomes.get('same', 0):,} {well}" + (f"; {others}" if others else ", none did not")


def load() -> str:
    """Return the table of the server under load, by clients, adapters and distribution."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in LOAD.glob("*-clients-*.json")]
    cells.sort(key=lambda one: (one["cell"]["adapters"], one["cell"]["distribution"] != "zipf", one["cell"]["clients"]))
    rows = [
        [
            str(one["cell"]["adapters"]),
            one["cell"]["distribution"],
            str(one["cell"]["clients"]),
            f"{one['requests_per_second']:.1f}",
            *(f"{1000 * one[f'{name}_seconds']:,.0f} ms" for name in ("p50", "p95", "p99")),
            f"{one['wrong']} of {one['requests']:,}",
        ]
        for one in cells
    ]
    head = ["adapters", "asked for", "clients", "requests/s", "p50", "p95", "p99", "wrong answers"]
    return f"{markdown_table(head, rows)}\n\n{_shares(cells)}"


def _shares(cells: list[dict[str, Any]]) -> str:
    """Return the rates of several adapters as shares of that of one, the harmonic mean over the methods; all with most clients."""
    most = max(one["cell"]["clients"] for one in cells)
    rates: dict[tuple[int, str], float] = {
        (one["cell"]["adapters"], one["cell"]["distribution"]): one["requests_per_second"]
        for one in cells
        if one["cell"]["clients"] == most
    }
    alone = harmonic_mean([rate for (adapters, _), rate in rates.items() if adapters == 1])
    shares = [
        f"{adapters} adapters ({distribution}) {rate / alone:.2f}"
        for (adapters, distribution), rate in rates.items()
        if adapters > 1
    ]
    text = f"With {most} clients, requests/s as a share of those of one adapter (harmonic mean of the methods): "
    return f"{text}{', '.join(shares)}."


def engines() -> str:
    """Return the table of the engines that run exports."""
    import exports

    return exports.table(json.loads(exports.RECORD.read_text(encoding="utf-8")))


@cache
def _evidence() -> dict[str, Any]:
    return evidence(overview())


def stored_evidence() -> str:
    """Return the recommendation over all tasks as the package holds it, for suites of one task."""
    about = "# Printed by scripts/readme.py from the records of the suites embedded and real.\n"
    return about + yaml.safe_dump(_evidence(), sort_keys=False, width=120)


def recommended() -> str:
    """Return the recommendation over all tasks as a list."""
    return "\n".join(f"- {sentence}" for sentence in _evidence()["recommendation"])


if __name__ == "__main__":
    EVIDENCE.write_text(stored_evidence(), encoding="utf-8")
    fill_markers(ROOT / "benchmarks" / "RESULTS.md", {"recommendation": recommended()})
    PICTURE.write_text(draw(), encoding="utf-8")
    fill_markers(ROOT / "README.md", {"headlines": headlines(), "reliability": reliability()})
    fill_markers(ROOT / "docs" / "serving.md", {"load": load()})
    fill_markers(ROOT / "docs" / "export.md", {"engines": engines()})
    print(headlines())
