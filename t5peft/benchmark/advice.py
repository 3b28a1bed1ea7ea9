"""The recommendation in words, computed from the rows: which method to take for your memory, time and disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.peers import is_peer
from t5peft.benchmark.statistics import MeanStd
from t5peft.benchmark.summary import Row, TaskTable, against_peer, difference
from t5peft.planning.units import bytes_text, seconds_text


def advice(table: TaskTable) -> list[str]:
    """Return sentences for one task: which method scores best, which are not clearly worse, and which of these cost least.

    Only methods of this library are recommended that are clearly above the strongest baseline. "Not clearly worse" means
    that the 95 % interval of the paired difference to full fine-tuning is not below zero. If full fine-tuning did not
    finish, the best method takes its place. A task that does not tell the methods apart gives no recommendation.

    Args:
        table: The rows of the task.
    """
    rows = [
        row for row in table.rows if row.test is not None and not is_peer(row.method) and not is_baseline(row.method)
    ]
    if not rows:
        of_whom = " of a method of this library" if any(row.test for row in table.rows) else ""
        return [f"No run{of_whom} finished, so there is no recommendation; the table gives the reasons."]
    if table.tells_nothing:
        return [f"This task does not tell the methods apart: {table.tells_nothing}. There is no recommendation."]
    best = max(rows, key=lambda row: row.test.mean)  # type: ignore[union-attr]
    sentences = [f"Highest of these methods on the test split: {best.label} with {_score(best)} {table.metric}."]
    full = next((row for row in rows if row.method == "full"), None)
    reference = full or best
    compared = [(row, row.difference if full else difference((row, best))) for row in rows if row is not reference]
    apart = [row for row, found in compared if found is None]
    worse = [(row, found) for row, found in compared if found and found.high < 0 and row is not best]
    low = [row for row in rows if row is not reference and not _above_baseline(row, table)]
    good = [row for row in rows if row not in (*apart, *low, *(row for row, _ in worse))]
    adapters = [row for row in good if row.method != "full"]
    if full is not None and len(rows) > 1 and all(_same_as(row, full) for row in rows):
        sentences = [
            f"Every method scores the same on every test example ({_score(best)} {table.metric}); only their costs differ."
        ]
    elif full is not None and (adapters or (len(rows) > 1 and not apart)):
        sentences.append(_compared(adapters, full))
    if adapters:
        sentences += _cheapest(adapters, full)
    name = "full fine-tuning" if full else best.label
    if worse:
        names = ", ".join(f"{row.label} ({found.mean:+.1f})" for row, found in worse)
        sentences.append(f"Clearly below {name} here: {names}.")
    if low and table.strongest_baseline is not None:
        names = ", ".join(row.label for row in low)
        sentences.append(f"Not clearly above {table.strongest_baseline.label}, which needs no training: {names}.")
    if apart:
        names = ", ".join(row.label for row in apart)
        sentences.append(f"Not compared, because {name} has no run with their seeds: {names}.")
    if pairs := [(ours, found) for ours, theirs in against_peer(table) if (found := difference((ours, theirs)))]:
        names = ", ".join(f"{ours.label} {found}" for ours, found in pairs)
        sentences.append(f"Against peft's own methods under Seq2SeqTrainer: {names}.")
    if all(row.test.n == 1 for row in rows):  # type: ignore[union-attr]
        sentences.append(
            "There is one seed, so the intervals cover the chance of the test examples, not that of training."
        )
    return sentences


def _same_as(row: Row, full: Row) -> bool:
    alike = row.difference is not None and row.difference.low == row.difference.high == 0
    return row is full or (alike and row.test == full.test)


def _above_baseline(row: Row, table: TaskTable) -> bool:
    baseline = table.strongest_baseline
    found = None if baseline is None else difference((row, baseline))
    return found is None or found.low > 0


def _compared(adapters: Sequence[Row], full: Row) -> str:
    if not adapters:
        return f"Every adapter is clearly below full fine-tuning ({_score(full)}): take full fine-tuning if it fits."
    names = ", ".join(row.label for row in adapters)
    return f"Not clearly worse than full fine-tuning ({_score(full)}): {names}."


def _cheapest(adapters: Sequence[Row], full: Row | None) -> list[str]:
    """Name the cheapest method by memory, time and disk; one sentence each."""
    saving: list[tuple[str, Callable[[Row], float], Callable[[float], str], str]] = [
        ("Least memory", lambda row: _mean(row.peak_bytes), bytes_text, "at the peak"),
        ("Least time", lambda row: _mean(row.step_seconds), seconds_text, "a step"),
        ("Smallest file", lambda row: row.stored_bytes or 0, bytes_text, "a task"),
    ]
    sentences = []
    for goal, figure, text, unit in saving:
        measured = [row for row in adapters if figure(row)]
        if not measured:
            continue
        least = min(measured, key=figure)
        reference = figure(full) if full else 0.0
        share = f" ({figure(least) / reference:.0%} of full fine-tuning)" if reference else ""
        if reference and figure(least) >= reference:
            sentences.append(
                f"{goal}: none of these saves any; {least.label} takes {text(figure(least))} {unit}{share}."
            )
            continue
        sentences.append(f"{goal}: {least.label}, {text(figure(least))} {unit}{share}.")
    return sentences


def _mean(value: MeanStd | None) -> float:
    """Return the mean, or 0 for a figure that was not measured."""
    return value.mean if value else 0.0


def _score(row: Row) -> str:
    return row.test.text(1, row.factor) if row.test else "no score"
