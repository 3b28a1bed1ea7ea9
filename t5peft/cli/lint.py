"""Report what a tokenizer would lose from a data set, before training: unknown pieces, lost characters, truncated texts."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from t5peft.cli.data import add_data_arguments, read_data
from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results

EPILOG = "Example: t5peft lint --task classification --train train.csv --backbone google/flan-t5-base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft lint``."""
    add_data_arguments(parser)
    add_option(parser.add_argument_group("model"), "--backbone")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print a report for each split."""
    from t5peft.data.lint import lint
    from t5peft.evaluation.scores import check_metrics
    from t5peft.models.backbone import load_tokenizer

    task, splits = read_data(args)
    check_metrics(task)
    tokenizer = load_tokenizer(args.backbone)
    reports = {split: lint(task, records, tokenizer) for split, records in splits.items()}
    results = {split: asdict(report) for split, report in reports.items()}
    for report in results.values():
        for side in ("sources", "targets"):
            del report[side]["lengths"]  # a number for each record
    print_results(args, results, "\n\n".join(f"== {split}\n{report}" for split, report in reports.items()))
    return int(any(report.problems for report in reports.values()))
