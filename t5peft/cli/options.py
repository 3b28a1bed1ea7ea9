"""The options that several commands share: each has one name, meaning, type and default.

``tests/cli/test_vocabulary.py`` compares the options of all commands.
"""

from __future__ import annotations

import argparse
from typing import Any

from t5peft.cli import names

Group = argparse.ArgumentParser | argparse._ArgumentGroup


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 24GB.

    Args:
        text: The value of ``--memory``.

    Returns:
        The bytes.

    Raises:
        ArgumentTypeError: It is not a size.
    """
    from t5peft.planning.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_BACKBONE = "mini, a hub name such as google/flan-t5-base, or a folder"
OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"metavar": "FOLDER", "help": "an adapter from `t5peft train`, a whole model, or a name on the hub"},
    "--backbone": {"default": "mini", "metavar": "NAME", "help": _BACKBONE},
    "--device": {"choices": ("cpu", "cuda"), "help": "the device to run on; default: cuda if available"},
    "--encoding": {"default": "utf-8", "help": "the encoding of text files, e.g. cp1252"},
    "--memory": {
        "metavar": "SIZE",
        "type": memory_size,
        "help": "the memory of the device, such as 8GB; default: no limit",
    },
    "--output": {"required": True, "metavar": "FOLDER", "help": "the folder to write results to"},
    "--overwrite": {"action": "store_true", "help": "replace an earlier result in --output"},
    "--resume": {"action": "store_true", "help": "resume from the newest complete checkpoint in --output"},
    "--references": {
        "metavar": "COLUMN",
        "help": "a column with a list of references for each record; default: the task's",
    },
    "--template": {"help": "the source text with column names in braces, e.g. 'review: {review}'"},
    "--column": {
        "action": "append",
        "default": [],
        "metavar": "ROLE=COLUMN",
        "help": "the column for a role, e.g. text=review; default: found by common names",
    },
    "--target-word": {
        "action": "append",
        "default": [],
        "metavar": "LABEL=WORD",
        "help": "the word that T5 writes for a label, e.g. 1=positive; default: the label",
    },
    "--max-source-length": {
        "type": int,
        "metavar": "TOKENS",
        "help": "maximum tokens of a source; longer sources are truncated; default: the task's",
    },
    "--max-target-length": {
        "type": int,
        "metavar": "TOKENS",
        "help": "maximum tokens of a target; longer targets are truncated; default: the task's",
    },
    "--workers": {
        "type": int,
        "metavar": "N",
        "help": "number of parallel workers, on the Ray cluster at RAY_ADDRESS or as processes on this machine",
    },
    "--data": {
        "metavar": "FILE",
        "help": "records: a CSV, TSV, JSONL, JSON or Parquet file, a folder or hub name with a test split, or - for standard "
        "input; default: the task's own test records",
    },
}


def option_of(name: str) -> str:
    """Return the option whose value argparse keeps under a name."""
    return f"--{name.replace('_', '-')}"


def add_option(group: Group, name: str, **changes: Any) -> None:
    """Add an option of the vocabulary.

    Args:
        group: A parser, or a group of its help.
        name: A key of ``OPTIONS``.
        changes: What this command has otherwise, such as ``required=False``.
    """
    group.add_argument(name, **{**OPTIONS[name], **changes})


def add_method(group: Group) -> None:
    """Add ``--method``.

    Args:
        group: A parser, or a group of its help.
    """
    methods = names.method_names()
    text = f"the tuning method: {', '.join(methods)}"
    group.add_argument("--method", choices=methods, default="lora", metavar="METHOD", help=text)


def add_hidden(parser: argparse.ArgumentParser, name: str, dest: str, **settings: Any) -> None:
    """Add the spelling of an option that version 0.1 had, without help.

    Args:
        parser: The parser of a command.
        name: The old option.
        dest: The attribute of the new one.
        settings: Those of ``add_argument``.
    """
    parser.add_argument(name, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **settings)
