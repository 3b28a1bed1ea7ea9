"""Report what a tokenizer loses of a data set, before training: unknown pieces, lost characters, truncated texts."""

from __future__ import annotations

import argparse

from t5peft.cli.data import add_data_arguments, read_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft lint``.

    Args:
        parser: The parser of the command.
    """
    parser.epilog = "Example: t5peft lint --task finance --backbone google/flan-t5-base"
    add_data_arguments(parser)
    parser.add_argument("--backbone", default="mini", help="whose tokenizer: mini, a hub name, or a folder")


def run(args: argparse.Namespace) -> int:
    """Print a report for each split.

    Args:
        args: The values of the command.

    Returns:
        The exit code; 1 where a problem would stop training.
    """
    from t5peft.data.lint import lint
    from t5peft.models.backbone import load_tokenizer

    task, splits = read_data(args)
    tokenizer = load_tokenizer(args.backbone)
    reports = {split: lint(task, records, tokenizer) for split, records in splits.items()}
    for split, report in reports.items():
        print(f"== {split}\n{report}\n")
    return int(any(report.problems for report in reports.values()))
