"""The options that say which task and which records; shared by the commands that read data."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t5peft.cli import names
from t5peft.cli.names import PRESETS
from t5peft.cli.options import Group, add_option
from t5peft.compat.suggestions import did_you_mean
from t5peft.training.config import TASK_FILE

if TYPE_CHECKING:  # imported where they are used, so that ``--help`` answers at once
    from t5peft.data import Task
    from t5peft.data.sources import Records
    from t5peft.data.splits import Splits

logger = logging.getLogger(__name__)

SPLITS = {
    "train": "training records: a CSV, TSV, JSONL, JSON or Parquet file, a folder or hub name with such a split, or - for standard "
    "input",
    "validation": "validation records, in the same formats; default: a tenth of the training records",
    "test": "test records, in the same formats",
}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--task``, a file for each split, and the options that map columns to a template.

    Args:
        parser: The parser of a command.
        task_required: Whether ``--task`` must be given.
    """
    group = parser.add_argument_group("data")
    group.add_argument(
        "--task",
        required=True,
        help=f"a preset for your own files ({', '.join(names.PRESETS)}), a built-in task (support_intent, finance, ...), or a "
        "YAML file",
    )
    for split, text in SPLITS.items():
        group.add_argument(f"--{split}", metavar="FILE", help=text)
    add_column_arguments(group)


def add_column_arguments(group: Group) -> None:
    """Add the options that map columns to a template, and say how text files are written.

    Args:
        group: A parser, or a group of its help.
    """
    lengths = ("--max-source-length", "--max-target-length")
    for name in ("--column", "--template", "--target-word", "--references", *lengths):
        add_option(group, name)
    add_format_arguments(group)


def add_format_arguments(group: Group) -> None:
    """Add the options that say how text files are written.

    Args:
        group: A parser, or a group of its help.
    """
    add_option(group, "--encoding")
    group.add_argument(
        "--delimiter",
        metavar="MARK",
        type=_delimiter,
        help="the delimiter of table cells, e.g. ';' or tab; default: a comma for CSV, a tab for TSV",
    )


def read_file(args: argparse.Namespace, path: str, split: str) -> Records:
    """Read the records of a file as the options of ``add_format_arguments`` say.

    Raises:
        ValueError, FileNotFoundError: See ``load_records``.
    """
    from t5peft.data import load_records

    return load_records(path, split, encoding=args.encoding, delimiter=args.delimiter)


def read_splits(args: argparse.Namespace, given: Mapping[str, str]) -> Splits:
    """Read the records of each split, and warn of a file that is given for several.

    Args:
        args: The values of the command.
        given: File by split.

    Returns:
        The records by split.

    Raises:
        ValueError, FileNotFoundError: See ``load_records``.
    """
    files = {split: Path(path).resolve() for split, path in given.items() if Path(path).is_file()}
    if same := [split for split, path in files.items() if list(files.values()).count(path) > 1]:
        logger.warning("The splits %s are the same file, so scores are not those of new records.", ", ".join(same))
    return {split: read_file(args, path, split) for split, path in given.items()}


def read_data(args: argparse.Namespace) -> tuple[Task, Splits]:
    """Return the task and its records by split; validation is held out from train where no file is given for it.

    Raises:
        ValueError: The options contradict each other, or the records do not fit the task.
        FileNotFoundError: See ``load_records`` and ``load_task``.
    """
    from t5peft.data import preset_task
    from t5peft.data.definition import definition_names
    from t5peft.data.files import STANDARD_INPUT
    from t5peft.data.registry import with_validation
    from t5peft.deprecated import current_preset

    given = {split: getattr(args, split) for split in ("train", "validation", "test") if getattr(args, split, None)}
    if list(given.values()).count(STANDARD_INPUT) > 1:
        raise ValueError("Got '-', standard input, for several files; expected it for only one.")
    splits = read_splits(args, given)
    args.task = args.task and current_preset(args.task)
    if args.task in PRESETS and (splits or args.task not in definition_names()):
        if not splits:
            raise ValueError(
                f"Got the preset {args.task!r} without records; expected files, with --train, --validation, --test."
            )
        task = preset_task(
            args.task,
            next(iter(splits.values())),
            columns=pairs_of(args.column, "--column"),
            verbalizer=pairs_of(args.target_word, "--target-word") or None,
            template=args.template,
            references=args.references,
            scored=[record for split in ("validation", "test") for record in splits.get(split, ())],
        )
    else:
        task, splits = _defined(args, splits)
    for records in splits.values() if given else ():
        task.check(records)  # before records are held out, so that an error has the rows of the file
    splits = with_validation(task, splits)
    if args.references:
        check_references(args.references, {name: splits[name] for name in ("validation", "test") if name in splits})
    return with_lengths(task, args), splits


