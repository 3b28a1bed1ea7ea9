"""Tune a saved adapter again on new data, with replay of the old; says what was forgotten, and replaces only what is not worse."""

from __future__ import annotations

import argparse

from t5peft.cli.data import load_saved_task, save_task
from t5peft.cli.recipe import add_training_arguments, read_training
from t5peft.data import load_records
from t5peft.training.continue_training import continue_training, replace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft retune``."""
    parser.add_argument("adapter", metavar="FOLDER", help="an adapter, as `t5peft train` saves it")
    for name, text in (
        ("train", "new training records"),
        ("test", "new test records"),
        ("old-train", "old training records, to replay"),
        ("old-test", "old test records, to see what is forgotten"),
    ):
        parser.add_argument(f"--{name}", required=True, metavar="FILE", help=text)
    add_training_arguments(parser)
    parser.add_argument("--replay", type=float, default=0.5, help="old records replayed for each new one")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the new version is saved")
    parser.add_argument(
        "--replace", action="store_true", help="put it in the place of the old version, unless it is worse"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, help="how much the old records may lose")


def run(args: argparse.Namespace) -> int:
    """Tune again, report, and replace if asked."""
    task = load_saved_task(args.adapter)
    report = continue_training(
        args.adapter,
        task,
        load_records(args.train, "train"),
        load_records(args.old_train, "train"),
        new_test=load_records(args.test, "test"),
        old_test=load_records(args.old_test, "test"),
        recipe=read_training(args),
        output=args.output,
        replay=args.replay,
    )
    save_task(task, args.output)
    print(report)
    if args.replace:
        print(f"replaced {replace(args.adapter, report, tolerance=args.tolerance)}; the old version is kept beside it")
    return 0
