"""The arguments that say which task and which records; shared by the commands that read data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5peft.cli import names

if TYPE_CHECKING:
    from t5peft.data import Task

Splits = dict[str, list[dict[str, Any]]]
TASK_FILE = "task.yaml"


def add_data_arguments(
    parser: argparse.ArgumentParser, splits: Sequence[str] = ("train", "validation", "test")
) -> None:
    """Add ``--task``, one file an entry of ``splits``, and what maps columns to a template."""
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
            help=f"{split} records: CSV, TSV, JSONL, JSON, Parquet, or a folder or hub name with a split {split}",
        )
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
        help="what T5 says for a label, e.g. 1=positive",
    )


def read_data(args: argparse.Namespace) -> tuple[Task, Splits]:
    """The task and its records by split; validation is held out from train where no file is given for it.

    Raises:
        ValueError, FileNotFoundError: as the loaders of :mod:`t5peft.data` say.
    """
    from t5peft.data import PRESETS, Task, load_records, load_task, preset_task
    from t5peft.data.definition import definition_names
    from t5peft.data.registry import with_validation

    given = {split: getattr(args, split) for split in ("train", "validation", "test") if getattr(args, split, None)}
    splits: Splits = {split: load_records(path, split) for split, path in given.items()}
    if args.task in PRESETS and (splits or args.task not in definition_names()):
        if not splits:
            raise ValueError(f"The family {args.task!r} needs records: give files by --train, --validation, --test.")
        task = preset_task(
            args.task,
            next(iter(splits.values())),
            columns=_pairs(args.column, "--column"),
            verbalizer=_pairs(args.target_word, "--target-word") or None,
            template=args.template,
            scored=[record for split in ("validation", "test") for record in splits.get(split, ())],
        )
    else:
        given = {"--column": args.column, "--target-word": args.target_word, "--template": args.template}
        if unused := [option for option, value in given.items() if value]:
            raise ValueError(
                f"Got {', '.join(unused)}, which only a family with files takes; {args.task!r} is no family, or has no files: "
                "write what you want to change into a YAML file of your own."
            )
        if splits:
            task = Task.from_yaml(args.task)
        else:
            task, splits = load_task(args.task)
    return task, with_validation(task, splits)


def save_task(task: Task, folder: str | Path) -> None:
    """Write ``task`` beside the adapter that was tuned on it."""
    import yaml

    fields = {name: value for name, value in asdict(task).items() if value is not None}
    fields["metrics"] = list(task.metrics)
    # escaped, not allow_unicode: that writes U+0085 as it is, which is read as a line break
    (Path(folder) / TASK_FILE).write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def load_saved_task(folder: str | Path) -> Task:
    """The task of an adapter's folder.

    Raises:
        FileNotFoundError: the folder has none.
    """
    from t5peft.data import Task

    path = Path(folder) / TASK_FILE
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; expected one that `t5peft train` has written.")
    if not path.is_file() and (path.parent / "adapter" / TASK_FILE).is_file():
        raise FileNotFoundError(f"{folder} is the folder of a run; its adapter is in {path.parent / 'adapter'}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {TASK_FILE}, which `t5peft train` writes beside an adapter; give --task."
        )
    return Task.from_yaml(path)


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ValueError(f"{option} got {wrong}; expected NAME=VALUE.")
    pairs = [text.split("=", 1) for text in texts]
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{option} names {', '.join(map(repr, twice))} more than once; expected each once.")
    return dict(pairs)
