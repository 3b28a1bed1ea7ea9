"""From a table to a tuned model in a given time: tell the task, choose method and rate, compare with baselines, report."""

from __future__ import annotations

import hashlib
import json
import random
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from t5peft.cli.auto_report import Baseline, baselines_of, correlation_of_numbers, interval_of, write_report
from t5peft.cli.auto_search import Halving
from t5peft.cli.auto_task import Rows, Wording, guess_task, round_numbers
from t5peft.cli.auto_trials import Trial, TrialLog, fields_of
from t5peft.cli.evaluate import load_tuned
from t5peft.compat.lock import hold_folder
from t5peft.compat.memory import available_bytes
from t5peft.data import Task
from t5peft.data.lint import LintReport, lint
from t5peft.data.registry import with_validation
from t5peft.data.sources import Records, part_of, read_records
from t5peft.data.splits import Splits, fingerprint_of_data, hold_out
from t5peft.evaluation.scores import EvaluationResult, EvaluationSet
from t5peft.methods import METHODS
from t5peft.models.backbone import load_tokenizer
from t5peft.models.folders import ensure_output
from t5peft.planning.job import Job
from t5peft.planning.plan import largest_micro_batch, step_bytes
from t5peft.planning.units import bytes_text
from t5peft.training.card import card_scores, write_run_card
from t5peft.training.config import TASK_FILE, TrainConfig

CANDIDATES = ("lora-all", "full", "lora")
"""The methods that are tried, the most promising first (benchmarks/RESULTS.md)."""
MOST_VALIDATED, MOST_TESTED = 300, 1000  # records that are scored
REPORT, RESULTS, TRIALS = "report.md", "results.json", "trials.jsonl"


@dataclass(frozen=True)
class AutoResult:
    """The result of ``auto``.

    Attributes:
        folder: The adapter, or the model where full fine-tuning was best.
        report: The Markdown file with trials, reasons and baselines.
        method: The method.
        learning_rate: Its learning rate.
        scores: On the test records.
        results: All figures, as in ``results.json``.
        commands: What to do next, for a shell.
    """

    folder: Path
    report: Path
    method: str
    learning_rate: float
    scores: Mapping[str, float]
    results: Mapping[str, Any]
    commands: tuple[str, ...]


