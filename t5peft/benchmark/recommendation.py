"""Which method to take, over all tasks that can tell: by memory, time, file and number of training examples.

A method is recommended only where its interval supports it. It stands in for full fine-tuning if the 95 % interval of its
difference excludes a loss of more than ``MARGIN`` points. Below its cost, the cheapest method is named that is not clearly
worse than the best one there, with what it loses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from t5peft.benchmark.overview import Overall, Overview
from t5peft.benchmark.statistics import Difference
from t5peft.benchmark.summary import TaskTable, difference

MARGIN = 3.0
"""The loss in points that a method must exclude to stand in for full fine-tuning."""
FEW_EXAMPLES = 1000
SAVES = 0.95
"""A method is cheaper than another one if it costs less than this share."""
EVIDENCE = Path(__file__).with_name("evidence.yaml")

_COSTS: tuple[tuple[str, Callable[[Overall], float | None]], ...] = (
    ("memory", lambda one: one.memory),
    ("step time", lambda one: one.time),
    ("file", lambda one: one.file),
)


def recommendation(overview: Overview) -> list[str]:
    """Return the recommendation in sentences, each with its figures and interval.

    Args:
        overview: All tasks of one backbone.
    """
    telling = overview.telling
    if not telling:
        return ["No task can tell the methods apart, so there is no recommendation."]
    full = overview.methods.get("full")
    if full is None or full.mean is None:
        return ["Full fine-tuning did not finish on every task that can tell, so there is no recommendation."]
    compared = {label: one.to_full for label, one in overview.methods.items() if one.ours and one.to_full is not None}
    if not compared:
        return ["No adapter finished on every task that can tell, so there is no recommendation."]
    seeds = min(overview.methods[label].seeds(table.task for table in telling) for label in compared)
    where = f"over {_count(len(telling), 'task')} and {_count(seeds, 'seed')}"
    taken = _stands_in(overview, compared, telling)
    sentences = [_taken(overview.methods[taken], where) if taken else _none_stands_in(compared, where)]
    others = [label for label, found in compared.items() if found.low >= -MARGIN and label != taken]
    if others:
        named = ", ".join(f"{label} {compared[label]}" for label in others)
        sentences.append(f"A loss of more than {MARGIN:g} points is excluded for these too: {named}.")
    sentences += _by_cost(overview, compared, overview.methods[taken] if taken else full)
    sentences += _by_examples(overview, list(compared))
    if seeds == 1:
        sentences.append("One seed: the intervals cover the chance of the test examples, not that of training.")
    return sentences


def _stands_in(overview: Overview, compared: Mapping[str, Difference], tables: Sequence[TaskTable]) -> str | None:
    """Return the method that takes least memory of those that exclude a loss of more than the margin."""
    good = [label for label, found in compared.items() if found.low >= -MARGIN]
    if not good:
        return None
    best = max(good, key=lambda label: compared[label].low)
    level = [label for label in good if label == best or not _clearly_below(overview, label, best, tables)]
    return min(level, key=lambda label: (overview.methods[label].memory or math.inf, -compared[label].low))


def _taken(one: Overall, where: str) -> str:
    costs = [f"{cost:.0%} of its {name}" for name, of in _COSTS if (cost := of(one)) is not None]
    at = f" It takes {', '.join(costs)}." if costs else ""
    return (
        f"Take {one.label}: {one.to_full} points against full fine-tuning, {where}. The interval excludes a loss of more than "
        f"{MARGIN:g} points.{at}"
    )


def _none_stands_in(compared: Mapping[str, Difference], where: str) -> str:
    nearest = max(compared, key=lambda label: compared[label].mean)
    return (
        f"Take full fine-tuning if it fits: {where}, no adapter's interval excludes a loss of more than {MARGIN:g} points. The "
        f"nearest is {nearest} with {compared[nearest]}."
    )


def _by_cost(overview: Overview, compared: Mapping[str, Difference], taken: Overall) -> list[str]:
    sentences = []
    for name, cost in _COSTS:
        most = cost(taken)
        cheaper = [
            one
            for label in compared
            if most and (found := cost(one := overview.methods[label])) and found < SAVES * most
        ]
        if not cheaper:
            continue
        best = max(cheaper, key=lambda one: compared[one.label].mean).label
        level = [
            one
            for one in cheaper
            if one.label == best or not _clearly_below(overview, one.label, best, overview.telling)
        ]
        least = min(level, key=lambda one: cost(one) or 0.0)
        sentences.append(
            f"If {most:.0%} of the {name} is too much: {least.label} takes {cost(least):.0%}, at {compared[least.label]} points."
        )
    return sentences


def _clearly_below(overview: Overview, label: str, other: str, tables: Sequence[TaskTable]) -> bool:
    rows = (overview.rows_of(one, tables) for one in (label, other))
    found = difference(*zip(*rows, strict=True))
    return found is None or found.high < 0


def _by_examples(overview: Overview, labels: Sequence[str]) -> list[str]:
    """Return a sentence for tasks with few training examples and one for the others, if there are both."""
    few = [table for table in overview.telling if _examples(table) < FEW_EXAMPLES]
    many = [table for table in overview.telling if _examples(table) >= FEW_EXAMPLES]
    sentences = []
    for tables, size in ((few, "fewer than"), (many, "at least")) if few and many else ():
        compared = {label: found for label in labels if (found := overview.to_full(label, tables))}
        taken = _stands_in(overview, compared, tables)
        nearest = max(compared, key=lambda label: compared[label].low)
        says = (
            f"take {taken}, at {compared[taken]} points"
            if taken
            else f"take full fine-tuning if it fits; the nearest adapter is {nearest}, at {compared[nearest]} points"
        )
        tasks = ", ".join(table.task for table in tables)
        sentences.append(f"With {size} {FEW_EXAMPLES:,} training examples ({tasks}): {says}.")
    return sentences


def _examples(table: TaskTable) -> int:
    return int(table.conditions["examples"].get("train", 0))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def evidence(overview: Overview) -> dict[str, Any]:
    """Return what a small suite cites: the recommendation of a large one, and the figures behind it.

    Args:
        overview: The large suite's.
    """
    return {
        "backbone_fingerprint": overview.tables[0].conditions["backbone_fingerprint"],
        "tasks": [table.task for table in overview.telling],
        "left_out": {table.task: table.tells_nothing for table in overview.tables if table.tells_nothing},
        "recommendation": recommendation(overview),
        "methods": {
            one.label: {
                **{name: round(getattr(one.to_full, name), 2) for name in ("mean", "low", "high")},
                **{name: round(value, 3) for name in ("memory", "time") if (value := getattr(one, name))},
                "trained": one.trained,
            }
            for one in overview.methods.values()
            if one.ours and one.to_full is not None
        },
    }


def cited(tables: Sequence[TaskTable]) -> list[str]:
    """Return what to take over all tasks, as a sentence for a suite that has too few tasks to say so itself.

    Args:
        tables: Those of the suite. Their backbone must be that of the recommendation.
    """
    found = yaml.safe_load(EVIDENCE.read_text(encoding="utf-8"))
    backbones = {table.conditions["backbone_fingerprint"] for table in tables}
    if len(tables) > 1 or backbones != {found["backbone_fingerprint"]}:
        return []
    return [
        f"One task does not decide for others. Over all tasks (benchmarks/RESULTS.md): {found['recommendation'][0]}"
    ]
