"""Search for hyper-parameters with Optuna; resumable, prints the best run's command."""

from __future__ import annotations

import argparse

from t5peft.cli.data import add_data_arguments, read_data
from t5peft.cli.recipe import add_recipe_arguments, read_recipe
from t5peft.training.search import search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft search``."""
    parser.epilog = (
        "Searched are the learning rate, within ten times of --learning-rate either way, and what is not given of "
        "--weight-decay, --label-smoothing and the method's --rank or --length."
    )
    add_data_arguments(parser)
    add_recipe_arguments(parser)
    parser.add_argument("--trials", type=int, default=20, help="in all, those of an interrupted search counted")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the study lies")


def run(args: argparse.Namespace) -> int:
    """Search and print."""
    task, splits = read_data(args)
    found = search(task, splits, read_recipe(args), args.output, trials=args.trials)
    print(
        f"{found.trials} trials, {found.pruned} of them pruned; best {task.metrics[0]} on validation {found.value:.4f}"
    )
    if found.picture:
        print(f"picture: {found.picture}")
    files = [(name, [value]) for name in ("train", "validation", "test", "template") if (value := getattr(args, name))]
    columns = [("column", args.column), ("target-word", args.target_word)]
    data = [word for name, values in (*files, *columns) for value in values for word in (f"--{name}", value)]
    print(found.command(args.task, f"{args.output}/best", data))
    return 0
