"""Tune a saved adapter further on new data, with replay of old data, and report what it forgot."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from t5peft.cli.data import SPLITS, add_format_arguments, load_saved_task, read_file, save_task
from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results
from t5peft.cli.train_config import add_training_arguments, read_training

EPILOG = """
Example: t5peft continue runs/reviews/adapter --train new.csv --test new_test.csv --old-train train.csv --old-test test.csv \\
    --output runs/reviews2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft continue``."""
    parser.add_argument("model", metavar="FOLDER", help="an adapter from `t5peft train`")
    group = parser.add_argument_group("data")
    for name in ("train", "test"):
        group.add_argument(f"--{name}", required=True, metavar="FILE", help=SPLITS[name])
    for name, text in (
        ("old-train", "old training records, to replay"),
        ("old-test", "old test records, to measure forgetting"),
    ):
        group.add_argument(f"--{name}", required=True, metavar="FILE", help=text)
    group.add_argument("--replay", type=float, default=0.5, help="old records to replay per new record")
    add_format_arguments(group)
    add_training_arguments(parser)
    group = parser.add_argument_group("output")
    add_option(group, "--output")
    add_option(group, "--overwrite")
    group.add_argument(
        "--replace", action="store_true", help="replace the old version with the new one, unless the new one is worse"
    )
    group.add_argument(
        "--tolerance", type=float, default=0.0, help="the largest loss of score on old records that --replace accepts"
    )
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Train again, report, and replace if asked."""
    from t5peft.training.continue_training import continue_training, replace

    config = read_training(args)
    task = load_saved_task(args.model)
    report = continue_training(
        args.model,
        task,
        read_file(args, args.train, "train"),
        read_file(args, args.old_train, "train"),
        new_test=read_file(args, args.test, "test"),
        old_test=read_file(args, args.old_test, "test"),
        config=config,
        output=args.output,
        replay=args.replay,
        overwrite=args.overwrite,
    )
    save_task(task, args.output)
    print_results(args, {**asdict(report), "worse": report.worse(args.tolerance)}, str(report))
    if not args.replace:
        return 0
    try:
        print(f"replaced {replace(args.model, report, tolerance=args.tolerance)}; the old version is kept next to it")
    except ValueError as refusal:
        print(f"t5peft continue: {refusal}", file=sys.stderr)
        return 1
    return 0
