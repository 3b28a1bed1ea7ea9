"""Score a tuned adapter (or a fully tuned model) on a file or on its own task's test records."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters.checkpoint import CONFIG, quantization_of
from t5peft.adapters.tokens import load_saved
from t5peft.cli.data import add_format_arguments, load_saved_task, read_file
from t5peft.data import Task, load_task
from t5peft.data.definition import definition_names, read_definition
from t5peft.data.presets import has_references
from t5peft.evaluation import evaluate_task
from t5peft.models.backbone import load_backbone

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft evaluate``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="records with their targets, the test split of a folder or hub name, - for standard input; the task's own test "
        "records by default",
    )
    parser.add_argument(
        "--references",
        metavar="COLUMN",
        help="a column with a list of references for each record; the task's by default",
    )
    add_format_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a tuned model and its task."""
    parser.add_argument("model", metavar="FOLDER", help="an adapter, as `t5peft train` saves it, or a whole model")
    parser.add_argument("--task", help="a task of the package or a YAML file; the one saved with the model by default")


def run(args: argparse.Namespace) -> int:
    """Print every score of the task."""
    task = read_task(args)
    if args.references:
        task = replace(task, references=args.references)
    records = read_file(args, args.data, "test") if args.data else _test_records(task, args.task)
    if task.references is None and not task.verbalizer and any(has_references(record) for record in records):
        logger.warning(
            "task %s: the records have lists of references, which it does not name, so that it is scored by its one target; give "
            "--references references to score by them",
            task.name,
        )
    model, tokenizer = load_tuned(args.model)
    scores = evaluate_task(model, tokenizer, task, records)
    print(f"{task.name}, {len(records)} records")
    for name, value in scores.items():
        print(f"{name:>28}  {value:.4f}")
    return 0


def read_task(args: argparse.Namespace) -> Task:
    """The task that was asked for, or the one saved with the model."""
    return Task.from_yaml(args.task) if args.task else load_saved_task(args.model)


def load_tuned(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An adapter beside its backbone, or a whole model, and the tokenizer."""
    if not (Path(folder) / CONFIG).is_file():
        return load_backbone(folder)
    return load_saved(folder, quantize=quantization_of(folder))


def _test_records(task: Task, named: str | None) -> list[dict[str, Any]]:
    """Test records of the definition ``named``, or of the package's definition that the saved ``task`` is."""
    origin = named or task.name
    if (named is None and origin not in definition_names()) or "data" not in read_definition(origin):
        raise ValueError(f"The task {task.name!r} brings no records of its own; give --data FILE.")
    found, splits = load_task(origin)
    if found != task:
        raise ValueError(
            f"The task saved with the model is not the package's task {task.name!r}, only called so, and its test records are "
            f"others; give --data FILE, or --task {task.name} to score it on those of the package."
        )
    if "test" not in splits:
        raise ValueError(f"The task {task.name!r} brings no test records, only {', '.join(splits)}; give --data FILE.")
    return splits["test"]
