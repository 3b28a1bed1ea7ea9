"""Score a tuned adapter (or a fully tuned model) on a file or on its own task's test records."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t5peft.cli.data import add_format_arguments, check_references, load_saved_task, read_file
from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from t5peft.data import Task
    from t5peft.data.sources import Records

logger = logging.getLogger(__name__)

EPILOG = "Example: t5peft evaluate runs/reviews/adapter --data test.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft evaluate``."""
    add_model_arguments(parser)
    group = parser.add_argument_group("data")
    add_option(group, "--data")
    add_option(group, "--references")
    add_format_arguments(group)
    add_output_options(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a tuned model and its task.

    Args:
        parser: The parser of a command.
    """
    add_option(parser, "model")
    parser.add_argument("--task", help="a YAML file or a built-in task; default: the task saved with the model")


def run(args: argparse.Namespace) -> int:
    """Print every score of the task."""
    from t5peft.adapters import local_adapter
    from t5peft.data import checks
    from t5peft.data.presets import has_references
    from t5peft.evaluation import evaluate_task
    from t5peft.evaluation.scores import check_metrics

    args.model = str(local_adapter(args.model))
    task = read_task(args)
    if args.references:
        task = replace(task, references=args.references)
    records = read_file(args, args.data, "test") if args.data else own_test_records(task, args.task)
    if task.references is None and not task.verbalizer and any(has_references(record) for record in records):
        logger.warning(
            "The records have lists of references, which the task %s does not name, so it is scored with its single target. To "
            "score with the references, use --references references.",
            task.name,
        )
    check_metrics(task)
    if args.references:
        check_references(args.references, {"the data": records})
    checks.raise_all(task.name, checks.missing_references(records, task.references))
    model, tokenizer = load_tuned(args.model)
    scores = evaluate_task(model, tokenizer, task, records)
    lines = [f"{task.name}, {len(records)} records", *(f"{name:>28}  {value:.4f}" for name, value in scores.items())]
    print_results(args, {"task": task.name, "records": len(records), "scores": scores}, "\n".join(lines))
    return 0


def read_task(args: argparse.Namespace) -> Task:
    """Return the task that was asked for, or the one saved with the model.

    Args:
        args: The values of the command.

    Returns:
        The task.

    Raises:
        FileNotFoundError: No task was given and none is saved with the model.
        ValueError: The task's file is wrong.
    """
    from t5peft.data import Task

    return Task.from_yaml(args.task) if args.task else load_saved_task(args.model)


def load_tuned(folder: str | Path) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load an adapter beside its backbone, or a whole model, and the tokenizer.

    Args:
        folder: Of the adapter or the model.

    Returns:
        The model and its tokenizer.

    Raises:
        ValueError: It is an export.
    """
    from t5peft.adapters import is_adapter, load_saved, quantization_of
    from t5peft.models.backbone import load_backbone
    from t5peft.serving.exported import is_exported

    if is_exported(folder):
        raise ValueError(
            f"Got {folder}, which is an export; expected an adapter or a whole model. Use the folder that it was exported from. "
            "`t5peft predict` accepts exports."
        )
    if not is_adapter(folder):
        return load_backbone(folder)
    return load_saved(folder, quantize=quantization_of(folder))


def own_test_records(task: Task, named: str | None) -> Records:
    """Return the test records of the definition ``named``, or of the package's definition that the saved ``task`` is.

    Args:
        task: The task.
        named: The name or file of its definition; None for the package's definition of its name.

    Returns:
        The records.

    Raises:
        ValueError: There are none.
        FileNotFoundError: Their files are missing.
    """
    from t5peft.data import load_task
    from t5peft.data.definition import definition_names, read_definition

    origin = named or task.name
    if (named is None and origin not in definition_names()) or "data" not in read_definition(origin):
        raise ValueError(f"Got the task {task.name!r}, which has no records; expected --data FILE.")
    found, splits = load_task(origin)
    if found != task:
        raise ValueError(
            f"Got a saved task {task.name!r} that is not the package's task of this name; expected --data FILE, because it has no "
            f"test records, or --task {task.name} to score the model on the test records of the package."
        )
    if "test" not in splits:
        raise ValueError(
            f"Got the task {task.name!r}, which has only {', '.join(splits)} records; expected --data FILE."
        )
    return splits["test"]