def check_references(column: str, scored: Splits) -> None:
    """Raise an error where no record that is scored has the references that ``--references`` names.

    Args:
        column: The column of references.
        scored: The records that are scored, by split.

    Raises:
        ValueError: No record has the column.
    """
    from t5peft.data.template import texts_of

    if not any(texts_of(record.get(column)) for records in scored.values() for record in records):
        there = ", ".join(map(repr, next((records[0] for records in scored.values() if records), ()))) or "none"
        raise ValueError(
            f"Got --references {column}, of which no record of {' and '.join(scored)} has any; expected one of the columns "
            f"{there}. Correct the name, or leave it out to score with the single target."
        )


def with_lengths(task: Task, args: argparse.Namespace) -> Task:
    """Return ``task`` with the lengths that the options give.

    Args:
        task: The task.
        args: The values of the command.

    Returns:
        The task.
    """
    lengths = {name: getattr(args, name, None) for name in ("max_source_length", "max_target_length")}
    return replace(task, **{name: length for name, length in lengths.items() if length is not None})


def _defined(args: argparse.Namespace, splits: Splits) -> tuple[Task, Splits]:
    from t5peft.data import Task, load_task
    from t5peft.data.definition import definition_names

    known = definition_names()
    if not Path(args.task).is_file() and args.task not in known:
        raise _no_such_task(args.task, known)
    options = {"--column": args.column, "--target-word": args.target_word, "--template": args.template}
    if unused := [option for option, value in options.items() if value]:
        raise ValueError(
            f"Got {', '.join(unused)} with {args.task!r}; expected a preset ({', '.join(PRESETS)}) with files. Put your "
            "changes into your own YAML file."
        )
    task, splits = (Task.from_yaml(args.task), splits) if splits else load_task(args.task)
    return (replace(task, references=args.references) if args.references else task), splits


def _no_such_task(name: str, known: Sequence[str]) -> FileNotFoundError:
    """Return an error with the nearest name, or with all names where none is near."""
    if meant := did_you_mean(name, [*PRESETS, *known]):
        return FileNotFoundError(
            f"Got no task {name!r}; expected a preset with files, a built-in task, or a YAML file.{meant}"
        )
    return FileNotFoundError(
        f"Got no task {name!r}; expected a preset with files ({', '.join(PRESETS)}), a built-in task "
        f"({', '.join(known)}), or a YAML file."
    )


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
        raise FileNotFoundError(f"Got no folder {folder}; expected a folder from `t5peft train`.")
    if not path.is_file() and (path.parent / "adapter" / TASK_FILE).is_file():
        raise FileNotFoundError(f"Got {folder}, the folder of a run; expected its adapter, {path.parent / 'adapter'}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"Got {folder} without {TASK_FILE}, which `t5peft train` saves with an adapter; expected it, or --task."
        )
    return Task.from_yaml(path)


def pairs_of(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return the pairs of words NAME=VALUE.

    Args:
        texts: The words.
        option: The option that they came by.

    Returns:
        Value by name.

    Raises:
        ValueError: A word is not NAME=VALUE, or a name came twice.
    """
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