def auto(
    train: Rows,
    output: str | Path,
    *,
    test: Rows | None = None,
    validation: Rows | None = None,
    task: Task | str | None = None,
    columns: Mapping[str, str] | None = None,
    target: str | None = None,
    wording: Wording | None = None,
    backbone: str = "mini",
    methods: Sequence[str] | None = None,
    minutes: float = 30.0,
    memory_bytes: int | None = None,
    config: TrainConfig | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = print,
) -> AutoResult:
    """Choose a method and its learning rate for the records, tune a model, and write it with a model card and a report.

    To resume an interrupted search, call this again with the same data and output.

    Long because it is the whole way in its order, each step of which needs what those before it found.

    Args:
        train: The training records. Validation and test records are held out from them unless they are given.
        output: The output folder.
        test: The test records.
        validation: The validation records.
        task: A task, or a key of ``PRESETS``; None infers it from the columns.
        columns: The column of each role, for roles that cannot be found by name.
        target: The column to predict, if only this is unclear.
        wording: Known parts of the task, such as its template, if ``task`` is None or a key.
        backbone: ``"mini"``, a hub name or a folder.
        methods: Names of methods to try; None for the methods that are often best.
        minutes: The time limit for all trials.
        memory_bytes: The memory of the device; None for the free memory.
        config: Settings that all trials share, such as the batch size and the seed.
        overwrite: Whether to start again if the folder contains another search.
        tell: A function that gets each line of progress.

    Returns:
        The model's folder, its scores, and commands for the next steps.

    Raises:
        FolderInUseError: Another run is using ``output``.
        ValueError: The task is not clear from the columns, records do not fit it, or no method fits into the memory.
    """
    folder = Path(output)
    with hold_folder(folder):
        ensure_output(folder, "a search of `t5peft auto`")
        given = {"train": train, "validation": validation, "test": test}
        splits: Splits = {split: read_records(rows) for split, rows in given.items() if rows is not None}
        if not splits["train"]:
            raise ValueError("Got no training records; expected some, with a column to predict.")
        task, splits, reasons = prepare(task, splits, columns or {}, target, wording or Wording())
        config = replace(config or TrainConfig(), backbone=backbone)
        began = time.monotonic()
        if overwrite:
            for name in (REPORT, RESULTS, TRIALS):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / ".trials", ignore_errors=True)
        tokenizer = load_tokenizer(config.backbone)
        checked = lint(task, splits["train"], tokenizer)
        if checked.problems:
            raise ValueError("Got records that cannot be trained on:\n" + "\n".join(checked.problems))
        reasons = [*reasons, *(f"Lint: {advice}." for advice in checked.advice)]
        fitting, dropped = fitting_methods(config, checked, methods, memory_bytes)
        reasons += dropped
        identity = {
            "data": fingerprint_of_data(task, splits),
            "backbone": config.backbone,
            "methods": list(fitting),
            "config": hashlib.sha256(repr(config).encode()).hexdigest()[:16],
        }
        for line in reasons:
            tell(line)
        log = TrialLog(folder / TRIALS, identity)
        if log.trials:
            tell(f"{len(log.trials)} trials of an interrupted search were found; resuming.")
        searched = {split: splits[split] for split in ("train", "validation")}
        halving = Halving(task, searched, config, fitting, folder / ".trials", log, tell)
        best = halving.run(60 * minutes - (time.monotonic() - began if not log.trials else 0.0))
        saved = _keep(halving.saved(best), folder / ("adapter" if METHODS[best.arm.method].has_adapter else "model"))
        task.to_yaml(saved / TASK_FILE)
        model, tokenizer = load_tuned(saved)
        examples = EvaluationSet(task, splits["test"], tokenizer)
        result = examples.score(model)
        result.scores.update(correlation_of_numbers(model, examples))
        baselines = baselines_of(task, splits["train"], examples, result.per_example)
        commands = _commands(folder, saved, config.backbone, task, splits)
        write_report(folder / REPORT, halving, best, result, baselines, reasons, commands)
        results = _results(halving, best, result, baselines, saved, commands)
        if METHODS[best.arm.method].has_adapter:
            tuned = replace(config, learning_rate=best.arm.learning_rate, steps=best.steps)
            write_run_card(saved, task, splits, tuned, card_scores("test", examples, result, splits["train"]))
        (folder / RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")
        shutil.rmtree(folder / ".trials", ignore_errors=True)
        return AutoResult(
            saved, folder / REPORT, best.arm.method, best.arm.learning_rate, result.scores, results, tuple(commands)
        )


def prepare(
    task: Task | str | None,
    splits: Splits,
    columns: Mapping[str, str],
    target: str | None,
    wording: Wording = Wording(),  # noqa: B008  # frozen
) -> tuple[Task, Splits, list[str]]:
    """Return the task, its records with validation and test held out, and sentences that say how they came about.

    Args:
        task: A task, the name of a family, or None to tell it from the columns.
        splits: Records by split.
        columns: Role to column.
        target: The column that is predicted.
        wording: What is known of the task.

    Returns:
        The task, the splits and the reasons.

    Raises:
        ValueError: The columns do not tell the task, or records do not fit it.
    """
    reasons: list[str] = []
    scored = [record for split in ("validation", "test") for record in splits.get(split, ())]
    if isinstance(task, str):
        task = wording.task(task, splits["train"], columns, scored=scored)
        reasons.append("The task was given.")
    elif task is None:
        guess = guess_task(splits["train"], columns=columns, target=target, template=wording.template)
        reasons += guess.reasons
        if guess.step is not None:
            goal = list(guess.columns.values())[-1]
            splits = {split: part_of(rows, round_numbers(rows, goal, guess.step)) for split, rows in splits.items()}
        task = wording.task(guess.family, splits["train"], guess.columns, guess.template, scored)
    for rows in splits.values():
        task.check(rows)
    if "test" not in splits:
        rest, held = hold_out(splits["train"], task.source, share=0.15, at_most=MOST_TESTED)
        splits = {**splits, "train": rest, "test": held}
        reasons.append(f"{len(held)} test records were held out. None of their sources is in the training records.")
    splits = with_validation(task, splits)
    if len(splits["test"]) > MOST_TESTED:
        splits = {**splits, "test": _sample(splits["test"], MOST_TESTED)}
        reasons.append(f"{MOST_TESTED} test records were sampled for the scores.")
    if len(splits["validation"]) > MOST_VALIDATED:
        splits = {**splits, "validation": _sample(splits["validation"], MOST_VALIDATED)}
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    return task, splits, [f"Records: {counts}.", *reasons, f"Source: `{task.template}`; target: `{task.target}`."]


def _sample(rows: Records, count: int) -> Records:
    return part_of(rows, random.Random(0).sample(rows, count))


def fitting_methods(
    config: TrainConfig, checked: LintReport, methods: Sequence[str] | None, memory_bytes: int | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the methods that fit into the memory, with what each has to change for it, and why others do not.

    Args:
        config: What all trials share.
        checked: The lint of the training records, for their lengths.
        methods: Names of methods; None for ``CANDIDATES``, with ``qlora`` where ``lora-all`` does not fit.
        memory_bytes: The memory; None takes what the device has.

    Returns:
        Changes of the config by method, and a sentence for each method that is left out.

    Raises:
        ValueError: A method is unknown, or none fits.
    """
    if unknown := [name for name in methods or () if name not in METHODS]:
        raise ValueError(f"Got methods {', '.join(unknown)}; expected some of {', '.join(METHODS)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = memory_bytes or available_bytes(torch.device(device))
    source, target = (min(side.length_of(1.0), side.limit) for side in (checked.sources, checked.targets))
    fitting: dict[str, dict[str, Any]] = {}
    dropped = []
    for name in methods or (*CANDIDATES, "qlora"):
        if name == "qlora" and methods is None and "lora-all" in fitting:
            continue
        batch = config.batch_size
        job = Job(config.backbone, name, source, target, batch, batch, device=device, quantize=config.quantize)
        changes = _changes(job, memory)
        if changes is None:
            least = step_bytes(replace(job, micro_batch=1, checkpointing=True)).needed_bytes
            dropped.append(f"{name} is left out: it needs {bytes_text(least)}, and there are {bytes_text(memory)}.")
        else:
            fitting[name] = changes
    if not fitting:
        raise ValueError(
            f"Got {bytes_text(memory)} of memory, in which no method fits ({' '.join(dropped)}); expected more. Use a smaller "
            "backbone, or shorter sources (--max-source-length)."
        )
    return fitting, dropped


def _changes(job: Job, memory: int) -> dict[str, Any] | None:
    """Return what a run has to change to fit; None where nothing makes it fit."""
    for checkpointing in (False, True):
        tried = replace(job, checkpointing=checkpointing)
        changed = {"gradient_checkpointing": True} if checkpointing else {}
        if step_bytes(tried).needed_bytes <= memory:
            return changed
        if (smaller := largest_micro_batch(tried, memory)) is not None:
            tokens = smaller.job.micro_batch * (job.source_tokens + job.target_tokens)
            return {**changed, "training_options": {"tokens_per_micro_batch": tokens}}
    return None


def _keep(saved: Path, place: Path) -> Path:
    """Copy the finalist's model to its place, the whole folder or nothing of it."""
    staged = place.with_name(f".{place.name}-new")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(saved, staged)
    for old in (place.with_name("adapter"), place.with_name("model")):
        shutil.rmtree(old, ignore_errors=True)
    return staged.rename(place)


def _commands(folder: Path, saved: Path, backbone: str, task: Task, splits: Splits) -> list[str]:
    """Return the commands that serve, predict and evaluate; the test records are written for the last."""
    test = folder / "test.jsonl"
    test.write_text(
        "".join(json.dumps(dict(record), ensure_ascii=False, default=str) + "\n" for record in splits["test"]),
        encoding="utf-8",
    )
    base = backbone if saved.name == "adapter" else str(saved)
    given = ["--text", "..."] if len(task.columns) == 1 else ["--data", "new.csv"]
    return [
        shlex.join(["t5peft", "serve", "--backbone", base, "--adapters", str(folder)]),
        shlex.join(["t5peft", "predict", str(saved), *given]),
        shlex.join(["t5peft", "evaluate", str(saved), "--data", str(test)]),
    ]


def _results(
    search: Halving,
    best: Trial,
    result: EvaluationResult,
    baselines: Sequence[Baseline],
    saved: Path,
    commands: Sequence[str],
) -> dict[str, Any]:
    return {
        "task": search.task.name,
        "output": str(saved),
        "best": fields_of(best),
        "test": {
            "scores": result.scores,
            "metric": result.example_metric,
            "interval": asdict(interval_of(result.per_example)),
            "records": len(result.per_example),
        },
        "baselines": {
            one.name: {"score": asdict(one.score), "difference": asdict(one.difference)} for one in baselines
        },
        "trials": [fields_of(trial) for trial in search.log.trials.values()],
        "commands": list(commands),
    }
