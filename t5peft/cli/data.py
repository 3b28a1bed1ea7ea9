"""The options that say which task and which records; shared by the commands that read data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t5peft.cli import names
from t5peft.compat.suggestions import did_you_mean
from t5peft.training.config import TASK_FILE

if TYPE_CHECKING:  # imported where they are used, so that ``--help`` answers at once
    from t5peft.data import Task
    from t5peft.data.sources import Records
    from t5peft.data.splits import Splits


def add_data_arguments(
    parser: argparse.ArgumentParser, splits: Sequence[str] = ("train", "validation", "test")
) -> None:
    """Add ``--task``, a file for each of ``splits``, and the options that map columns to a template."""
    parser.add_argument(
        "--task",
        required=True,
        help=f"a task of the package (support_intent, finance, ...), a YAML file, or, with --{splits[0]}, a family: "
        f"{', '.join(names.PRESETS)}",
    )
    for split in splits:
        parser.add_argument(
            f"--{split}",
            metavar="FILE",
            help=f"{split} records: CSV, TSV, JSONL, JSON, Parquet, or a folder or hub name with a split {split}; - is standard "
            "input",
        )
    add_format_arguments(parser)
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="ROLE=COLUMN",
        help="which column plays a role, e.g. text=review",
    )
    parser.add_argument("--template", help="the source over the columns, e.g. 'review: {review}'")
    parser.add_argument(
        "--target-word",
        action="append",
        default=[],
        metavar="LABEL=WORD",
        help="the word that T5 writes for a label, e.g. 1=positive",
    )
    parser.add_argument(
        "--references", metavar="COLUMN", help="a column with a list of references for each validation and test record"
    )


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how text files are written."""
    parser.add_argument("--encoding", default="utf-8", help="of text files, e.g. cp1252 (default: utf-8)")
    parser.add_argument(
        "--delimiter",
        metavar="MARK",
        type=_delimiter,
        help="between the cells of a table, e.g. ';' or tab (default: a comma for CSV, a tab for TSV)",
    )


def read_file(args: argparse.Namespace, path: str, split: str) -> Records:
    """Read the records of a file as the options of ``add_format_arguments`` say.

    Raises:
        ValueError, FileNotFoundError: See ``load_records``.
    """
    from t5peft.data import load_records

    return load_records(path, split, encoding=args.encoding, delimiter=args.delimiter)


def read_data(args: argparse.Namespace) -> tuple[Task, Splits]:
    """Return the task and its records by split; validation is held out from train where no file is given for it.

    Raises:
        ValueError: The options contradict each other, or the records do not fit the task.
        FileNotFoundError: See ``load_records`` and ``load_task``.
    """
    from t5peft.data import PRESETS, preset_task
    from t5peft.data.definition import definition_names
    from t5peft.data.files import STANDARD_INPUT
    from t5peft.data.registry import with_validation

    given = {split: getattr(args, split) for split in ("train", "validation", "test") if getattr(args, split, None)}
    if list(given.values()).count(STANDARD_INPUT) > 1:
        raise ValueError("Got '-', standard input, for several files; expected it for one.")
    splits: Splits = {split: read_file(args, path, split) for split, path in given.items()}
    if args.task in PRESETS and (splits or args.task not in definition_names()):
        if not splits:
            raise ValueError(
                f"Got the family {args.task!r} without records; expected files, by --train, --validation, --test."
            )
        task = preset_task(
            args.task,
            next(iter(splits.values())),
            columns=_pairs(args.column, "--column"),
            verbalizer=_pairs(args.target_word, "--target-word") or None,
            template=args.template,
            references=args.references,
            scored=[record for split in ("validation", "test") for record in splits.get(split, ())],
        )
    else:
        task, splits = _defined(args, splits)
    for records in splits.values() if given else ():
        task.check(records)  # before records are held out, so that an error has the rows of the file
    return task, with_validation(task, splits)


def _defined(args: argparse.Namespace, splits: Splits) -> tuple[Task, Splits]:
    from t5peft.data import PRESETS, Task, load_task
    from t5peft.data.definition import definition_names

    known = definition_names()
    if not Path(args.task).is_file() and args.task not in known:
        raise FileNotFoundError(
            f"Got no task {args.task!r}; expected a YAML file, a task of the package ({', '.join(known)}), or a family with files "
            f"({', '.join(PRESETS)}).{did_you_mean(args.task, [*PRESETS, *known])}"
        )
    options = {"--column": args.column, "--target-word": args.target_word, "--template": args.template}
    if unused := [option for option, value in options.items() if value]:
        raise ValueError(
            f"Got {', '.join(unused)} with {args.task!r}; expected a family ({', '.join(PRESETS)}) with files. Write what you want "
            "to change into a YAML file of your own."
        )
    task, splits = (Task.from_yaml(args.task), splits) if splits else load_task(args.task)
    return (replace(task, references=args.references) if args.references else task), splits


def save_task(task: Task, folder: str | Path) -> None:
    """Write ``task`` beside the adapter that was tuned on it."""
    task.to_yaml(Path(folder) / TASK_FILE)


def load_saved_task(folder: str | Path) -> Task:
    """Return the task of an adapter's folder.

    Raises:
        FileNotFoundError: The folder has none.
    """
    from t5peft.data import Task

    path = Path(folder) / TASK_FILE
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"Got no folder {folder}; expected one that `t5peft train` has written.")
    if not path.is_file() and (path.parent / "adapter" / TASK_FILE).is_file():
        raise FileNotFoundError(f"Got {folder}, the folder of a run; expected its adapter, {path.parent / 'adapter'}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"Got {folder} without {TASK_FILE}, which `t5peft train` writes beside an adapter; expected it, or --task."
        )
    return Task.from_yaml(path)


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ValueError(f"Got {option} {wrong[0]!r}; expected NAME=VALUE.")
    pairs = [text.split("=", 1) for text in texts]
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Got {option} with {', '.join(map(repr, twice))} more than once; expected each once.")
    return dict(pairs)


def _delimiter(text: str) -> str:
    return "\t" if text.lower() in ("tab", r"\t") else text
