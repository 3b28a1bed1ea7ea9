"""Search for hyper-parameters with Optuna; resumable, prints the best run's command."""

from __future__ import annotations

import argparse

from t5peft.cli.data import add_data_arguments, read_data
from t5peft.cli.train_config import add_config_arguments, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft search``.

    Args:
        parser: The parser of the command.
    """
    parser.epilog = (
        "Searched are the learning rate, within ten times of --learning-rate either way, and those of --weight-decay,\n"
        "--label-smoothing and the method's --rank or --length that are not given."
    )
    add_data_arguments(parser)
    add_config_arguments(parser)
    parser.add_argument("--trials", type=int, default=20, help="trials in all; those of an interrupted search count")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the study is stored")


def run(args: argparse.Namespace) -> int:
    """Search, and print the best run's command.

    Args:
        args: The values of the command.

    Returns:
        The exit code.
    """
    from t5peft.training.search import search

    config = read_config(args)
    task, splits = read_data(args)
    found = search(task, splits, config, args.output, trials=args.trials)
    print(
        f"{found.trials} trials, {found.pruned} of them pruned; best {task.metrics[0]} on validation {found.value:.4f}"
    )
    if found.picture:
        print(f"picture: {found.picture}")
    single = ("train", "validation", "test", "encoding", "delimiter", "template", "references")
    files = [(name, [value]) for name in single if (value := getattr(args, name))]
    columns = [("column", args.column), ("target-word", args.target_word)]
    data = [word for name, values in (*files, *columns) for value in values for word in (f"--{name}", value)]
    print(found.command(args.task, f"{args.output}/best", data))
    return 0
